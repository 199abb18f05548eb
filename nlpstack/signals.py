"""How a command is stopped from outside: SIGINT and SIGTERM. It loads no library, since they may come before any."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from traceback import walk_stack
from types import FrameType
from typing import NoReturn


class Stopped(BaseException):
    """The command was asked to stop by a signal; not an error, so that nothing catches it by mistake."""

    def __init__(self, signum: int, saved: str = "") -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum, self.saved, self.resumable = signum, saved, bool(saved)  # resumable: there is a run to go on with


@dataclass
class StopSignal:
    """Both signals: put off to the end of the step while training and of an import, at once elsewhere."""

    several: bool = False  # processes work together, and each may hear from the scheduler and from torchrun
    signum: int | None = None
    stopped: Stopped | None = None  # what was raised
    _deferred: bool = False
    _late: int = signal.SIGTERM  # what the timer's own signal stands for

    @contextmanager
    def installed(self) -> Iterator["StopSignal"]:
        """Handle both signals inside the block; only the command line does this. Whatever comes of it is Stopped."""
        with ExitStack() as undo:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGVTALRM):
                undo.callback(signal.signal, number, signal.signal(number, self._handle))
            undo.callback(signal.setitimer, signal.ITIMER_VIRTUAL, 0)
            try:
                yield self
            except Exception as error:
                if self.stopped is not None:  # of which a library has made an error of its own
                    raise self.stopped from error
                raise

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block a first signal is only noted in `signum`; a second one stops at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        signum = self._late if signum == signal.SIGVTALRM else signum
        again = self.signum is not None and not (self.several and signum == signal.SIGTERM)
        if self._deferred and not again:
            self.signum = signum
        elif any("importlib._bootstrap" in one.f_code.co_filename for one, _ in walk_stack(frame)):
            self._late = signum  # a library of which half is loaded can neither be used nor loaded again
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
        else:
            self.stop(signum)

    def stop(self, signum: int, saved: str = "") -> NoReturn:
        """Raise Stopped."""
        self.stopped = Stopped(signum, saved)
        raise self.stopped
