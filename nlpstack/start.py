"""The model that a command works on: an object or a folder; for a run, also the newest that was pretrained."""

from dataclasses import asdict, replace
from pathlib import Path

from nlpstack.errors import ConfigError, ModelError
from nlpstack.files import standing
from nlpstack.hub import load_model
from nlpstack.model import LanguageModel
from nlpstack.tasks.labelled import Frame
from nlpstack.train.run import Run, make_run, read_record, read_results
from nlpstack.train.runtime import DTYPES, resolve_device


def open_model(
    model: LanguageModel | str | Path, *, device: str = "auto", dtype: str | None = None
) -> tuple[LanguageModel, str]:
    """A model, read from its folder (in fp32 unless `dtype` is given) or as it is, and what to call it."""
    if not isinstance(model, str | Path):
        if device != "auto" or dtype is not None:
            raise ConfigError("device and dtype are for a model that is read from a folder; move the object yourself")
        return model, "the model"
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}' is unknown; give one of {', '.join(DTYPES)}")
    return load_model(model, device=resolve_device(device), dtype=DTYPES[dtype or "fp32"]), str(model)


def frame(model: LanguageModel, name: str, *, truncate: bool = False) -> Frame:
    """How a model's input is framed; ModelError, naming the model, if it has no tokenizer or this lacks a mark."""
    if model.tokenizer is None:
        raise ModelError(f"{name}: has no tokenizer, so it cannot read a text; add its files")
    try:
        return Frame(model.tokenizer, model.config, truncate=truncate)
    except ModelError as error:
        raise ModelError(f"{name}: {error}; add the tokenizer it was trained with") from error


def finished_runs(folder: Path, task: str = "") -> list[Path]:
    """Run folders with a model and the figures of their end, in order of their names; with a `task` only its own."""
    ended = (path.parent for path in sorted(folder.glob("*/results.json")) if "run" in read_results(path.parent))
    return [path for path in ended if standing(path / "model").exists() and (not task or _task_of(path) == task)]


def _task_of(run: Path) -> str:
    record = read_record(run)
    return record.get("task", {}).get("name") or ("causal_lm" if record.get("model", {}).get("causal") else "masked_lm")


def newest_pretrained(runs: Path, *, causal: bool) -> Path:
    """The run folder under `runs` whose pretraining of a GPT (`causal`) or BERT was finished last."""
    if not (found := finished_runs(runs, "causal_lm" if causal else "masked_lm")):
        arch = "gpt" if causal else "bert"
        fault = f"no model to start from: {runs}/ has no finished pretraining run of a {arch.upper()}"
        raise ModelError(f"{fault}; make one with: nlpstack pretrain --arch {arch}; or name a model with --model DIR")
    return max(found, key=lambda run: ((run / "results.json").stat().st_mtime_ns, run))


def begin_with(place: str | Path, run: Run) -> tuple[LanguageModel, Run]:
    """The model that a run begins with, if it fits what is trained, and the run with its shape (not its dropout)."""
    start, source, resolved, task = load_model(place), f"--model {place}", run.resolved, run.config.task.name
    if start.base is not None:
        raise ModelError(f"{place}: an adapter; merge it first (nlpstack merge {place} --out DIR), and start from that")
    if start.config.causal != (task == "generation" if task else run.config.model.causal):
        there, wanted = ("GPT", "BERT") if start.config.causal else ("BERT", "GPT")
        if task:
            raise ModelError(f"{place}: a {there}, and the task {task} takes a {wanted}; name another with --model DIR")
        raise ConfigError(f"{source} is a {there}, and the recipe '{run.name}' trains a {wanted}; take another of them")
    frame(start, source)  # it has a tokenizer, and this its marks
    shape = replace(start.config, dropout=run.config.model.dropout)
    for name, given in asdict(shape).items():
        asked, setter = getattr(run.config.model, name), resolved.origin.get(f"model.{name}")
        if asked != given and setter in ("flag", "--set"):
            raise ConfigError(f"{setter}: model.{name}={asked}, but {source} has {given}; leave it out")
    origin = resolved.origin | {f"model.{name}": source for name in asdict(shape) if name != "dropout"}
    resolved = replace(resolved, sections={**resolved.sections, "model": shape}, origin=origin)
    return start, make_run(run.name, resolved)
