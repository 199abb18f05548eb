"""What `nlpstack eval` does: models and text in, scores with intervals and signatures out."""

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nlpstack import __version__
from nlpstack.config import build, check_keys, near, parse_override
from nlpstack.data.corpus import Split, cut_val, load_corpus, whole_corpus
from nlpstack.data.labelled import labelled_splits, load_labelled, read_labelled, split_key
from nlpstack.data.readers import DataConfig, Note
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.hub import load_model, weights_hash
from nlpstack.model import GPT, LanguageModel
from nlpstack.start import finished_runs
from nlpstack.tasks import CausalLM, EvalConfig, MaskedLM, Task, TaskConfig, labelled_task, labelled_task_of
from nlpstack.tasks.corpus import tokenize_split
from nlpstack.train import evaluator, runtime
from nlpstack.train.log import Reporter, Silent, finite
from nlpstack.train.run import USED_BY, read_record, read_results, write_results

RUNS = Path("runs")
READING = ("truncate", "ignore_unknown", "threshold", "constrained")  # keys of [task] that say how a model is read


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is asked of an evaluation; None leaves it to the run, or to the default."""

    data: Sequence[str] = ()  # none: the run's own
    documents: str | None = None
    base: str | Path | None = None  # of an adapter, where it is not where the adapter says
    split: str | None = None  # none: test, or val where there is no test
    metrics: Sequence[str] = ()  # none: all
    overrides: Sequence[str] = ()  # "eval.key=value", and of a fine-tuned model "task.key=value" (see READING)
    flags: Mapping[str, Any] = field(default_factory=dict)  # "key" of [eval] -> value
    device: str = "auto"
    dtype: str = "fp32"
    threads: int | None = None
    ignore_unknown: bool = False  # leave out examples with a label that training never saw, and say how many
    command: str = ""  # as typed, for the record


def evaluate(
    models: Sequence[str | Path] = (), options: EvalOptions | None = None, *, reporter: Reporter | None = None
) -> list[dict[str, Any]]:
    """Scores of models, by default of every finished run under runs/: one result a model, as in results.json.

    A run's results.json is rewritten. Raises NlpstackError for what the caller can mend.
    """
    options, reporter = options or EvalOptions(), reporter or Silent()
    paths = [Path(model) for model in models] or finished_runs(RUNS)
    if not paths:
        raise ConfigError(
            f"no model given and no finished run under {RUNS}/; make one with: nlpstack pretrain --arch gpt"
        )
    device = runtime.resolve_device(options.device)
    dtype = runtime.resolve_dtype(options.dtype, device)
    results = []
    with runtime.session(threads=options.threads or torch.get_num_threads(), deterministic=False):
        for path in paths:
            result = _evaluate_one(path, options, device, dtype, reporter.say)
            results.append(result)
            if (path / "config.toml").exists():
                write_results(path, {**(read_results(path) or {}), "results": [result]})
    return results


def _evaluate_one(path: Path, options: EvalOptions, device: torch.device, dtype: str, note: Note) -> dict[str, Any]:
    model = load_model(path, device=device, base=options.base, note=note)
    if model.tokenizer is None:
        raise ModelError(f"{path}: has no tokenizer, so text cannot be turned into its tokens")
    record = read_record(path) if (path / "config.toml").exists() else {}
    asked = _asked(options)
    config = _eval_config(asked["eval"], record)
    with ExitStack() as stack:
        cache = path.parent / ".cache" if record else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        name = labelled_task_of(model, record)
        _check_reading(path, name, asked["task"])
        subject = _Subject(model=model, path=path, options=options, record=record, reading=asked["task"], note=note)
        scored = subject.labelled(name) if name else subject.corpus(cache)
        started = time.perf_counter()
        scores = evaluator.evaluate(model, scored.task, scored.data, config, device=device, dtype=dtype)
        seconds = time.perf_counter() - started
    counted = f"{len(scored.data.examples):,} examples" if name else f"{scores['loss'].n:,} tokens"
    note(f"{path}: {counted} scored in {seconds:.1f} s")
    task = scored.task
    names = list(options.metrics) or list(scores)
    for name in names:
        if name not in scores:
            raise ConfigError(f"--metric {name}: not a metric of the task {task.name}{near(name, scores)}")
    return {
        "model": str(path),
        "task": task.name,
        "data": list(options.data) or record.get("data", {}).get("paths", []),
        "split": scored.split,
        "metrics": {name: finite(scores[name]._asdict()) for name in names},
        "hashes": {"data": scored.key, "tokenizer": model.tokenizer.hash, "weights": weights_hash(path)},
        "versions": {"nlpstack": __version__, "torch": torch.__version__},
        "eval": asdict(config),
        "command": options.command,
    }


class _Scored(NamedTuple):
    task: Task
    data: Any
    split: str
    key: str  # hash of the data


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """A model to be evaluated, and what is known and asked of it."""

    model: LanguageModel
    path: Path
    options: EvalOptions
    record: Mapping[str, Any]  # of its run; empty if it is of none
    reading: Mapping[str, Any]  # keys of [task] that are asked for now
    note: Note

    def corpus(self, cache: Path) -> _Scored:
        """A split of plain text, for a pretrained model."""
        splits, task = self._texts(), self._task()
        split = splits[self._choose({name: split.key for name, split in splits.items()})]
        threads = self.options.threads or torch.get_num_threads()
        shards = tokenize_split(split, self.model.tokenizer, task.layout, cache, threads=threads, note=self.note)
        return _Scored(task, shards, split.name, split.key)

    def labelled(self, name: str) -> _Scored:
        """A split of labelled data, for a model that was fine-tuned for the task of this name."""
        paths, record = self._paths(), self.record
        files: dict[str, list[Path]] = labelled_splits(paths, name)
        if self.options.data:
            splits = read_labelled(files, name, self.note)
        else:
            share, seed = record["data"]["val_share"], record["train"]["seed"]
            splits = load_labelled(paths, name, val_share=share, seed=seed, note=self.note)
        keys = {part: split_key(files.get(part) or files.get("train") or files["all"]) for part in splits}
        split = self._choose(keys)
        values = {**record.get("task", {}), **({"ignore_unknown": True} if self.options.ignore_unknown else {})}
        values |= self.reading
        origin = {f"task.{key}": "--set" for key in self.reading}
        config = build(TaskConfig, {**values, "name": name}, "task", origin, f"{self.path}/config.toml")
        task, examples = labelled_task(self.model, config), splits[split]
        return _Scored(task, task.encode(examples, split, self.note), split, keys[split])  # type: ignore[arg-type]

    def _paths(self) -> list[str]:
        paths = list(self.options.data) or self.record.get("data", {}).get("paths", [])
        if not paths:
            raise DataError(f"{self.path}: not a run, so it names no data; give --data FILE|DIR")
        return paths

    def _texts(self) -> dict[str, Split]:
        """The splits of the text given with --data, or else of the run's own."""
        options, paths = self.options, self._paths()
        if options.data:
            config = DataConfig(paths=paths, documents=options.documents or "files")  # type: ignore[arg-type]
            splits = whole_corpus(config, self.note)
            if "all" in splits and options.split in ("train", "val"):
                return cut_val(splits["all"], config.val_share, self.note)
            return splits
        values = {**self.record["data"], **({"documents": options.documents} if options.documents else {})}
        return load_corpus(build(DataConfig, values, "data", {}, f"{self.path}/config.toml"), self.note)

    def _choose(self, keys: Mapping[str, str]) -> str:
        """The split to score: the one asked for, else test, val, or all that --data gave; `keys`: their hashes."""
        asked, recorded = self.options.split, self.record.get("hashes", {})
        name = next((one for one in ((asked,) if asked else ("test", "all", "val", "train")) if one in keys), None)
        if name is None:
            raise DataError(f"--split {asked}: the data has no such split; it has: {', '.join(sorted(keys))}")
        if asked is None and name in ("val", "train"):
            self.note(f"{self.path}: no test split; the {name} split is scored")
        if not self.options.data and recorded.get(f"data_{name}", keys[name]) != keys[name]:
            self.note(f"warning: the {name} split is not the text that {self.path} was made with")
        return name

    def _task(self) -> CausalLM | MaskedLM:
        """The task that a pretrained model is scored on: that of its run, or what its heads can do."""
        model, record = self.model, self.record
        if isinstance(model, GPT):
            return CausalLM(model.tokenizer)
        if "mlm" not in model.heads:
            raise ModelError(f"{self.path}: has no head that guesses masked tokens, so nothing is scored; see: embed")
        values = record.get("task", {"nsp": "nsp" in model.heads})
        config = build(TaskConfig, values, "task", {}, f"{self.path}/config.toml")
        language = record.get("data", {}).get("language", DataConfig().language)
        return MaskedLM(model.tokenizer, config, model.config.max_seq_len, language=language)


