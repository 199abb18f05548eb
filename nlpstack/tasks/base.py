"""What a task is, and how it is evaluated."""

from collections.abc import Iterator
from typing import Any, Protocol

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nlpstack.data.batch import Batch
from nlpstack.metrics import Score


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EvalConfig:
    """How a model is scored; every value that changes a score is in its signature."""

    window: int = 0  # input tokens at a time; 0: the model's max_seq_len
    stride: int = 0  # tokens from one window's start to the next; 0: the window
    max_tokens: int = 0  # score about the first so many tokens; 0: all
    batch_tokens: int = 16384  # tokens scored at a time; changes speed and memory, not scores
    resamples: int = 1000  # of the bootstrap
    seed: int = 0  # of the bootstrap

    @model_validator(mode="after")
    def _check(self) -> "EvalConfig":
        if min(self.window, self.stride, self.max_tokens, self.resamples, self.seed) < 0 or self.batch_tokens < 1:
            raise ValueError("values must not be negative, and batch_tokens must be at least 1")
        if self.window and self.stride > self.window:
            raise ValueError(
                f"stride={self.stride} is more than window={self.window}: tokens between would go unscored"
            )
        return self


class Metric(Protocol):
    """Predictions and references in, named numbers out."""

    def compute(self, signature: str, *, n_resamples: int, seed: int) -> dict[str, Score]:
        """Every score of what was counted."""


class Task(Protocol):
    """The glue between text, a model, its loss and its scores."""

    name: str
    target: str  # the score that training watches
    lower_is_better: bool
    loss_chunk: int  # rows whose logits are held at a time

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Loss terms, each summed over its targets; their counts are the batch's `n_targets`."""

    def eval_batches(self, model: nn.Module, data: Any, config: EvalConfig) -> Iterator[Any]:
        """What there is to score, in batches with a `to(device)`."""

    def metric(self) -> Metric:
        """An empty metric for `score` to fill."""

    def score(self, model: nn.Module, batch: Any, metric: Any) -> None:
        """Run the model on a batch and count the outcome."""

    def signature(self, model: nn.Module, config: EvalConfig, dtype: str) -> str:
        """How the scores are made, in the form name:value|name:value."""
