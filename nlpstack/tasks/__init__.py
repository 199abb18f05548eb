"""The tasks: each says how a file becomes a batch, which loss goes with it and which scores."""

from nlpstack.tasks.base import DocumentLayout, EvalConfig, Task, TaskConfig
from nlpstack.tasks.causal_lm import CausalLM
from nlpstack.tasks.masked_lm import MaskedLM

TASKS: dict[str, type[Task]] = {
    "causal_lm": CausalLM,
    "masked_lm": MaskedLM,
}

__all__ = ["TASKS", "CausalLM", "DocumentLayout", "EvalConfig", "MaskedLM", "Task", "TaskConfig"]