def _asked(options: EvalOptions) -> dict[str, dict[str, Any]]:
    """The keys of [eval] and [task] that flags and overrides give."""
    asked = {"eval": {key: value for key, value in options.flags.items() if value is not None}, "task": {}}
    for text in options.overrides:
        for path, value in parse_override(text).items():
            section, _, key = path.partition(".")
            check_keys({section: {key: value}}, {"eval": EvalConfig, "task": TaskConfig}, f"--set {text}")
            asked[section][key] = value
    return asked


def _check_reading(path: Path, task: str, keys: Iterable[str]) -> None:
    """Raise ConfigError for a key of [task] that would change nothing in how a model is scored."""
    there = [f"task.{key}" for key in READING if key in USED_BY.get(task, ())]
    for key in keys:
        if f"task.{key}" not in there:
            choices = f"of those it has {', '.join(there)}" if there else "it has none of those"
            raise ConfigError(f"--set task.{key}: not a choice of how {path} is scored; {choices}")


def _eval_config(asked: Mapping[str, Any], record: Mapping[str, Any]) -> EvalConfig:
    """The run's [eval], with what was asked for now on top."""
    values = dict(record.get("eval", {}))
    if "window" in asked and "stride" not in asked:
        values.pop("stride", None)  # the run's stride belongs to its own window
    origin = {f"eval.{key}": "config.toml" for key in values} | {f"eval.{key}": f"--{key}" for key in asked}
    return build(EvalConfig, {**values, **asked}, "eval", origin, "eval")
