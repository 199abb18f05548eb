"""Keys and values of the tokens seen so far, so that decoding feeds each token once."""

import torch
from torch import Tensor

from nlpstack.model.losses import product_dtype
from nlpstack.model.transformer import Transformer


class KVCache:
    """Preallocated keys and values, (B, kv heads, max_len, K) a layer; made, kept and dropped by the caller.

    Rows of unequal length are padded on the left: `mask` says which columns hold real tokens.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values
        self.max_len = keys[0].shape[2]  # columns there is room for
        self.length = 0  # columns filled, the same for all rows
        self.mask: Tensor | None = None  # bool (B, length), None while every column of every row is real

    @classmethod
    def for_model(cls, model: Transformer, batch_size: int, max_len: int) -> "KVCache":
        """An empty cache of the model's shape, device and activation dtype for at most `max_len` columns."""
        config = model.config
        weight = model.tokens.weight
        dtype = product_dtype(weight)
        shape = (batch_size, config.kv_heads, max_len, config.head_dim)
        keys, values = ([torch.empty(shape, dtype=dtype, device=weight.device) for _ in model.blocks] for _ in range(2))
        return cls(keys, values)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (B, H, T, K); all of the layer's, (B, H, S, K), come back."""
        end = self.length + keys.shape[2]
        assert end <= self.max_len, f"cache of {self.max_len} columns asked to hold {end}"
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def extend_mask(self, mask: Tensor | None, batch_size: int, n_new: int) -> Tensor | None:
        """The mask (B, S) of cached and new columns, given the new ones' (B, T); None if all are real."""
        if self.mask is None and mask is None:
            return None
        real = torch.ones(batch_size, self.length + n_new, dtype=torch.bool, device=self.keys[0].device)
        old = real[:, : self.length] if self.mask is None else self.mask
        return torch.cat((old, real[:, self.length :] if mask is None else mask), dim=1)
