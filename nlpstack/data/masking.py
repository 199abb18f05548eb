"""Which tokens a masked language model has to guess, and what it sees in their place (Devlin et al. 2019, 3.1, A.1)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MASKED, RANDOM, KEPT = range(3)  # what a chosen token becomes: the mask, a random token, itself
_SHARES = (0.8, 0.1, 0.1)


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How rows are made: the tokenizer's marks, and how much is hidden."""

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    random_ids: np.ndarray  # what a hidden token may be replaced by
    word_ids: Callable[[np.ndarray], np.ndarray]  # tokens (T,) -> each one's word (T,), -1 at special ones
    share: float
    whole_words: bool
    length: int  # of a row, its special tokens included


class Masked(NamedTuple):
    """A row with some of its tokens hidden."""

    tokens: np.ndarray  # (T,) int64: what the model sees
    places: np.ndarray  # (n,) int64, ascending: where it has to guess
    labels: np.ndarray  # (n,) int64: the tokens that stood there
    kinds: np.ndarray  # (n,) uint8: MASKED, RANDOM or KEPT, as drawn; a random token may be the one that stood there


def mask_tokens(tokens: np.ndarray, form: RowFormat, rng: np.random.Generator) -> Masked:
    """Choose each token, or each word with all its tokens, with probability `share`, and hide what is chosen.

    `tokens` (T,) int64 is not altered; special ones, which are in no word, are never chosen. How much is drawn from
    `rng` depends on shape and words alone.
    """
    words = form.word_ids(tokens)
    n_units = int(words.max(initial=-1)) + 1 if form.whole_words else len(tokens)
    unit = words if form.whole_words else np.where(words >= 0, np.arange(len(tokens)), -1)
    chosen = np.append(rng.random(n_units) < form.share, False)  # the last one is of special tokens, whose unit is -1
    places = np.flatnonzero(chosen[unit])
    kinds = np.searchsorted(np.cumsum(_SHARES[:-1]), rng.random(len(tokens)), side="right").astype(np.uint8)
    # Scaled floats: rng.integers draws again where it would be uneven, so that how much it draws is left to chance.
    drawn = form.random_ids[(rng.random(len(tokens)) * len(form.random_ids)).astype(np.int64)]
    labels, kinds = tokens[places], kinds[places]
    seen = tokens.copy()
    seen[places] = np.select([kinds == MASKED, kinds == RANDOM], [form.mask_id, drawn[places]], labels)
    return Masked(seen, places, labels, kinds)


def describe_masking(rows: Iterable[tuple[np.ndarray, Masked]], *, whole_words: bool) -> str:
    """A line for the log on `rows`, each a row's words (T,) and what became of it: how much was hidden in which way."""
    n_tokens, kinds = 0, np.zeros(3, dtype=np.int64)  # that could be chosen; the chosen ones by what they became
    for words, row in rows:
        n_tokens += int((words >= 0).sum())
        kinds += np.bincount(row.kinds, minlength=3)
    n_chosen = int(kinds.sum())
    masked, random, kept = (100 * kinds / max(1, n_chosen)).tolist()
    seen = f"of these {masked:.1f} % are [MASK], {random:.1f} % random, {kept:.1f} % kept"
    how = ", by whole words" * whole_words
    return f"masking: {100 * n_chosen / max(1, n_tokens):.1f} % of {n_tokens:,} tokens are predicted{how}; {seen}"
