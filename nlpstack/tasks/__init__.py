"""The tasks: each says how a file becomes a batch, which loss goes with it and which scores."""

from nlpstack.tasks.base import EvalConfig, Task
from nlpstack.tasks.causal_lm import CausalLM

TASKS: dict[str, type[Task]] = {
    "causal_lm": CausalLM,
}

__all__ = ["TASKS", "CausalLM", "EvalConfig", "Task"]
