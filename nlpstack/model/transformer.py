"""The one Transformer core: token ids in, hidden states out. GPT and BERT are this with different values."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nlpstack.model.kernels import Linear, drop, fused_attention, gelu_tanh, plain_attention
from nlpstack.model.losses import product_dtype


class Stretch(NamedTuple):
    """How much longer than plain ones rotary wavelengths are, for a longer context than was trained first."""

    factor: float = 1.0
    original: float = 0  # tokens of the first context; 0: all wavelengths are stretched by the factor
    low: float = 1.0  # a wave that fits it so often, or less, is stretched in full
    high: float = 4.0  # and one that fits so often, or more, not at all


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TransformerConfig:
    """Shape of the shared core. GPT and BERT differ only in these values."""

    vocab_size: NonNegativeInt = 0  # 0 in a recipe: the tokenizer's
    max_seq_len: PositiveInt = 256  # tokens
    dim: PositiveInt = 256  # width of the hidden states; a multiple of n_heads
    n_layers: PositiveInt = 4  # blocks of attention and feed-forward
    n_heads: PositiveInt = 4  # query heads, each dim / n_heads wide
    n_kv_heads: NonNegativeInt = 0  # key/value heads shared by groups of query heads; 0: n_heads
    ffn_dim: NonNegativeInt = 0  # 0: 4 * dim
    causal: bool = True  # GPT: a token sees its past. False, BERT: it sees both sides.
    positions: Literal["learned", "sinusoidal", "rotary"] = "learned"  # how a token's place is told
    position_offset: NonNegativeInt = 0  # rows of learned positions before the first token's; RoBERTa: pad id + 1
    rope_theta: PositiveFloat = 10000.0  # base of the wavelengths of rotary positions
    rope_stretch: tuple[float, ...] = ()  # of the wavelengths, as Stretch has it: the factor, or as in Llama 3 all four
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # of each sublayer
    norm_eps: PositiveFloat = 1e-5  # added to the variance, or mean square, whose root a norm divides by
    pre_norm: bool = True  # False: Add & Norm after each sublayer and after the embeddings, as in BERT
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "gelu"  # gelu_tanh: GPT-2's gelu; swiglu: gated
    bias: bool = True  # in linear layers and LayerNorm
    n_segments: NonNegativeInt = 0  # 2 for BERT sentence pairs
    tied: bool = True  # the unembedding is the token embedding
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of embeddings, attention weights and each sublayer's output

    def __post_init__(self) -> None:
        if self.dim % self.n_heads:
            raise ValueError(f"dim={self.dim} must be a multiple of n_heads={self.n_heads}")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if self.position_offset and self.positions != "learned":
            raise ValueError(f"position_offset={self.position_offset} goes with learned positions only")
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even dim / n_heads, not {self.head_dim}")
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"sinusoidal positions need an even dim, not {self.dim}")
        factor, original, low, high = Stretch(*self.rope_stretch[:4])
        if len(self.rope_stretch) not in (0, 1, 4) or min(factor, original + 1, low + 1) <= 0 or low >= high:
            wanted = "[factor] or [factor, first context, low, high], the factor above 0 and low below high"
            raise ValueError(f"rope_stretch={list(self.rope_stretch)} must be {wanted}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def hidden_dim(self) -> int:
        """Width inside the feed-forward layer."""
        return self.ffn_dim or 4 * self.dim


def rotary_angles(positions: Tensor, head_dim: int, theta: float, *stretch: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (..., head_dim / 2) in fp32, for integer positions (...).

    Su et al. 2021, RoFormer, section 3.2.2: frequency i is theta^(-2i / head_dim). Stretched as Stretch has it, as a
    whole: Chen et al. 2023, Position Interpolation; the more the longer a wave is: Llama 3.1, as in transformers.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    factor, original, low, high = Stretch(*stretch)
    if factor != 1:
        times = original * frequencies / (2 * math.pi)  # that a wave fits the first context
        kept = ((times - low) / (high - low)).clamp(0, 1)  # 0 where there is none
        frequencies = kept * frequencies + (1 - kept) * frequencies / factor
    angles = positions.to(torch.float32)[..., None] * frequencies  # (..., K / 2)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys (B, H, T, K) by their angles (1 or B, 1, T, K / 2); same shape and dtype.

    Component i is paired with i + K / 2 (the order of Llama's published weights), not with its neighbour.
    """
    first, second = heads.chunk(2, dim=-1)  # each (B, H, T, K / 2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)


