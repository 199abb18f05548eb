"""The tasks: each says how a file becomes a batch, which loss goes with it and which scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from nlpstack.data.readers import Note, mute
from nlpstack.model import BERT, LanguageModel
from nlpstack.tasks.base import DocumentLayout, EvalConfig, ScoreConfig, Task, TaskConfig
from nlpstack.tasks.causal_lm import CausalLM
from nlpstack.tasks.classification import Classification, Similarity, labels_of
from nlpstack.tasks.generation import Generation
from nlpstack.tasks.masked_lm import MaskedLM
from nlpstack.tasks.ner import NER, tags_of

__all__ = ["NER", "CausalLM", "Classification", "Generation", "LabelledTask", "MaskedLM", "Similarity", "Task"]
__all__ += ["DocumentLayout", "EvalConfig", "ScoreConfig", "TaskConfig", "labelled_task", "labelled_task_of"]

LabelledTask = Classification | NER | Generation  # those that a model is fine-tuned for


def labelled_task_of(model: LanguageModel, record: Mapping[str, Any]) -> str:
    """The name of the task that a model was fine-tuned for, by its run's record or its head; empty if for none."""
    if isinstance(model, BERT):
        return "classification" if "sequence" in model.heads else "ner" if "tokens" in model.heads else ""
    return str(record.get("task", {}).get("name", ""))


def labelled_task(model: Any, config: TaskConfig, examples: Sequence[Any] = (), note: Note = mute) -> LabelledTask:
    """The task `config.name` with the model's tokenizer and shape, and the labels of training examples or its own."""
    if config.name == "generation":
        return Generation(model.tokenizer, model.config, config)
    kind, labels = (NER, tags_of) if config.name == "ner" else (Classification, labels_of)
    return kind(model.tokenizer, model.config, labels(examples, note) if examples else model.labels, config)
