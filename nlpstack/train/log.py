"""What a run says: lines and a progress bar for people, `metrics.jsonl` for programs."""

import json
import os
from pathlib import Path
from typing import IO, Any


class Reporter:
    """Where a command says what it does: lines on a stream, and a progress bar below them where it is a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self.stream = stream  # None: nothing is said, as by library calls unless they are given another
        self._bar: Any = None

    def say(self, text: str) -> None:
        """One line for the reader, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.stream is not None:
            self.stream.write(text + "\n")
            self.stream.flush()

    def progress(self, done: int, total: int, text: str) -> None:
        """How far a long loop is: move the bar; in a pipe there is none."""
        if self.stream is None or not self.stream.isatty():
            return
        if self._bar is None:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = BarColumn(), TextColumn("{task.completed}/{task.total} {task.description}"), TimeRemainingColumn()
            self._bar = Progress(*columns, console=RichConsole(file=self.stream), transient=True)
            self._bar.start()
            self._bar.add_task(text, total=total)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=text)

    def close(self) -> None:
        """The loop is over: take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class MetricsLog:
    """`metrics.jsonl`: one JSON object a logged step and a validation; numbers that are not finite become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Append a record as one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), ensure_ascii=False) + "\n")

    def sync(self) -> int:
        """Force what was written onto the disk; its length in bytes comes back."""
        with open(self.path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, n_bytes: int) -> None:
        """Forget what was written after the checkpoint that a run goes on from."""
        if self.path.exists() and self.path.stat().st_size > n_bytes:
            os.truncate(self.path, n_bytes)


def finite(value: Any) -> Any:
    """The value with inf and nan, which JSON lacks, as None."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