def sinusoidal(positions: Tensor, dim: int) -> Tensor:
    """Fixed position vectors (..., dim) in fp32 for integer positions (...).

    Vaswani et al. 2017, section 3.5: sin in the even components, cos in the odd ones, wavelengths up to 10000 * 2 pi.
    """
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = positions.to(torch.float32)[..., None] / 10000.0**exponents  # (..., D / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (..., D)


class AttentionMask(NamedTuple):
    """Who may attend to whom, in the two forms scaled_dot_product_attention takes."""

    attn_mask: Tensor | None = None  # bool (B or 1, 1, T, S), True = yes; None = no exceptions
    is_causal: bool = False  # only ever True with attn_mask None


def attention_mask(causal: bool, n_new: int, n_keys: int, mask: Tensor | None, device: torch.device) -> AttentionMask:
    """What `n_new` queries, the last of `n_keys` tokens, may attend to; `mask` (B, S) is True at real tokens."""
    if mask is None and (not causal or n_new == 1):
        return AttentionMask()
    if mask is None and n_new == n_keys:
        return AttentionMask(is_causal=True)
    own = torch.arange(n_keys - n_new, n_keys, device=device)[:, None]  # (T, 1): each query's own column
    column = torch.arange(n_keys, device=device)  # (S,)
    allowed = (column <= own) if causal else torch.ones(n_new, n_keys, dtype=torch.bool, device=device)  # (T, S)
    if mask is None:
        return AttentionMask(allowed[None, None])
    # A padding query sees itself alone: with nothing to see, its softmax would be NaN and spread.
    allowed = (allowed & mask[:, None, None, :]) | (column == own)
    return AttentionMask(allowed)  # (B, 1, T, S)


class KVCache:
    """Preallocated keys and values, (B, kv heads, max_len, K) a layer; made, kept and dropped by the caller.

    Each token is fed once. Rows of unequal length are padded on the left: `mask` says which columns hold real tokens.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values
        self.max_len = keys[0].shape[2]  # columns there is room for
        self.length = 0  # columns filled, the same for all rows
        self.mask: Tensor | None = None  # bool (B, length), None while every column of every row is real

    @classmethod
    def for_model(cls, model: "Transformer", batch_size: int, max_len: int) -> "KVCache":
        """An empty cache of the model's shape, device and activation dtype for at most `max_len` columns."""
        shape = (batch_size, model.config.kv_heads, max_len, model.config.head_dim)
        dtype, device = product_dtype(model.tokens.weight), model.tokens.weight.device
        keys, values = ([torch.empty(shape, dtype=dtype, device=device) for _ in model.blocks] for _ in range(2))
        return cls(keys, values)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values (B, H, T, K); all of the layer's, (B, H, S, K), come back."""
        end = self.length + keys.shape[2]
        assert end <= self.max_len, f"cache of {self.max_len} columns asked to hold {end}"
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def extend_mask(self, mask: Tensor | None, n_new: int) -> Tensor | None:
        """The mask (B, S) of cached and new columns, given the new ones' (B, T); None if all are real."""
        if self.mask is None and mask is None:
            return None
        real = torch.ones(len(self.keys[0]), self.length + n_new, dtype=torch.bool, device=self.keys[0].device)
        old = real[:, : self.length] if self.mask is None else self.mask
        return torch.cat((old, real[:, self.length :] if mask is None else mask), dim=1)


