"""What `nlpstack eval` does: models, or what any system put out, in; scores with intervals and signatures out."""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nlpstack.errors import ConfigError
from nlpstack.hub import load_model, weights_hash
from nlpstack.metrics import compute
from nlpstack.results import EvalOptions, asked_for, chosen, eval_config, make_result
from nlpstack.start import finished_runs, frame
from nlpstack.subject import Subject
from nlpstack.tasks import labelled_task_of
from nlpstack.train import runtime
from nlpstack.train.evaluator import measure
from nlpstack.train.log import Reporter
from nlpstack.train.run import USED_BY, read_record, read_results, write_results

__all__ = ["EvalOptions", "evaluate"]

RUNS = Path("runs")
READING = ("truncate", "ignore_unknown", "threshold", "constrained")  # keys of [task] that say how a model is read


def evaluate(
    models: Sequence[str | Path] = (), options: EvalOptions | None = None, *, reporter: Reporter | None = None
) -> list[dict[str, Any]]:
    """Scores of models, by default of every finished run under runs/: one result a model, as in results.json.

    A run's results.json is rewritten. Raises NlpstackError for what the caller can mend.
    """
    options, reporter = options or EvalOptions(), reporter or Reporter()
    options, asked = asked_for(options)
    only = asked["score"].task
    paths = [Path(model) for model in models] or finished_runs(RUNS, only)
    if not paths:
        what, cure = (f" of {only}", "name one") if only else ("", "make one with: nlpstack pretrain --arch gpt")
        raise ConfigError(f"no model given and no finished run{what} under {RUNS}/; {cure}")
    device = runtime.resolve_device(options.device)
    dtype = runtime.resolve_dtype(options.dtype, device)
    results = []
    with runtime.session(threads=options.threads):
        for path in paths:
            result = _evaluate_one(path, options, asked, device, dtype, reporter)
            results.append(result)
            if (path / "config.toml").exists():
                write_results(path, {**read_results(path), "results": [result]})
    return results


def _evaluate_one(
    path: Path, options: EvalOptions, asked: Mapping[str, Any], device: torch.device, dtype: str, reporter: Reporter
) -> dict[str, Any]:
    model = load_model(path, device=device, base=options.base, note=reporter.say)
    frame(model, str(path))  # it has a tokenizer, and this its marks
    record = read_record(path) if (path / "config.toml").exists() else {}
    config = eval_config(asked["eval"], record)
    _check_reading(path, options.task or labelled_task_of(model, record), asked["task"])
    with ExitStack() as stack:
        cache = path.parent / ".cache" if record else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reading = {**({"ignore_unknown": True} if options.ignore_unknown else {}), **asked["task"]}
        subject = Subject(
            model=model, path=path, options=options, reading=reading, record=record, cache=cache, note=reporter.say
        )
        scored, started = subject.scored(), time.perf_counter()
        signature = scored.task.signature(model, config, dtype)
        total = sum(1 for _ in scored.task.eval_batches(model, scored.data, config))
        tick = partial(reporter.progress, total=total, text=f"batches of {path}")
        with closing(reporter):
            metric = measure(model, scored.task, scored.data, config, device=device, dtype=dtype, tick=tick)
        seconds = time.perf_counter() - started
        told = make_result(metric, scored.task.name, signature, config, options, texts=scored.text)
        baselines = scored.baselines(config) if options.baselines else {}
    n = f"{len(metric.told):,} examples" if metric.told else f"{told['metrics'].get('loss', {'n': 0})['n']:,} tokens"
    reporter.say(f"{path}: {n} scored in {seconds:.1f} s")
    if options.examples and not metric.told:
        reporter.say(f"{path}: --examples is of labelled data, so nothing of this text is shown")
    drawing = {"n_resamples": config.resamples, "seed": config.seed}
    guesses = {name: chosen(compute(guess, signature, **drawing)) for name, guess in baselines.items()}
    return {
        "model": str(path),
        "task": scored.task.name,
        "data": list(options.data) or record.get("data", {}).get("paths", []),
        "split": scored.split,
        **told,
        **({"baselines": guesses} if guesses else {}),
        "hashes": {"data": scored.key, "tokenizer": model.tokenizer.hash, "weights": weights_hash(path)},
    }


def _check_reading(path: Path, task: str, keys: Iterable[str]) -> None:
    """Raise ConfigError for a key of [task] that would change nothing in how a model is scored."""
    there = [f"task.{key}" for key in READING if key in USED_BY.get(task, ())]
    for key in keys:
        if f"task.{key}" not in there:
            choices = f"of those it has {', '.join(there)}" if there else "it has none of those"
            raise ConfigError(f"--set task.{key}: not a choice of how {path} is scored; {choices}")
