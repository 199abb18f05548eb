"""The command line: each command parses, calls the function of the same name, and prints what came back."""

import errno
import os
import signal
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from shlex import join
from tempfile import NamedTemporaryFile

import click

from nlpstack import __version__
from nlpstack.errors import ConfigError, NlpstackError
from nlpstack.signals import Stopped, StopSignal

USAGE, FAULT = 2, 3  # exit codes: the user's to mend, ours to mend
# What the machine refuses for want of rights, space or a sensible path is the user's to mend.
REFUSALS = ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EIO", "ENOENT", "ENOTDIR", "EISDIR", "ENAMETOOLONG")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True})
@click.version_option(__version__, prog_name="nlpstack")
def main() -> None:
    """Raw text to a trained, adapted and trusted language model.

    \b
    Example:
      nlpstack pretrain --arch gpt
      nlpstack generate --model runs/gpt --prompt "To be, or"
    """


for name in (
    *("pretrain", "finetune", "eval", "compare", "predict", "merge", "convert", "generate", "fill_mask", "embed"),
    *("attention", "tokenizer", "data", "recipes", "info", "doctor"),
):
    main.add_command(getattr(import_module(f"nlpstack.cli.{name}"), f"{name}_command"))


def run() -> None:
    """The `nlpstack` command: exit codes as promised, one line an error, a traceback only under --debug."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # else a file would take a closed one's place
        setattr(sys, name, getattr(sys, name) or open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    code = _exit_code(sys.argv[1:])
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:  # its reader has gone or its disk is full, and the flush at exit must not fail again
            setattr(sys, name, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done; Python would show where it was cleaning up
    sys.exit(code)


def _exit_code(arguments: list[str]) -> int:
    stop = StopSignal(several="TORCHELASTIC_RUN_ID" in os.environ)
    try:
        os.getcwd()  # where the folder is gone, libraries end the process in ways of their own
        with stop.installed(), _processes(arguments):
            result = main.main(arguments, prog_name="nlpstack", standalone_mode=False, obj=stop)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2 on; its message is the whole help
            error.show()
            return USAGE
        hint = f" (see: {context.command_path} --help)" if (context := getattr(error, "ctx", None)) else ""
        return _complain(f"{' '.join(error.format_message().split())}{hint}", USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _complain("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:  # whoever read our output has gone
        return 128 + signal.SIGPIPE
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if isinstance(error, NlpstackError):
            return _complain(str(error), USAGE)
        if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in REFUSALS:
            place = error.filename or ("the current folder" if error.errno == errno.ENOENT else "stdout")
            return _complain(f"{place}: {error.strerror}; make room or give another place", USAGE)
        trace = "--debug shows the traceback, which cannot be saved"
        with suppress(OSError), NamedTemporaryFile(prefix="nlpstack-fault-", suffix=".txt", delete=False) as file:
            file.write(traceback.format_exc().encode(errors="replace"))
            trace = f"traceback in {file.name}"
        return _complain(f"a fault of nlpstack ({type(error).__name__}: {error}); {trace}", FAULT)
    except Stopped as stopped:
        after = " before the first step" * (arguments[:1] in (["pretrain"], ["finetune"]))
        if stopped.resumable:
            words = [word for word in arguments if word not in ("--overwrite", "--resume")]
            typed = join(["nlpstack", *words, "--resume"]).replace("\n", "'$'\\n''")  # one line, as bash reads it
            after = f"{', saved' if stopped.saved else ' at once'}; go on with: {typed}"
        return _complain(f"stopped by {stopped}{after}", 128 + stopped.signum)


def _processes(arguments: list[str]) -> AbstractContextManager[None]:
    """Under torchrun be one of its processes, which does a share of what the command does."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    if not {"pretrain", "finetune", "eval", "predict"}.intersection(arguments[:1]):
        fault = "torchrun: starts pretrain, finetune, eval and predict; run this command once, without it"
        raise SystemExit(USAGE) if int(os.environ["RANK"]) else ConfigError(fault)  # the first process says it
    from nlpstack.train.runtime import joined

    return joined()


def _complain(text: str, code: int) -> int:
    with suppress(OSError):  # stderr may be full
        click.echo("nlpstack: " + text.replace("\n", " "), err=True)
    return int(code)
