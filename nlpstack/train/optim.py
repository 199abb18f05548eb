"""Optimizers, which weights they decay, and the learning rate at each step."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from nlpstack.config import read_toml
from nlpstack.model.transformer import Block

# What each optimizer has beside the schedule, with its default.
OPTIONS: Mapping[str, Mapping[str, float]] = read_toml(Path(__file__).with_name("optim.toml"))
_FIRST_ORDER: dict[str, type[Optimizer]] = {one.__name__.lower(): one for one in (SGD, Adagrad, RMSprop, Adam, AdamW)}
_Share = Annotated[float, Field(ge=0, lt=1)]
_ALL_OPTIONS = sorted({option for options in OPTIONS.values() for option in options})


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OptimConfig:
    """How weights are changed. None: the chosen optimizer's default, or nothing where it has no such option."""

    name: Literal["sgd", "adagrad", "rmsprop", "adam", "adamw", "muon", "lbfgs"] = "adamw"  # the optimizer
    lr: NonNegativeFloat | None = None  # the highest of the schedule; of lbfgs: the first length a line search tries
    weight_decay: NonNegativeFloat | None = None  # of matrices; biases and norms are not decayed
    momentum: _Share | None = None  # sgd, rmsprop, muon
    nesterov: bool | None = None  # sgd, muon: the gradient is taken where momentum leads
    beta1: _Share | None = None  # adam, adamw, and what muon leaves to adamw
    beta2: _Share | None = None  # the same: how slowly the mean squared gradient forgets
    alpha: _Share | None = None  # rmsprop: how much of the mean square is kept at a step
    eps: PositiveFloat | None = None  # added to the divisor
    history: int | None = None  # lbfgs: pairs of vectors that are kept
    max_iter: int | None = None  # lbfgs: iterations a step at most
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"  # of the learning rate, after the warm-up
    warmup: NonNegativeFloat = 0.05  # steps of linear rise from 0; below 1: a share of all steps
    min_lr: Annotated[float, Field(ge=0, le=1)] = 0.1  # where the schedule ends, as a share of lr
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # of wsd: the share of steps that go down at the end
    clip: NonNegativeFloat | None = None  # largest norm of the whole gradient; 0: not clipped
    layer_decay: float = 1.0  # each layer's lr is so many times that of the layer above it; embeddings are the lowest

    # Schedules whose past does not depend on the number of steps: such a run may be made longer.
    open_ended: ClassVar[tuple[str, ...]] = ("constant", "wsd")
    # The key whose choice says which other keys there are, and what they are if they are not set.
    options_of: ClassVar[tuple[str, Mapping[str, Mapping[str, Any]]]] = ("name", OPTIONS)

    @field_validator(*_ALL_OPTIONS)
    @classmethod
    def _belongs(cls, value: float | None, info: ValidationInfo) -> float | None:
        name, option = info.data.get("name"), str(info.field_name)
        is_so = value is None or (option in ("weight_decay", "clip") and value == 0)  # whatever the optimizer
        if name is None or is_so or option in OPTIONS[name]:
            return value
        lacking = {"name", *_ALL_OPTIONS} - OPTIONS[name].keys()
        has = [field.name for field in fields(cls) if field.name not in lacking]
        raise ValueError(f"{name} has no {option}; its options are {', '.join(has)}")

    def __post_init__(self) -> None:
        # What depends on the optimizer is filled in, so that a saved config states it.
        for option, default in {"weight_decay": 0.0, "clip": 0.0, **OPTIONS[self.name]}.items():
            if getattr(self, option) is None:
                object.__setattr__(self, option, default)
        if not 0 < self.layer_decay <= 1 or (self.layer_decay < 1 and self.full_batch):
            raise ValueError(f"layer_decay={self.layer_decay} must be above 0 and at most 1; lbfgs has one lr")
        if self.nesterov and not self.momentum:
            raise ValueError(f"nesterov=true goes with momentum above 0, not {self.momentum}")
        if self.full_batch and (min(self.history or 0, self.max_iter or 0) < 1 or not self.lr):
            given = f"history={self.history}, max_iter={self.max_iter}, lr={self.lr}"
            raise ValueError(f"{given}: {self.name} needs history and max_iter of at least 1, and lr above 0")

    @property
    def full_batch(self) -> bool:
        """Whether a step needs the whole training part: lines are searched on a loss that must not be noisy."""
        return self.name == "lbfgs"

    @property
    def evaluations(self) -> int:
        """How often a step computes loss and gradients, about: a line search mostly takes its first trial."""
        return 1 + self.max_iter * 5 // 4 if self.max_iter is not None else 1


