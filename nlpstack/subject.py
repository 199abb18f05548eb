"""A model that is to be evaluated, and the data it is evaluated on: what `nlpstack eval` settles before it scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlpstack.baselines import labelled_baselines, language_baselines, masked_baselines
from nlpstack.config import build
from nlpstack.data.corpus import Split, cut_val, load_corpus, whole_corpus
from nlpstack.data.labelled import TextExample, inputs_of, load_labelled, read_labelled, split_key
from nlpstack.data.readers import DataConfig, Note, find_splits
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.metrics import Metric
from nlpstack.model import BERT, GPT, LanguageModel
from nlpstack.results import EvalOptions
from nlpstack.tasks import CausalLM, EvalConfig, MaskedLM, Similarity, Task, TaskConfig, labelled_task, labelled_task_of
from nlpstack.tasks.corpus import tokenize_split


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to be evaluated on a split of its data."""

    model: LanguageModel
    path: Path
    options: EvalOptions
    reading: Mapping[str, Any]  # keys of [task] that say how the model is read
    record: Mapping[str, Any]  # of its run; empty if it is of none
    cache: Path  # for token shards
    note: Note

    def scored(self) -> "Scored":
        """The task and the split to score; raises NlpstackError where they do not fit the model or are not there."""
        own, asked, model = labelled_task_of(self.model, self.record), self.options.task, self.model
        plain = "causal_lm" if isinstance(model, GPT) else "masked_lm"
        fitting = [own or plain, "similarity", *(["generation"] if isinstance(model, GPT) and not own else [])]
        if asked not in (None, *fitting):
            raise ConfigError(f"--task {asked}: does not fit {self.path}; it can be scored for {', '.join(fitting)}")
        name = asked or own or plain
        return self._corpus() if name == plain else self._labelled(name)

    def _corpus(self) -> "Scored":
        """A split of plain text, for a pretrained model."""
        splits, task = self._texts(), self._language_task()
        split = splits[self._choose({name: split.key for name, split in splits.items()})]
        own = self._learned_from(self._recorded) if self.options.data else splits
        train = own.get("train", splits.get("train"))
        return Scored(self, task, self._tokens(split, task), split.name, split.key, train)

    def _tokens(self, split: Split, task: Task) -> Any:
        return tokenize_split(split, self.model.tokenizer, task.layout, self.cache, note=self.note)

    def _labelled(self, name: str) -> "Scored":
        """A split of labelled data."""
        paths, record, kind = self._paths(), self.record, "classification" if name == "similarity" else name
        files: dict[str, list[Path]] = find_splits(paths, kind)

        def recorded() -> dict[str, Any]:
            share, seed = record["data"]["val_share"], record["train"]["seed"]
            return load_labelled(record["data"]["paths"], kind, val_share=share, seed=seed, note=self.note)

        splits: dict[str, Any] = read_labelled(files, kind, self.note) if self.options.data else recorded()
        is_own = self.options.data and record.get("task", {}).get("name") == name
        own = self._learned_from(recorded) if is_own else splits
        keys = {part: split_key(files.get(part) or files.get("train") or files["all"]) for part in splits}
        split = self._choose(keys)
        values = {**record.get("task", {}), **self.reading, "name": kind}
        origin = {f"task.{key}": "--set" for key in self.reading}
        config = build(TaskConfig, values, "task", origin, f"{self.path}/config.toml")
        task: Any = Similarity(self.model, config) if name == "similarity" else labelled_task(self.model, config)
        train = own.get("train", splits.get("train"))
        return Scored(self, task, task.encode(splits[split], split, self.note), split, keys[split], train)

    def _learned_from(self, recorded: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The splits that the run was trained on, for guesses to learn from; nothing where they are gone."""
        if not self.record or self.options.baselines is False:
            return {}
        try:
            return recorded()
        except DataError as error:
            self.note(f"{self.path}: its training data is not there ({error})")
            return {}

    def _paths(self) -> list[str]:
        paths = list(self.options.data) or self.record.get("data", {}).get("paths", [])
        if not paths:
            raise DataError(f"{self.path}: not a run, so it names no data; give --data FILE|DIR")
        return paths

    def _texts(self) -> dict[str, Split]:
        """The splits of the text given with --data, or else of the run's own."""
        wanted, paths = self.options, self._paths()
        if not wanted.data:
            return self._recorded()
        config = DataConfig(paths=paths, documents=wanted.documents or "files")  # type: ignore[arg-type]
        splits = whole_corpus(config, self.note)
        if "all" in splits and wanted.split in ("train", "val"):
            return cut_val(splits["all"], config.val_share, self.note)
        return splits

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


@dataclass(frozen=True)
class Scored:
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
        return (" | " if isinstance(example, TextExample) else " ").join(filter(None, inputs_of(example)))

    def baselines(self, config: EvalConfig) -> dict[str, Metric]:
        """What guessing gets on the same data; nothing where there is no training part to learn from."""
        task, subject = self.task, self.subject
        if self.train is None and not isinstance(task, Similarity):
            subject.note(f"{subject.path}: no training part is at hand, so nothing is guessed beside the model")
            return {}
        if not isinstance(task, CausalLM | MaskedLM):
            return labelled_baselines(task, self.train, self.data.examples)
        tokens, batches = subject._tokens(self.train, task), task.eval_batches(subject.model, self.data, config)
        if isinstance(task, CausalLM):
            return language_baselines(task, tokens, batches)  # type: ignore[arg-type]
        return masked_baselines(tokens, (scored.batch for scored in batches if not scored.alone))  # type: ignore
