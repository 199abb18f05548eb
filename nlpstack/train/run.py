"""A run: its recipe's sections, the folder that explains it to every later command, and what it says on the way."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Literal, get_type_hints

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import dataclasses as pydantic_dataclasses

from nlpstack.config import Resolved, checked, read_toml, resolve, to_toml
from nlpstack.data.readers import DataConfig
from nlpstack.errors import CheckpointError, ConfigError, some
from nlpstack.files import ASIDE_SUFFIX, naming, read_json_object, remove_leftovers, write_file
from nlpstack.model import TransformerConfig
from nlpstack.model.lora import LoRAConfig
from nlpstack.recipes import find_recipe
from nlpstack.tasks import EvalConfig, TaskConfig
from nlpstack.tokenizer import TokenizerConfig
from nlpstack.train.checkpoint import Checkpoints
from nlpstack.train.optim import OptimConfig
from nlpstack.train.runtime import Choices, gathered, rank

LOSS_PICTURE = "loss.png"
# What a run's folder holds beside its lock.
ENTRIES = ("config.toml", "model", "checkpoints", "metrics.jsonl", "results.json", LOSS_PICTURE, "model" + ASIDE_SUFFIX)
# Values that --resume may change: they say when to look and to save, not what is computed.
FREE_VALUES = ("train.log_every", "train.val_every", "train.checkpoint_every")
LENGTHS = ("train.steps", "train.epochs", "train.minutes")


@pydantic_dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainConfig:
    """How long, in what batches, on what machine, and how often to look."""

    steps: PositiveInt | None = None  # give one of steps, epochs and minutes
    epochs: PositiveFloat | None = None  # passes over the training data; need not be whole
    minutes: PositiveFloat | None = None  # turned into steps once, before the first
    batch_size: PositiveInt | None = None  # sequences an optimizer step; or batch_tokens
    batch_tokens: PositiveInt | None = None  # tokens an optimizer step, rounded down to whole sequences
    micro_batch: NonNegativeInt = 0  # sequences at a time, gradients added up; 0: the whole batch
    log_every: PositiveInt = 50  # steps
    val_every: NonNegativeInt = 500  # steps; 0: at the end only
    checkpoint_every: NonNegativeInt = 500  # steps; 0: at the end only
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of products; auto: bf16 where it is faster, else fp32
    compile: bool | Literal["auto"] = "auto"  # auto: where the run is long enough to repay it
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: a GPU where there is one
    threads: NonNegativeInt = 0  # 0: as many as torch finds cores
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1  # of weights, order and dropout
    deterministic: bool = False  # on a GPU: equal runs give equal bits, at some cost
    freeze: list[str] = field(default_factory=list)  # weights whose names begin so do not train
    parallel: Literal["ddp", "fsdp"] = "ddp"  # several processes: each has the whole model, or a share of its weights
    activation_checkpointing: bool = False  # less memory, about a third more work
    patience: NonNegativeInt = 0  # validations without a better one before stopping early; 0: never
    max_skips: NonNegativeInt = 3  # steps in a row with a loss or gradient that is not finite
    samples: NonNegativeInt = 1  # texts written at each validation, from prompts of the validation part
    sample_tokens: PositiveInt = 60  # of each of these texts

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = (("steps", "epochs", "minutes"), ("batch_size", "batch_tokens"))

    def __post_init__(self) -> None:
        for group in self.one_of:
            given = [name for name in group if getattr(self, name) is not None]
            if len(given) != 1:
                what = " and ".join(given) + " exclude each other" if given else "none is given"
                raise ValueError(f"give one of {', '.join(group)}: {what}")

    def sequences(self, max_seq_len: int) -> int:
        """Sequences an optimizer step."""
        size = self.batch_size or (self.batch_tokens or 0) // max_seq_len  # __post_init__ saw that one is given
        if not size:
            raise ConfigError(f"train.batch_tokens={self.batch_tokens} is less than one block of {max_seq_len} tokens")
        return size


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The sections of a recipe, each the config of the part that it is named after."""

    model: TransformerConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    task: TaskConfig
    lora: LoRAConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig


