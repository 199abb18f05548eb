"""What `nlpstack eval` does: models, or what any system put out, in; scores with intervals and signatures out."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nlpstack.baselines import labelled_baselines, language_baselines, masked_baselines
from nlpstack.config import build
from nlpstack.data import labelled
from nlpstack.data.corpus import Split, cut_val, load_corpus, whole_corpus
from nlpstack.data.readers import SUFFIXES_OF, DataConfig, Note, corpus_suffix, find_splits
from nlpstack.data.shards import TokenShards
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.files import sha256_file
from nlpstack.hub import load_model, weights_hash
from nlpstack.metrics import Metric, compute
from nlpstack.metrics.classification import LabelScores
from nlpstack.metrics.entities import EntityScores
from nlpstack.metrics.text import TextScores
from nlpstack.model import BERT, GPT, LanguageModel
from nlpstack.results import EvalOptions, asked_for, chosen, eval_config, make_result
from nlpstack.start import finished_runs, frame
from nlpstack.tasks import CausalLM, EvalConfig, MaskedLM, Similarity, Task, TaskConfig, labelled_task, labelled_task_of
from nlpstack.tasks.corpus import tokenize_split
from nlpstack.tasks.generation import sentences
from nlpstack.train import runtime
from nlpstack.train.run import USED_BY, Reporter, read_record, read_results, write_results
from nlpstack.train.trainer import measure

__all__ = ["EvalOptions", "evaluate"]

RUNS = Path("runs")
READING = ("truncate", "ignore_unknown", "threshold", "constrained")  # keys of [task] that say how a model is read


def evaluate(
    models: Sequence[str | Path] = (), options: EvalOptions | None = None, *, reporter: Reporter | None = None
) -> list[dict[str, Any]]:
    """Scores of models, by default of every finished run under runs/: one each; a run's results.json is rewritten."""
    options, reporter = options or EvalOptions(), reporter or Reporter()
    options, asked = asked_for(options)
    only = asked["score"].task
    if not (paths := [Path(model) for model in models] or finished_runs(RUNS, only)):
        what, cure = (f" of {only}", "name one") if only else ("", "make one with: nlpstack pretrain --arch gpt")
        raise ConfigError(f"no model given and no finished run{what} under {RUNS}/; {cure}")
    results = []
    with runtime.session(threads=options.threads):
        for path in paths:
            results.append(_evaluate_one(path, options, asked, reporter))
            if (path / "config.toml").exists() and not runtime.rank():
                write_results(path, {**read_results(path), "results": results[-1:]})
    return results


