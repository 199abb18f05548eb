"""Which labelled task a model does, and that task made for it."""

from collections.abc import Mapping
from typing import Any

from nlpstack.model import BERT, GPT, LanguageModel
from nlpstack.tasks.base import TaskConfig
from nlpstack.tasks.classification import Classification
from nlpstack.tasks.generation import Generation
from nlpstack.tasks.ner import NER

LabelledTask = Classification | NER | Generation


def labelled_task_of(model: LanguageModel, record: Mapping[str, Any]) -> str:
    """The name of the task that a model was fine-tuned for, by its run's record or its head; empty if for none."""
    if isinstance(model, BERT):
        return "classification" if "sequence" in model.heads else "ner" if "tokens" in model.heads else ""
    return str(record.get("task", {}).get("name", ""))


def labelled_task(model: LanguageModel, config: TaskConfig) -> LabelledTask:
    """The task `config.name` with the model's tokenizer, shape and labels."""
    if isinstance(model, GPT):
        return Generation(model.tokenizer, model.config, config)
    assert model.labels is not None
    kind = NER if config.name == "ner" else Classification
    return kind(model.tokenizer, model.config, model.labels, config)