SECTIONS: dict[str, type] = get_type_hints(RunConfig)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A recipe as resolved for one run."""

    name: str
    config: RunConfig
    resolved: Resolved = field(repr=False)


def load_run(recipe: str, stage: str, flags: Mapping[str, Any], overrides: Sequence[str]) -> Run:
    """Find a recipe by name or path and resolve it; raises ConfigError before anything else is touched."""
    path = find_recipe(recipe, stage)
    return make_run(path.stem, resolve(path, SECTIONS, flags, overrides))


# The keys of [task] that each task has.
USED_BY: Mapping[str, tuple[str, ...]] = {
    "masked_lm": ("nsp", "mask_share", "whole_words"),
    "classification": ("truncate", "ignore_unknown", "threshold", "class_weights", "label_smoothing"),
    "ner": ("ignore_unknown", "label_smoothing", "constrained"),
    "generation": ("truncate",),
    "similarity": ("truncate",),
}


def make_run(name: str, resolved: Resolved) -> Run:
    """The run of resolved sections; raises ConfigError where values of two of them do not go together."""
    config, origin = RunConfig(**resolved.sections), resolved.origin
    model, task = config.model, config.task
    used = USED_BY.get(task.name or ("causal_lm" if model.causal else "masked_lm"), ())
    # A value that is the default says nothing: the record of a run has them all.
    for key, setter in origin.items():
        own = key.removeprefix("task.")
        if own not in (key, "name", *used) and getattr(task, own) != getattr(TaskConfig, own):
            what = f"the task {task.name}" if task.name else "a GPT (model.causal=true)" if model.causal else "a BERT"
            owners = ["of a BERT" if owner == "masked_lm" else owner for owner, keys in USED_BY.items() if own in keys]
            raise ConfigError(f"{setter}: {key}: {', '.join(owners)}; {what} has no such choice")
    exact, masked = config.optim.full_batch, not task.name and not model.causal
    noisy = f"too noisy for the line searches of {config.optim.name}; use"
    fsdp = config.train.parallel == "fsdp"
    windows, shortest = "of a GPT; a BERT is scored in rows of its context", 5 if task.nsp else 3
    short = f"too short for a row with its marks; at least {shortest}"
    for wrong, key, cure in (
        (exact and model.dropout > 0, "model.dropout", f"{noisy} model.dropout=0"),
        (exact and config.train.dtype not in ("auto", "fp32"), "train.dtype", f"{noisy} train.dtype=fp32"),
        (fsdp and config.optim.name in ("muon", "lbfgs"), "optim.name", "takes whole matrices; fsdp shares them out"),
        (fsdp and config.train.dtype == "fp16", "train.dtype", "fsdp goes with bf16 or fp32"),
        (fsdp and config.train.compile is True, "train.compile", "a run with fsdp is eager; leave it out"),
        (masked and config.eval.window, "eval.window", windows),
        (masked and config.eval.stride, "eval.stride", windows),
        (masked and task.nsp and model.n_segments < 2, "model.n_segments", "pairs of texts need 2, or task.nsp=false"),
        (masked and model.max_seq_len < shortest, "model.max_seq_len", short),
    ):
        if wrong:
            raise ConfigError(f"{origin.get(key, name)}: {key}={attrgetter(key)(config)}: {cure}")
    return Run(name=name, config=config, resolved=resolved)


class RunFolder:
    """A run's folder and what stands in it."""

    def __init__(self, path: Path, record: dict[str, Any] | None = None) -> None:
        self.path = path
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.log = MetricsLog(path / "metrics.jsonl")
        self.model = path / "model"
        self.record = record or {}  # config.toml as it stands

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, resume: bool, overwrite: bool) -> Iterator["RunFolder"]:
        """Be the one writer of a new run's folder, or of one to go on with; what stands there stays until `clear`."""
        if not rank():  # the first of several processes is it
            cls.check(path, resume=resume, overwrite=overwrite)
        with nullcontext() if rank() else _locked(path), naming(path):
            if not rank():
                cls.check(path, resume=resume, overwrite=overwrite)  # another run may have been made meanwhile
            gathered(None)
            yield cls(path, read_record(path) if resume else None)

    @staticmethod
    def check(path: Path, *, resume: bool, overwrite: bool) -> None:
        """Refuse what would lose or mix up results; a start that failed before its first step is in nobody's way."""
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other")
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: is a file; give another --out")
        entries = sorted(entry.name for entry in path.iterdir()) if path.exists() else []
        is_run = "config.toml" in entries or ".lock" in entries
        results = [name for name in entries if name in ENTRIES]
        if resume and not is_run:
            raise CheckpointError(f"{path}: no run stands here to --resume; leave the flag out to start one")
        foreign = [name for name in entries if name not in ENTRIES and not name.startswith(".")]
        if entries and not is_run:
            raise ConfigError(f"{path}: holds other files ({some(foreign)}); give another --out")
        if results and not resume and not overwrite:
            raise ConfigError(f"{path}: a run stands here; --resume goes on with it, --overwrite replaces it")
        if results and resume and "config.toml" not in entries:
            raise CheckpointError(f"{path}: a run without its config.toml, so it cannot go on; --overwrite replaces it")

    def clear(self) -> None:
        """Delete the run that stands here: at step 0 of the one that replaces it, when nothing can be refused now."""
        for name in ENTRIES:
            if (entry := self.path / name).is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def write_record(self, run: Run, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Write config.toml: every value, where it came from, and what the run settled at step 0."""
        self.record = {**run.resolved.values(), "origin": run.resolved.origin, **records}
        text = f"# The run '{run.name}' as resolved by nlpstack; [origin] says who set what, all else is default.\n\n"
        write_file(self.path / "config.toml", text + to_toml(self.record))

    def check_unchanged(self, run: Run) -> None:
        """Raise CheckpointError listing every value that differs from the run's own, but for those that may."""
        then, now = (
            {f"{name}.{key}": value for name in SECTIONS for key, value in tables.get(name, {}).items()}
            for tables in (self.record, json.loads(json.dumps(run.resolved.values())))  # tuples as lists, as in TOML
        )
        free = FREE_VALUES + (LENGTHS if run.config.optim.schedule in OptimConfig.open_ended else ())
        changed = [
            f"{key}: then {then.get(key)!r}, now {now.get(key)!r}"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key) and key not in free
        ]
        if changed:
            raise CheckpointError(f"{self.path}: --resume with changed values ({'; '.join(changed)}); put them back")

    def choices(self) -> Choices | None:
        """What the run settled at step 0; None if it never got there."""
        made, place = self.record.get("choices"), f"{self.path}/config.toml: [choices]"
        return checked(Choices, made, place, CheckpointError) if made else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w", encoding="utf-8")  # noqa: SIM115 - held as long as the run
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another --out") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock.fileno()), os.stat(path / ".lock")):
            raise FileExistsError(lock.name)  # its last owner has taken it away, and another has made one of its own
    except OSError as error:
        lock.close()
        raise ConfigError(f"{path}: another process is writing this run; wait for it or give another --out") from error
    remove_leftovers(path)
    with lock:
        try:
            yield
        finally:
            if os.listdir(path) == [".lock"]:  # the start failed, so nothing of it is left
                (path / ".lock").unlink()
                if is_new:
                    path.rmdir()


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write a run's results.json: what the evaluator said last, and the run's figures."""
    write_file(path / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A run's config.toml, every value checked; nothing if the folder has none."""
    file = path / "config.toml"
    if not file.exists():
        return {}
    values = resolve(file, SECTIONS, {}).values()
    return {**read_toml(file), **json.loads(json.dumps(values))}  # tuples as lists, as in TOML


def read_results(path: Path) -> dict[str, Any]:
    """A run's results.json; nothing if it has none, or none that can be read."""
    with suppress(CheckpointError):
        return read_json_object(path / "results.json", CheckpointError)
    return {}


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
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record), ensure_ascii=False) + "\n")

    def sync(self) -> int:
        """Force what was written onto the disk; its length in bytes comes back."""
        with naming(self.path), open(self.path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def cut(self, n_bytes: int) -> None:
        """Forget what was written after the checkpoint that a run goes on from; of several processes the first does."""
        if not rank() and self.path.exists() and self.path.stat().st_size > n_bytes:
            os.truncate(self.path, n_bytes)


def finite(value: Any) -> Any:
    """The value with inf and nan, which JSON lacks, as None."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
