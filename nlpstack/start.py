"""The model that a run begins with: the one that is named, or the newest that was pretrained."""

from dataclasses import asdict, replace
from pathlib import Path

from nlpstack.errors import ConfigError, ModelError
from nlpstack.files import standing
from nlpstack.model import LanguageModel
from nlpstack.train.run import Run, check_task, read_record, read_results


def newest_pretrained(runs: Path, *, causal: bool) -> Path:
    """The run folder under `runs` whose pretraining of a GPT (`causal`) or BERT was finished last."""
    found = []
    for results in runs.glob("*/results.json"):
        run = results.parent
        if "run" not in (read_results(run) or {}) or not standing(run / "model").exists():
            continue
        record = read_record(run)
        if not record.get("task", {}).get("name") and record.get("model", {}).get("causal") == causal:
            found.append((results.stat().st_mtime_ns, run))
    if not found:
        arch = "gpt" if causal else "bert"
        raise ModelError(
            f"no model to start from: {runs}/ has no finished pretraining run of a {arch.upper()}; make one with: "
            f"nlpstack pretrain --arch {arch}; or name a model with --model DIR"
        )
    return max(found)[1]


def with_shape_of(start: LanguageModel, run: Run, source: str) -> Run:
    """The run with the starting model's shape, but for dropout, which is no weight; a shape asked for is refused."""
    resolved = run.resolved
    if not run.config.task.name and start.config.causal != run.config.model.causal:
        there, wanted = ("GPT", "BERT") if start.config.causal else ("BERT", "GPT")
        raise ConfigError(f"{source} is a {there}, and the recipe '{run.name}' trains a {wanted}; take another of them")
    for key, setter in resolved.origin.items():
        section, _, name = key.partition(".")
        if section != "model" or name == "dropout" or setter not in ("flag", "--set"):
            continue
        asked, given = getattr(run.config.model, name), getattr(start.config, name)
        if asked != given:
            raise ConfigError(f"{setter}: {key}={asked}, but {source} has {given}; leave it out")
    shape = replace(start.config, dropout=run.config.model.dropout)
    origin = {key: value for key, value in resolved.origin.items() if not key.startswith("model.")}
    origin.update((f"model.{name}", source) for name in asdict(shape) if name != "dropout")
    if "model.dropout" in resolved.origin:
        origin["model.dropout"] = resolved.origin["model.dropout"]
    sections = {**resolved.sections, "model": shape}
    resolved = replace(resolved, sections=sections, origin=origin)
    run = Run(name=run.name, config=replace(run.config, model=shape), resolved=resolved)
    check_task(run)
    return run