class LayerInput(NamedTuple):
    """What every layer is given beside the hidden states, computed once per forward pass."""

    mask: AttentionMask
    rotary: tuple[Tensor, Tensor] | None  # cos and sin, each (1 or B, 1, T, K / 2)
    cache: KVCache | None
    plain: bool  # attention by plain_attention, not by the fused kernel


class Attention(nn.Module):
    """softmax(QKᵀ/√K)V over heads (Vaswani et al. 2017, section 3.2), keys and values shared by groups of heads."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_heads, self.head_dim = config.n_heads, config.kv_heads, config.head_dim
        self.dropout = config.dropout
        self.q_proj = Linear(config.dim, config.dim, bias=config.bias)
        self.k_proj = Linear(config.dim, self.kv_heads * self.head_dim, bias=config.bias)
        self.v_proj = Linear(config.dim, self.kv_heads * self.head_dim, bias=config.bias)
        self.out_proj = Linear(config.dim, config.dim, bias=config.bias)

    def _split_heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, T, H * K) -> (B, H, T, K)

    def forward(self, x: Tensor, layer: int, given: LayerInput) -> Tensor:
        """Mix tokens: (B, T, D) -> (B, T, D)."""
        q = self._split_heads(self.q_proj(x))  # (B, T, D) -> (B, H, T, K)
        k = self._split_heads(self.k_proj(x))  # (B, kv heads, T, K)
        v = self._split_heads(self.v_proj(x))
        if given.rotary is not None:
            q, k = rotate(q, *given.rotary), rotate(k, *given.rotary)
        if given.cache is not None:
            k, v = given.cache.update(layer, k, v)  # (B, kv heads, S, K)
        if self.kv_heads != self.n_heads:
            k = k.repeat_interleave(self.n_heads // self.kv_heads, dim=1)  # (B, H, S, K)
            v = v.repeat_interleave(self.n_heads // self.kv_heads, dim=1)
        product = plain_attention if given.plain else fused_attention
        dropout = self.dropout if self.training else 0.0
        y = product(q, k, v, given.mask.attn_mask, causal=given.mask.is_causal, dropout=dropout)
        mixed: Tensor = self.out_proj(y.transpose(1, 2).flatten(2))  # (B, H, T, K) -> (B, T, D)
        return mixed


def activate(x: Tensor, activation: str) -> Tensor:
    """GELU, as it is or by its tanh approximation, or ReLU."""
    return F.relu(x) if activation == "relu" else gelu_tanh(x) if activation == "gelu_tanh" else F.gelu(x)


class FeedForward(nn.Module):
    """Each token on its own: widen, bend, narrow. SwiGLU: Shazeer 2020, GLU Variants, section 2."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate_proj = Linear(config.dim, config.hidden_dim, bias=config.bias)
        self.up_proj = Linear(config.dim, config.hidden_dim, bias=config.bias)
        self.down_proj = Linear(config.hidden_dim, config.dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        wide = self.up_proj(x)  # (B, T, ffn_dim)
        wide = F.silu(self.gate_proj(x)) * wide if self.activation == "swiglu" else activate(wide, self.activation)
        narrow: Tensor = self.down_proj(wide)
        return narrow


def make_norm(config: TransformerConfig) -> nn.Module:
    """The norm that a config asks for."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.dim, eps=config.norm_eps)
    return nn.LayerNorm(config.dim, eps=config.norm_eps, bias=config.bias)


class Block(nn.Module):
    """Attention, then feed-forward, each added to its input, with the norm before (pre) or after the sum (post)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pre_norm, self.dropout = config.pre_norm, config.dropout
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.ffn_norm = make_norm(config)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, layer: int, given: LayerInput) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.pre_norm:
            x = x + drop(self.attention(self.attention_norm(x), layer, given), self.dropout, self.training)
            x = x + drop(self.ffn(self.ffn_norm(x)), self.dropout, self.training)
        else:
            x = self.attention_norm(x + drop(self.attention(x, layer, given), self.dropout, self.training))
            x = self.ffn_norm(x + drop(self.ffn(x), self.dropout, self.training))
        return x


