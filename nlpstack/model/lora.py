"""Low-rank adapters: a frozen layer plus the trained product of two thin matrices (Hu et al. 2021, section 4.1)."""

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from nlpstack.errors import ConfigError
from nlpstack.model.kernels import drop


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LoRAConfig:
    """Which layers get an adapter, and of what kind."""

    rank: NonNegativeInt = 0  # of each product; 0: no adapters, all weights train
    alpha: PositiveFloat = 16.0  # the product is scaled by alpha / rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of what an adapter reads
    # names of linear layers of the core
    targets: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["q_proj", "v_proj"])
    rslora: bool = False  # scaled by alpha / sqrt(rank) instead (Kalajdzievski 2023)
    dora: bool = False  # also the length of each row is trained (Liu et al. 2024, DoRA)
    pooler: bool = False  # the layer between [CLS] and a classifier trains too, all of it, though it is not fresh


class AdapterSize(NamedTuple):
    """Rank and alpha of one adapter."""

    rank: int
    alpha: float


class LoRALinear(nn.Module):
    """A linear layer with an adapter: Wx + b + sBAx; with DoRA each row of W + sBA is given the length m.

    B begins as zeros and m as the lengths of W's rows, so the layer begins as what it wraps.
    """

    def __init__(self, base: nn.Linear, config: LoRAConfig, size: AdapterSize) -> None:
        super().__init__()
        self.base, self.size = base, size
        self.scaling = size.alpha / (math.sqrt(size.rank) if config.rslora else size.rank)
        self.dropout, self.rslora = config.dropout, config.rslora
        weight = base.weight
        self.lora_a = nn.Parameter(weight.new_empty(size.rank, base.in_features))
        self.lora_b = nn.Parameter(weight.new_zeros(base.out_features, size.rank))
        self.magnitude = nn.Parameter(weight.new_empty(base.out_features)) if config.dora else None
        base.requires_grad_(False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Set what trains: A uniform within 1 / sqrt(in), as peft begins it; B zero."""
        bound = 1 / math.sqrt(self.base.in_features)
        self.lora_a.copy_(torch.empty(self.lora_a.shape).uniform_(-bound, bound, generator=generator))
        self.lora_b.zero_()
        if self.magnitude is not None:
            self.magnitude.copy_(self.base.weight.norm(dim=1))

    def merged(self) -> Tensor:
        """The matrix (out, in) of one plain layer that does the same, without dropout."""
        weight: Tensor = self.base.weight + self.scaling * (self.lora_b @ self.lora_a)
        return weight if self.magnitude is None else self._stretch(weight)[:, None] * weight

    def _stretch(self, weight: Tensor) -> Tensor:
        """Row by row, what makes lengths the trained ones; no gradient flows through the own lengths (DoRA, 4.3)."""
        assert self.magnitude is not None
        lengths: Tensor = weight.detach().norm(dim=1)
        return self.magnitude / lengths

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        dropped = drop(x, self.dropout, self.training)
        narrow = F.linear(dropped, self.lora_a)  # (..., rank)
        plain: Tensor = self.base(x)
        if self.magnitude is None:  # scaled and added within the product: no pass of their own over (..., out)
            rows = narrow.flatten(0, -2)
            return torch.addmm(plain.flatten(0, -2), rows, self.lora_b.T, alpha=self.scaling).view_as(plain)
        change = F.linear(narrow, self.lora_b) * self.scaling
        weight, bias = self.base.weight, self.base.bias
        stretch = self._stretch(weight + self.scaling * (self.lora_b @ self.lora_a).detach())
        own = plain if bias is None else plain - bias
        read = own if dropped is x else F.linear(dropped, weight)
        return plain + (stretch - 1) * read + stretch * change


def add_lora(
    model: nn.Module, config: LoRAConfig, *, seed: int | None = None, sizes: Mapping[str, AdapterSize] | None = None
) -> list[str]:
    """Freeze a model and wrap the layers of its core that `config` (or, by full name, `sizes`) names; these names.

    With a `seed` adapters begin as nothing; without, they are to be loaded. ConfigError if a target matches nothing.
    """
    core = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".blocks." in name]
    ends = {name.rpartition(".")[2] for name in core}
    if sizes is None:
        if missing := sorted(set(config.targets) - ends):
            raise ConfigError(f"lora.targets {', '.join(missing)}: no such layer; there are {', '.join(sorted(ends))}")
        own = AdapterSize(config.rank, config.alpha)
        sizes = {name: own for name in core if name.rpartition(".")[2] in config.targets}
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed or 0)
    for name, size in sizes.items():
        wrapped = LoRALinear(cast(nn.Linear, model.get_submodule(name)), config, size)
        if seed is not None:
            wrapped.init_weights(generator)
        model.set_submodule(name, wrapped)
    return list(sizes)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The wrapped layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Put a plain layer in the place of each wrapped one; the sums are made in fp32."""
    for name, wrapped in adapters(model).items():
        dtype = wrapped.base.weight.dtype
        wrapped.float()
        wrapped.base.weight.copy_(wrapped.merged())
        model.set_submodule(name, wrapped.base.to(dtype))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights that train, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
