"""The one place where a model meets a metric: validation during training and `nlpstack eval` both call it."""

from collections.abc import Callable

import torch
from torch import nn

from nlpstack.decode.loop import evaluating
from nlpstack.metrics import Metric, Score, compute
from nlpstack.tasks import EvalConfig, Task
from nlpstack.train.runtime import autocast

Tick = Callable[[int], None]


def measure(
    model: nn.Module, task: Task, data: object, config: EvalConfig, *, dtype: str, tick: Tick = lambda _: None
) -> Metric:
    """The metric of a task, filled with all of its data, the model left in its mode; `tick` gets the batches done."""
    metric, device = task.metric(config), next(model.parameters()).device
    with evaluating(model), torch.inference_mode(), autocast(device, dtype):
        for done, batch in enumerate(task.eval_batches(model, data, config), 1):
            task.score(model, batch.to(device), metric)
            tick(done)
    return metric


def evaluate(model: nn.Module, task: Task, data: object, config: EvalConfig, *, dtype: str) -> dict[str, Score]:
    """Every score of a model on a task's data."""
    signature = task.signature(model, config, dtype)  # first: it refuses what cannot be scored
    metric = measure(model, task, data, config, dtype=dtype)
    return compute(metric, signature, n_resamples=config.resamples, seed=config.seed)
