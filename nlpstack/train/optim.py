"""Optimizers, which weights they decay, and the learning rate at each step."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import nn


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OptimConfig:
    """How weights are changed."""

    name: Literal["adamw"] = "adamw"
    lr: float = 1e-3  # the highest of the schedule
    weight_decay: float = 0.1  # of matrices; biases and norms are not decayed
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup: float = 0.05  # steps of linear rise from 0; below 1: a share of all steps
    min_lr: float = 0.1  # where the schedule ends, as a share of lr
    decay_share: float = 0.2  # of wsd: the share of steps that go down at the end
    clip: float = 1.0  # largest norm of the whole gradient; 0: not clipped

    # Schedules whose past does not depend on the number of steps: such a run may be made longer.
    open_ended: ClassVar[tuple[str, ...]] = ("constant", "wsd")

    @model_validator(mode="after")
    def _check(self) -> "OptimConfig":
        for name in ("lr", "weight_decay", "warmup", "min_lr", "clip"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise ValueError("beta1 and beta2 must be at least 0 and below 1, eps above 0")
        if self.min_lr > 1 or not 0 < self.decay_share <= 1:
            raise ValueError("min_lr must be at most 1, decay_share above 0 and at most 1")
        return self


def warmup_steps(config: OptimConfig, n_steps: int) -> int:
    """Steps of warm-up of a run of `n_steps`."""
    return round(config.warmup * n_steps) if config.warmup < 1 else int(config.warmup)


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """The learning rate of step `step`, from 0.

    Cosine: Loshchilov & Hutter 2017, SGDR, section 3, one cycle. WSD (warm-up, stable, decay): Hu et al. 2024, MiniCPM,
    section 4.2, with a linear decay.
    """
    warmup = warmup_steps(config, n_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    start = warmup if config.schedule != "wsd" else max(warmup, n_steps - round(config.decay_share * n_steps))
    done = (step - start) / max(1, n_steps - start) if step >= start else 0.0  # 0 to 1 along the way down
    fall = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr * (config.min_lr + (1 - config.min_lr) * fall)


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) over the weights that train; only matrices are decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )
