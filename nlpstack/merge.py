"""What `nlpstack merge` does: an adapter and its base in, one plain model out."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nlpstack.data.readers import Note, mute
from nlpstack.errors import ConfigError, ModelError
from nlpstack.hub import load_model, save_model
from nlpstack.model import GPT, LanguageModel
from nlpstack.model.lora import adapters, merge_lora

_ROWS, _TOKENS = 4, 64  # of the tokens that the two models are compared on


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """A merged model."""

    out: str
    layers: int  # that had an adapter
    difference: float  # the largest between the logits of base and adapter and of the merged model


def merge(
    adapter: str | Path, out: str | Path, *, base: str | Path | None = None, tolerance: float = 1e-4, note: Note = mute
) -> MergeResult:
    """Fold an adapter into its base in fp32 and write the model folder `out`; the base is left as it is.

    ModelError, before anything is written, if logits of both for the same random tokens differ by above `tolerance`.
    """
    model = load_model(adapter, base=base, dtype=torch.float32, note=note)
    if not (n_layers := len(adapters(model))):
        raise ModelError(f"{adapter}: has no adapter, so there is nothing to merge")
    if Path(out).exists():
        raise ConfigError(f"{out}: exists; give another --out")
    shape = _ROWS, min(_TOKENS, model.config.max_seq_len)
    tokens = torch.randint(model.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    before = _logits(model, tokens)
    merge_lora(model)
    model.base = None
    difference = float((_logits(model, tokens) - before).abs().max())
    if not difference <= tolerance:
        largest = f"of logits up to {float(before.abs().max()):.1f}"
        fault = f"merged, its logits differ by {difference:.2e}, {largest}, more than --tolerance {tolerance:g}"
        raise ModelError(f"{adapter}: {fault}; nothing is written; if that is rounding, give more")
    save_model(model, out)
    return MergeResult(out=str(out), layers=n_layers, difference=difference)


@torch.inference_mode()
def _logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    hidden: Tensor = model(tokens)
    return hidden if isinstance(model, GPT) or model.classifier is None else model.label_logits(hidden)
