"""The tasks: each says how a file becomes a batch, which loss goes with it and which scores."""

from nlpstack.tasks.base import DocumentLayout, EvalConfig, Task, TaskConfig
from nlpstack.tasks.causal_lm import CausalLM
from nlpstack.tasks.classification import Classification
from nlpstack.tasks.generation import Generation
from nlpstack.tasks.masked_lm import MaskedLM
from nlpstack.tasks.ner import NER

TASKS: dict[str, type[Task]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
    "classification": Classification,
    "ner": NER,
    "generation": Generation,
}

__all__ = [
    "NER",
    "TASKS",
    "CausalLM",
    "Classification",
    "DocumentLayout",
    "EvalConfig",
    "Generation",
    "MaskedLM",
    "Task",
    "TaskConfig",
]
