"""Who looks at whom: the attention weights of every layer and head for one text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nlpstack.errors import ModelError
from nlpstack.model.transformer import Transformer


class _Recorder(TorchFunctionMode):
    """While it is entered, keeps what the fused kernel weighs the values with, of the wanted calls in turn.

    The kernel is called a second time with the unit matrix in place of V: softmax(QKᵀ/√K)·1. So the weights are those
    of the very queries, keys and mask of the forward pass, whatever made them.
    """

    def __init__(self, wanted: Sequence[int]) -> None:
        super().__init__()
        self.wanted = frozenset(wanted)
        self.n_calls = 0
        self.weights: dict[int, Tensor] = {}  # number of the call -> (H, T, T)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            if self.n_calls in self.wanted:
                q, k = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in args[:2])
                unit = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
                self.weights[self.n_calls] = func(q, k, unit.expand(*k.shape[:-2], -1, -1), **kwargs)[0]
            self.n_calls += 1
        return func(*args, **kwargs)


@torch.no_grad()
def attention_weights(transformer: Transformer, tokens: Tensor, *, layers: Sequence[int] | None = None) -> Tensor:
    """softmax(QKᵀ/√K) of tokens (T,), as (L, H, T, T) in fp32 or wider (Vaswani et al. 2017, section 3.2).

    [l, h, t, s] is how much of token s head h of `layers[l]` (None: all) takes for token t; over s it sums to 1. The
    model is left as it is. Raises ModelError in training mode, where dropout would change the weights.
    """
    if transformer.training:
        raise ModelError(
            "attention weights of a model in training mode, where dropout changes them; call .eval() first"
        )
    wanted = range(transformer.config.n_layers) if layers is None else layers
    with _Recorder(wanted) as recorder:
        transformer(tokens[None])
    assert recorder.n_calls == transformer.config.n_layers, "a layer's product was not the fused kernel"
    return torch.stack([recorder.weights[layer] for layer in wanted])
