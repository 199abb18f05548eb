"""What `nlpstack attention` does: a model and a text in, a picture or a page of who looks at whom out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nlpstack import report
from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.files import check_output, write_file
from nlpstack.model import BERT, LanguageModel, Transformer
from nlpstack.start import frame, open_model
from nlpstack.train.runtime import session

# Weights that are held at a time: 1 GiB in fp32 for a picture; a page is packed into text, and unpacked in a browser.
MAX_WEIGHTS = {".png": 1 << 28, ".html": 1 << 25}


@dataclass(frozen=True, kw_only=True)
class AttentionResult:
    """What was drawn, and where."""

    out: str
    layers: list[int]  # numbers from 0
    heads: list[int]
    tokens: list[str]  # as they are written on the axes


def attention(
    model: LanguageModel | str | Path,
    text: str,
    out: str | Path,
    *,
    layer: int | None = None,
    head: int | None = None,
    device: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
) -> AttentionResult:
    """Draw how the tokens of a text attend to each other, into `out`: a PNG (extra `report`) or an HTML page.

    The PNG shows the `layer` and `head` given, None: all. The page holds them all, and these are chosen at first.
    `device` and `dtype` (None: fp32) are for a model read from a folder; `threads` compute meanwhile (None: as now).
    """
    path, suffix = Path(out), Path(out).suffix.lower()
    # A file that cannot be written is refused before a model is read for nothing.
    if suffix not in MAX_WEIGHTS:
        raise ConfigError(f"{path}: the name must end in .html (a page) or .png (a picture)")
    check_output(path)
    if suffix == ".png" and not report.can_draw():
        raise ConfigError(f"{path}: a .png is drawn by matplotlib: {report.INSTALL}; an .html page needs nothing")
    with session(threads=threads):
        ready, name = open_model(model, device=device, dtype=dtype)
        n_layers, n_heads = ready.config.n_layers, ready.config.n_heads
        for what, number, count in (("layer", layer, n_layers), ("head", head, n_heads)):
            if number is not None and not 0 <= number < count:
                raise ConfigError(f"{what} {number}: {name} has {count:,} {what}s, counted from 0 to {count - 1:,}")
        layers = range(n_layers) if layer is None or suffix == ".html" else [layer]
        heads = range(n_heads) if head is None or suffix == ".html" else [head]
        pattern = _pattern(ready, name, text, layers, heads, suffix)
    if suffix == ".png":
        write_file(path, report.attention_picture(pattern))
    else:
        write_file(path, report.attention_page(pattern, layer=layer or 0, head=head or 0))
    labels = [report.token_label(token) for token in pattern.tokens]
    return AttentionResult(out=str(out), layers=list(layers), heads=list(heads), tokens=labels)


def _pattern(
    model: LanguageModel, name: str, text: str, layers: Sequence[int], heads: Sequence[int], suffix: str
) -> report.AttentionPattern:
    """The weights to draw, of a BERT for [CLS] text [SEP]; refused where they would be more than can be held."""
    framed = frame(model, name)
    if not (ids := model.tokenizer.encode(text)):
        raise DataError("the text is empty, so there is nothing to attend to; give one of at least a word")
    if isinstance(model, BERT):
        ids = [*framed.cls, *ids, *framed.sep]
    if len(ids) > model.config.max_seq_len:
        holds = f"the model's context holds {model.config.max_seq_len:,} (max_seq_len)"
        shown = f"{text[:40]!r}{'...' * (len(text) > 40)}"
        raise DataError(f"the text has {len(ids):,} tokens, {holds}; shorten it: {shown}")
    count = len(layers) * model.config.n_heads * len(ids) ** 2
    if count > MAX_WEIGHTS[suffix]:
        fault = f"{len(ids):,} tokens in {len(layers)} x {model.config.n_heads} heads make {count:,} weights"
        most = f"a {suffix} takes {MAX_WEIGHTS[suffix]:,} at most"
        raise DataError(f"{fault}, and {most}; shorten the text or draw one layer as .png")
    tokens = torch.tensor(ids, device=model.transformer.tokens.weight.device)  # (T,)
    with evaluating(model):
        weights = attention_weights(model.transformer, tokens, layers=layers)[:, list(heads)]  # (L, H, T, T)
    if not bool(torch.isfinite(weights).all()):
        raise ModelError(f"{name}: its attention weights are not finite, so its weights or the dtype are broken")
    spelled = [_spelled(model.tokenizer, token) for token in ids]
    return report.AttentionPattern(weights.float().cpu().numpy(), layers, heads, spelled, model.config.causal, name)


def _spelled(tokenizer: Any, token: int) -> bytes:
    """A token as it is labelled: its bytes, but `[SEP]` and `##ing` as the tokenizer spells them."""
    data, piece = bytes(tokenizer.token_bytes(token)), str(tokenizer.piece(token)).encode()
    return piece if token in tokenizer.special_ids or piece == b"##" + data else data


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

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
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
        raise ModelError("attention weights in training mode, where dropout changes them; call .eval() first")
    wanted = range(transformer.config.n_layers) if layers is None else layers
    with _Recorder(wanted) as recorder:
        transformer(tokens[None])
    assert recorder.n_calls == transformer.config.n_layers, "a layer's product was not the fused kernel"
    return torch.stack([recorder.weights[layer] for layer in wanted])