class Transformer(nn.Module):
    """Token ids in, hidden states out; knows nothing of heads, losses or text."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "vocab_size comes from the tokenizer and is not set"
        self.config = config
        self.train_attention = "fused"  # or "plain": which product is used in training mode
        self.checkpoint_activations = False  # recompute blocks in the backward pass: less memory, a third more work
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.position_offset + config.max_seq_len, config.dim)
        if config.n_segments:
            self.segments = nn.Embedding(config.n_segments, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)  # after the last block (pre-norm) or after the embeddings (post-norm)

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        n_layers: int | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of tokens (B, T).

        `mask` (B, T) is True at real tokens (None: all are); with a cache, `tokens` are the ones it does not hold yet.
        `segments` (B, T) says which text of a pair a token belongs to (None: the first). With `n_layers` (0: the
        embeddings) the states after so many blocks come back, without the norm that follows the last one.
        """
        n_new = tokens.shape[1]
        n_cached, full_mask = (cache.length, cache.extend_mask(mask, n_new)) if cache is not None else (0, mask)
        # A token's position is the number of real tokens before it, so padding on either side changes nothing.
        positions = torch.arange(n_cached, n_cached + n_new, device=tokens.device)  # (T,)
        if full_mask is not None:
            positions = (full_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -n_new:]  # (B, T)
        x = self._embed(tokens, positions, segments)  # (B, T, D)
        rotary = None
        if self.config.positions == "rotary":
            cos, sin = rotary_angles(positions, self.config.head_dim, self.config.rope_theta, *self.config.rope_stretch)
            rotary = cos[..., None, :, :], sin[..., None, :, :]  # (B, 1, T, K / 2) or (1, T, K / 2)
        attends = attention_mask(self.config.causal, n_new, n_cached + n_new, full_mask, tokens.device)
        given = LayerInput(attends, rotary, cache, plain=self.training and self.train_attention == "plain")
        for layer, block in enumerate(self.blocks[:n_layers]):
            if self.checkpoint_activations and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, layer, given, use_reentrant=False)
            else:
                x = block(x, layer, given)
        if cache is not None:  # every layer has stored the new columns
            cache.length, cache.mask = n_cached + n_new, full_mask
        whole = n_layers is None or n_layers == len(self.blocks)
        return self.norm(x) if self.config.pre_norm and whole else x

    def _embed(self, tokens: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        x = self.tokens(tokens)  # (B, T, D)
        if self.config.positions == "learned":
            x = x + self.positions(positions + self.config.position_offset)
        elif self.config.positions == "sinusoidal":
            # Scaled as in Vaswani et al. 2017, section 3.4: sinusoids have amplitude 1, fresh embeddings 0.02.
            x = x * math.sqrt(self.config.dim) + sinusoidal(positions, self.config.dim).to(x.dtype)
        if self.config.n_segments:
            x = x + self.segments(torch.zeros_like(tokens) if segments is None else segments)
        if not self.config.pre_norm:
            x = self.norm(x)
        return drop(x, self.config.dropout, self.training)


def init_weights(model: nn.Module, *, n_layers: int, generator: torch.Generator) -> None:
    """Set every weight: normal of deviation 0.02, zeros for biases, ones for norms.

    The two projections of a block that are added to the residual stream start 1 / sqrt(2 * n_layers) as large
    (Radford et al. 2019, section 2.3). Module order fixes the draws, so equal seeds give equal models.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = 0.02 / (math.sqrt(2 * n_layers) if name.endswith(("out_proj", "down_proj")) else 1)
            nn.init.normal_(module.weight, std=std, generator=generator)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            nn.init.zeros_(bias)


class _NoInitialValues(TorchFunctionMode):
    """Leaves out torch.nn.init, which on the meta device sets nothing, yet imports torch's compiler: seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules built inside the block have shapes and no memory."""
    with torch.device("meta"), _NoInitialValues():
        yield