def learning_rate(config: OptimConfig, step: int, n_steps: int) -> float:
    """The learning rate of step `step`, from 0.

    Cosine: Loshchilov & Hutter 2017, SGDR, section 3. WSD: Hu et al. 2024, MiniCPM, section 4.2, with a linear decay.
    """
    assert config.lr is not None  # filled in by its class
    warmup = round(config.warmup * n_steps) if config.warmup < 1 else int(config.warmup)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    start = warmup if config.schedule != "wsd" else max(warmup, n_steps - round(config.decay_share * n_steps))
    done = (step - start) / max(1, n_steps - start) if step >= start else 0.0  # 0 to 1 along the way down
    fall = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.lr * (config.min_lr + (1 - config.min_lr) * fall)


def make_optimizers(model: nn.Module, config: OptimConfig) -> list[Optimizer]:
    """Optimizers that together change every weight that trains: one, but two for Muon.

    SGD: Sutskever et al. 2013; Adagrad: Duchi et al. 2011; RMSProp: Tieleman & Hinton 2012; Adam: Kingma & Ba 2015;
    AdamW: Loshchilov & Hutter 2019; Muon: Jordan et al. 2024; L-BFGS: Liu & Nocedal 1989.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "lbfgs":
        assert config.max_iter is not None
        options = {**_of(config, "lr", "max_iter"), "history_size": config.history, "line_search_fn": "strong_wolfe"}
        # Torch's own limit of 1.25 evaluations an iteration can end every search at its first trial, and nothing moves.
        return [torch.optim.LBFGS(trained, **options, max_eval=5 * config.max_iter)]
    if config.name != "muon":
        return [_first_order(config.name, _by_share(model, config), config)]
    # Muon is for hidden matrices; embeddings and the unembedding do better with AdamW (Jordan et al. 2024).
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    inside = {id(parameter) for block in blocks for parameter in block.parameters() if parameter.dim() == 2}
    rest = [parameter for parameter in trained if id(parameter) not in inside]
    muon = torch.optim.Muon(
        [parameter for parameter in trained if id(parameter) in inside],
        **_of(config, "lr", "weight_decay", "momentum", "nesterov"),
        adjust_lr_fn="match_rms_adamw",  # steps as large as AdamW's, so that one lr serves both (Liu et al. 2025, 2.2)
    )
    return [muon, _first_order("adamw", {1.0: rest}, config)] if rest else [muon]


def _by_share(model: nn.Module, config: OptimConfig) -> dict[float, list[nn.Parameter]]:
    """Weights by the share of the learning rate that their layer gets (Howard & Ruder 2018, ULMFiT, section 3.2)."""
    depth = sum(isinstance(module, Block) for module in model.modules()) + 1  # of what stands on the blocks
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        number = re.search(r"\.blocks\.(\d+)\.", name)
        embedding = re.search(r"(tokens|positions|segments)\.weight$", name)
        height = int(number[1]) + 1 if number else 0 if embedding else depth
        if parameter.requires_grad:
            found.setdefault(config.layer_decay ** (depth - height), []).append(parameter)
    return found


def _first_order(name: str, by_share: Mapping[float, list[nn.Parameter]], config: OptimConfig) -> Optimizer:
    """An optimizer that needs one gradient a step; only matrices are decayed."""
    # AdamW shrinks the weights themselves (decoupled decay); in all others the decay is added to the gradient (L2).
    groups: list[dict[str, Any]] = [
        {"params": chosen, "weight_decay": decay, "lr_share": share}
        for share, parameters in by_share.items()
        for matrix, decay in ((True, config.weight_decay), (False, 0.0))
        if (chosen := [parameter for parameter in parameters if matrix == (parameter.dim() >= 2)])
    ]
    kinds = {parameter.device.type for parameters in by_share.values() for parameter in parameters}
    options = _of(config, *(OPTIONS[name].keys() - {"weight_decay", "clip", "beta1", "beta2"}))
    if "beta1" in OPTIONS[name]:
        options["betas"] = config.beta1, config.beta2
    if name != "rmsprop":
        options["fused"] = kinds <= ({"cpu"} if name == "adagrad" else {"cpu", "cuda"})
    return _FIRST_ORDER[name](groups, **options)


def line_search_step(optimizer: Optimizer, first_loss: float, evaluate: Callable[[], float]) -> bool:
    """Do a step of L-BFGS from weights whose loss is `first_loss` and whose gradients stand in them.

    `evaluate` gives loss and gradients of changed weights. Weights that are not finite are put back: False is returned.
    """
    parameters = optimizer.param_groups[0]["params"]
    before = [parameter.detach().clone() for parameter in parameters]
    known = [first_loss]

    def closure() -> float:
        loss = known.pop() if known else evaluate()
        return loss if math.isfinite(loss) else math.inf  # too long a step; a NaN could pass for the best of them

    optimizer.step(closure)
    if not (finite := all(bool(torch.isfinite(parameter).all()) for parameter in parameters)):
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    if all(map(torch.equal, parameters, before)):
        optimizer.state.clear()  # the same history would lead along the same line again
    return finite


def _of(config: OptimConfig, *options: str) -> dict[str, Any]:
    return {option: getattr(config, option) for option in options}
