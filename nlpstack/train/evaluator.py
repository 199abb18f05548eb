"""The one place where a model meets a metric: validation during training and `nlpstack eval` both call it."""

import torch
from torch import nn

from nlpstack.decode.loop import evaluating
from nlpstack.metrics import Score
from nlpstack.tasks import EvalConfig, Task
from nlpstack.train.runtime import autocast


def evaluate(
    model: nn.Module, task: Task, data: object, config: EvalConfig, *, device: torch.device, dtype: str
) -> dict[str, Score]:
    """Every score of a model on a task's data; the model is left in the mode it was in."""
    signature = task.signature(model, config, dtype)  # first: it refuses what cannot be scored
    metric = task.metric()
    with evaluating(model), torch.inference_mode(), autocast(device, dtype):
        for batch in task.eval_batches(model, data, config):
            task.score(model, batch.to(device), metric)
    return metric.compute(signature, n_resamples=config.resamples, seed=config.seed)