def _evaluate_one(path: Path, options: EvalOptions, asked: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    device = runtime.resolve_device(options.device)
    dtype = runtime.resolve_dtype(options.dtype, device)
    model = load_model(path, device=device, base=options.base, note=reporter.say)
    frame(model, str(path))  # it has a tokenizer, and this its marks
    record = read_record(path)
    config = eval_config(asked["eval"], record)
    with ExitStack() as stack:
        cache = path.parent / ".cache" if record else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scored = Subject(model, path, options, asked["task"], record, cache, reporter.say).scored()
        task, data, started = scored.task, scored.data, time.perf_counter()
        signature = task.signature(model, config, dtype)
        total = sum(1 for _ in task.eval_batches(model, data, config))
        tick = partial(reporter.progress, total=total, text=f"batches of {path}")
        with closing(reporter):
            metric = measure(model, task, data, config, dtype=dtype, tick=tick)
        seconds = time.perf_counter() - started
        told = make_result(metric, task.name, signature, config, options, texts=scored.text)
        baselines = scored.baselines(config) if options.baselines else {}
    n = f"{len(metric.told):,} examples" if metric.told else f"{told['metrics'].get('loss', {'n': 0})['n']:,} tokens"
    reporter.say(f"{path}: {n} scored in {seconds:.1f} s")
    if options.examples and not metric.told:
        reporter.say(f"{path}: --examples is of labelled data, so nothing of this text is shown")
    drawing = {"n_resamples": config.resamples, "seed": config.seed}
    guesses = {name: chosen(compute(guess, signature, **drawing)) for name, guess in baselines.items()}
    about = {"model": str(path), "task": task.name, "data": scored.subject.paths(), "split": scored.split}
    hashes = {"data": scored.key, "tokenizer": model.tokenizer.hash, "weights": weights_hash(path)}
    return {**about, **told, **({"baselines": guesses} if guesses else {}), "hashes": hashes}


class Subject(NamedTuple):
    """A model to be evaluated on a split of its data."""

    model: LanguageModel
    path: Path
    options: EvalOptions
    reading: Mapping[str, Any]  # keys of [task] that are asked for now
    record: Mapping[str, Any]  # of its run; empty if it is of none
    cache: Path  # for token shards
    note: Note

    def scored(self) -> "Scored":
        """The task and the split to score; raises NlpstackError where they do not fit the model or are not there."""
        own, asked, model = labelled_task_of(self.model, self.record), self.options.task, self.model
        there = [f"task.{key}" for key in READING if key in USED_BY.get(asked or own, ())]
        for key in self.reading:
            if f"task.{key}" not in there:
                choices = f"of those it has {', '.join(there)}" if there else "it has none of those"
                raise ConfigError(f"--set task.{key}: not a choice of how {self.path} is scored; {choices}")
        plain = "causal_lm" if isinstance(model, GPT) else "masked_lm"
        fitting = [own or plain, "similarity", *(["generation"] if isinstance(model, GPT) and not own else [])]
        if asked not in (None, *fitting):
            raise ConfigError(f"--task {asked}: does not fit {self.path}; it can be scored for {', '.join(fitting)}")
        name = asked or own or plain
        return self._corpus() if name == plain else self._labelled(name)

    def _corpus(self) -> "Scored":
        """A split of plain text, for a pretrained model: of what --data gives, or else of the run's own."""
        wanted, paths = self.options, self.paths()
        if wanted.data:
            config = DataConfig(paths=paths, documents=wanted.documents or "files")  # type: ignore[arg-type]
            splits = whole_corpus(config, self.note)
            if "all" in splits and wanted.split in ("train", "val"):
                splits = cut_val(splits["all"], config.val_share, self.note)
        else:
            splits = self._recorded()
        task = self._language_task()
        split = splits[self._choose({name: split.key for name, split in splits.items()})]
        train = self._train(splits, self._recorded, is_own=True)
        return Scored(self, task, self.tokens(split, task), split.name, split.key, train)

    def tokens(self, split: Split, task: Task) -> TokenShards:
        """The token shards of a split, as the task reads it."""
        return tokenize_split(split, self.model.tokenizer, task.layout, self.cache, note=self.note)

    def _labelled(self, name: str) -> "Scored":
        paths, record, kind = self.paths(), self.record, "classification" if name == "similarity" else name
        files: dict[str, list[Path]] = find_splits(paths, kind)

        def recorded() -> dict[str, Any]:
            share, seed = record["data"]["val_share"], record["train"]["seed"]
            return labelled.load_labelled(record["data"]["paths"], kind, val_share=share, seed=seed, note=self.note)

        splits: dict[str, Any] = labelled.read_labelled(files, kind, self.note) if self.options.data else recorded()
        train = self._train(splits, recorded, is_own=record.get("task", {}).get("name") == name)
        keys = {part: labelled.split_key(files.get(part) or files.get("train") or files["all"]) for part in splits}
        split = self._choose(keys)
        ignoring = {"ignore_unknown": True} if self.options.ignore_unknown else {}
        values = {**record.get("task", {}), **ignoring, **self.reading, "name": kind}
        origin = {f"task.{key}": "--set" for key in self.reading}
        config = build(TaskConfig, values, "task", origin, f"{self.path}/config.toml")
        task: Any = Similarity(self.model, config) if name == "similarity" else labelled_task(self.model, config)
        return Scored(self, task, task.encode(splits[split], split, self.note), split, keys[split], train)

    def _train(self, splits: Mapping[str, Any], recorded: Callable[[], dict[str, Any]], *, is_own: bool) -> Any:
        """What guesses learn from: the run's training split if it is of this task and there, else that of `splits`."""
        if is_own and self.record and self.options.data and self.options.baselines is not False:
            try:
                splits = {**splits, **recorded()}
            except DataError as error:
                self.note(f"{self.path}: its training data is not there ({error})")
        return splits.get("train")

    def paths(self) -> list[str]:
        """The files, folders or samples that hold the data; DataError if none are named."""
        if not (paths := list(self.options.data) or self.record.get("data", {}).get("paths", [])):
            raise DataError(f"{self.path}: not a run, so it names no data; give --data FILE|DIR")
        return paths

    def _recorded(self) -> dict[str, Split]:
        values = {**self.record["data"], **({"documents": self.options.documents} if self.options.documents else {})}
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

    def _language_task(self) -> CausalLM | MaskedLM:
        """The task that a pretrained model is scored on: that of its run, or what its heads can do."""
        model, record = self.model, self.record
        if isinstance(model, GPT):
            return CausalLM(model.tokenizer)
        if not isinstance(model, BERT) or "mlm" not in model.heads:
            raise ModelError(f"{self.path}: has no head that guesses masked tokens, so nothing is scored; see: embed")
        values = record.get("task", {"nsp": "nsp" in model.heads})
        config = build(TaskConfig, values, "task", {}, f"{self.path}/config.toml")
        language = record.get("data", {}).get("language", DataConfig().language)
        return MaskedLM(model.tokenizer, config, model.config.max_seq_len, language=language)


class Scored(NamedTuple):
    """A task with the data that is scored, where that is from, and what guesses may learn from."""

    subject: Subject
    task: Any
    data: Any
    split: str
    key: str  # hash of the data
    train: Any  # the training split, of examples or of text; None if there is none

    def text(self, number: int) -> str:
        """The input of an example, to be looked at."""
        example = self.data.examples[number]
        between = " | " if isinstance(example, labelled.TextExample) else " "
        return between.join(filter(None, labelled.inputs_of(example)))

    def baselines(self, config: EvalConfig) -> dict[str, Metric]:
        """What guessing gets on the same data; nothing where there is no training part to learn from."""
        task, subject = self.task, self.subject
        if self.train is None and not isinstance(task, Similarity):
            subject.note(f"{subject.path}: no training part is at hand, so nothing is guessed beside the model")
            return {}
        if not isinstance(task, CausalLM | MaskedLM):
            return labelled_baselines(task, self.train, self.data.examples)
        tokens, batches = subject.tokens(self.train, task), task.eval_batches(subject.model, self.data, config)
        if isinstance(task, CausalLM):
            return language_baselines(task, tokens, batches)
        return masked_baselines(tokens, batches)


def score_outputs(
    predictions: str | Path, references: str | Path, task: str, options: EvalOptions, note: Note
) -> dict[str, Any]:
    """The result of predictions against references, line by line: texts, labels or numbers, or CoNLL sentences.

    Both are text, a line an example, or JSON lines with the task's fields. DataError where they do not go together.
    """
    if task not in SUFFIXES_OF:
        raise ConfigError(f"--task {task}: files are scored for one of {', '.join(SUFFIXES_OF)}")
    options, asked = asked_for(options)
    if asked["score"].task not in ("", task):
        raise ConfigError(f"--recipe {options.recipe}: is of {asked['score'].task}, and --task {task} is asked for")
    if asked["task"]:
        raise ConfigError(f"--set task.{next(iter(asked['task']))}: says how a model is read, and there is none")
    config = eval_config(asked["eval"], {})
    paths = Path(predictions), Path(references)
    for flag, path in zip(("--predictions", "--references"), paths, strict=True):
        if not path.is_file():
            raise DataError(f"{flag} {path}: no such file")
    read = {"classification": _labels, "ner": _tags, "generation": _texts}[task]
    found, gold = read(paths[0], note, False), read(paths[1], note, True)
    if len(found) != len(gold):
        raise DataError(f"{paths[0]}: {len(found):,} predictions for the {len(gold):,} references of {paths[1]}")
    if not gold:
        raise DataError(f"{paths[1]}: is empty; give references to score against")
    metric: Any = TextScores(config.texts, sentences) if task == "generation" else EntityScores()
    if task == "classification":
        metric, found, gold = _label_scores(found, gold)
    for number, (one, other) in enumerate(zip(found, gold, strict=True)):
        if task == "ner" and len(one) != len(other):
            raise DataError(f"{paths[0]}: sentence {number + 1:,} has {len(one)} tags for {len(other)} words")
        try:
            metric.update(one, other, number=number)
        except DataError as error:  # a tag that is none
            raise DataError(f"{paths[0]} and {paths[1]}: sentence {number + 1:,}: {error}") from error
    hashes = {"data": sha256_file(paths[1]), "predictions": sha256_file(paths[0])}
    about = {"model": str(predictions), "task": task, "data": [str(references)], "split": "file"}
    return {**about, **make_result(metric, task, "outputs:file", config, options), "hashes": hashes}


def _label_scores(found: Sequence[Any], gold: Sequence[Any]) -> tuple[LabelScores, list[Any], list[Any]]:
    both = [*found, *gold]
    if len(kinds := set(map(type, both))) > 1:
        raise DataError("predictions and references have labels of different kinds; give classes, lists or numbers")
    if kinds == {float}:
        return LabelScores(), list(found), list(gold)
    if kinds == {tuple}:
        names = sorted({name for one in both for name in one})
        told, true = ([[name in one for name in names] for one in part] for part in (found, gold))
        return LabelScores(names, single=False), told, true
    ids = {name: number for number, name in enumerate(sorted(set(both)))}
    return LabelScores(list(ids)), [ids[one] for one in found], [ids[one] for one in gold]


def _texts(path: Path, note: Note, is_gold: bool) -> list[Any]:
    names = ("references", "completion", "target", "text") if is_gold else ("text", "completion", "target")
    found: list[Any] = []
    for where, row in labelled.table_rows(path, note, lines="text"):
        name = next((one for one in names if one in row), "completion" if is_gold else "text")
        if is_gold and name == "text" and not str(row[name]).strip():
            raise DataError(f"{where}: the reference is empty; there is nothing to compare with")
        if is_gold:
            texts = labelled.text_field(where, row, name, many=name == "references")
            found.append(texts if name == "references" else (texts,))
        elif isinstance(row.get(name), str):
            found.append(row[name])
        else:
            raise DataError(f"{where}: '{name}' must be a text")
    return found


def _labels(path: Path, note: Note, is_gold: bool) -> list[Any]:
    if corpus_suffix(path, [".tsv", ".csv"]):
        return [example.label for example in labelled.read_texts(path, note)]
    is_json, found = corpus_suffix(path, [".jsonl"]) is not None, labelled.table_rows(path, note, lines="label")
    rows = [(where, row if is_json else {"label": row["label"].strip()}) for where, row in found]
    name = "score" if rows and rows[0][1].keys() & {"label", "score"} == {"score"} else "label"
    labels = labelled.labels_in(rows, name, is_json=is_json)
    if float in map(type, labels):
        note(f"{path}: numbers, so this is regression")
    return labels


def _tags(path: Path, note: Note, is_gold: bool) -> list[Any]:
    return [tags for _, _, tags in labelled.tagged_rows(path, note, labelled=True)]
