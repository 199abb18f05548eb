"""What `nlpstack fill-mask` does: a BERT and a text with masks in, the best tokens for each mask out."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlpstack.decode.loop import evaluating
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.hub import load_model
from nlpstack.model import BERT, LanguageModel
from nlpstack.tokenizer import Tokenizer
from nlpstack.train.runtime import resolve_device, session

_ANY_MASK = re.compile(r"\[mask\]|<mask>", re.IGNORECASE)  # as BERT and RoBERTa spell it, or nearly


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One token for one mask."""

    mask: int  # which one of the text, from 0
    token: str  # as it is spelled, without the space before it
    probability: float  # among all tokens of the vocabulary
    id: int
    text: str  # the text with this mask filled in and the others left


def fill_mask(
    model: LanguageModel | str | Path,
    text: str,
    *,
    top_k: int = 5,
    device: str = "auto",
    threads: int | None = None,
) -> list[Guess]:
    """The `top_k` likeliest tokens for each mask of a text, best first, mask by mask.

    A mask is written as the model's tokenizer spells it. Several are guessed in one pass, each as if the others stayed
    hidden. `device` is for a model that is read from a folder, in fp32; an object is taken as it is. `threads` compute
    during the call (None: as many as now).
    """
    with session(threads=threads or torch.get_num_threads(), deterministic=False):
        ready, name = _ready(model, device)
        tokenizer = ready.tokenizer
        if not 1 <= top_k <= tokenizer.vocab_size:
            raise ConfigError(
                f"top_k={top_k}: must be at least 1, and at most {tokenizer.vocab_size:,}, the vocabulary"
            )
        parts = _parts(text, tokenizer)
        row, masks = _row(parts, tokenizer, ready.config.max_seq_len)
        probabilities = _probabilities(ready, row, masks)  # (M, V)
        if not bool(torch.isfinite(probabilities).all()):
            raise ModelError(f"{name}: its logits are not finite, so its weights are broken")
        # Where the vocabulary was rounded up, ids beyond the tokenizer's are no tokens. Of equal ones the lowest wins.
        tokens = probabilities[:, : tokenizer.vocab_size]
        best, ids = (found[:, :top_k].tolist() for found in tokens.sort(dim=1, descending=True, stable=True))
    return [
        Guess(
            mask=mask,
            token=_spelled(tokenizer, token),
            probability=probability,
            id=token,
            text=_filled(parts, mask, token, tokenizer),
        )
        for mask in range(len(masks))
        for probability, token in zip(best[mask], ids[mask], strict=True)
    ]


def _ready(model: LanguageModel | str | Path, device: str) -> tuple[BERT, str]:
    """A model that can fill masks, and what to call it."""
    if isinstance(model, str | Path):
        name, ready = str(model), load_model(model, device=resolve_device(device), dtype=torch.float32)
    else:
        name, ready = "the model", model
        if device != "auto":
            raise ConfigError("device is for a model that is read from a folder; move the object yourself")
    if not isinstance(ready, BERT):
        raise ModelError(
            f"{name}: a GPT, which sees only what stands before a token; fill-mask takes a BERT, and "
            "'nlpstack generate' goes on from a text"
        )
    if "mlm" not in ready.heads:
        raise ModelError(
            f"{name}: has no masked-token head, so it cannot guess; take a BERT as it was pretrained "
            "('nlpstack embed' works with this one)"
        )
    if ready.tokenizer is None:
        raise ModelError(f"{name}: has no tokenizer, so it cannot read a text; add its files")
    ids = {"mask": ready.tokenizer.mask_id, "[CLS]": ready.tokenizer.cls_id, "[SEP]": ready.tokenizer.sep_id}
    if lacking := [role for role, token in ids.items() if token is None]:
        raise ModelError(
            f"{name}: its tokenizer has no {' and no '.join(lacking)} token; add the tokenizer it was trained with"
        )
    return ready, name


def _parts(text: str, tokenizer: Any) -> list[str]:
    """What stands before, between and after the masks."""
    mask = tokenizer.mask_token
    parts = text.split(mask)
    if len(parts) == 1:
        close = _ANY_MASK.search(text)
        hint = f"; this model's mask is {mask}, not {close[0]}" if close else ""
        raise DataError(f"the text has no mask: write {mask} where a token is to be guessed{hint}")
    if _carries_spaces(tokenizer):
        # The piece that is hidden begins with the space before it, so the model never saw a mask behind a space.
        parts[:-1] = [part.rstrip() for part in parts[:-1]]
    return parts


def _carries_spaces(tokenizer: Any) -> bool:
    """Whether a word's first piece begins with the space before the word, as SentencePiece and byte-level BPE have it.

    The pieces of characters do not: there a space is a token, which can be hidden itself.
    """
    pieces = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    return any(piece.startswith(b" ") and piece.strip() for piece in pieces)


def _row(parts: list[str], tokenizer: Any, context: int) -> tuple[list[int], list[int]]:
    """[CLS] text [SEP], the text with its masks, and the places of these."""
    row, masks = [tokenizer.cls_id, *tokenizer.encode(parts[0])], []
    for part in parts[1:]:
        masks.append(len(row))
        row += [tokenizer.mask_id, *tokenizer.encode(part)]
    row.append(tokenizer.sep_id)
    if len(row) > context:
        raise DataError(
            f"the text has {len(row):,} tokens with the special ones around it, the model's context holds {context:,} "
            "(max_seq_len); shorten it"
        )
    return row, masks


@torch.inference_mode()
def _probabilities(model: BERT, row: list[int], masks: list[int]) -> Tensor:
    """Softmax over the vocabulary at each of the places: (M, V), in fp32 or wider."""
    tokens = torch.tensor([row], device=model.transformer.tokens.weight.device)
    with evaluating(model):
        logits = model.mlm_logits(model(tokens)[0, masks])  # (1, T, D) -> (M, D) -> (M, V)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)


def _spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as its tokenizer spells it: `[SEP]` and `##ing` as they are, other pieces without a space before them."""
    text, piece = tokenizer.token_bytes(token).decode(errors="replace"), tokenizer.piece(token)
    return piece if token in tokenizer.special_ids or piece == f"##{text}" else text.strip() or text


def _filled(parts: list[str], mask: int, token: int, tokenizer: Any) -> str:
    """The text with one mask filled in."""
    before, after = (str(tokenizer.mask_token).join(side) for side in (parts[: mask + 1], parts[mask + 1 :]))
    text, spelled = tokenizer.token_bytes(token).decode(errors="replace"), _spelled(tokenizer, token)
    if token in tokenizer.special_ids:
        return before + spelled + after
    if spelled != text and spelled == f"##{text}":  # it goes on with the word before it
        before = before.rstrip()
    return f"{before}{text if before else text.lstrip()}{after}"
