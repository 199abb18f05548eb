"""Which tokens a masked language model has to guess, and what it sees in their place (Devlin et al. 2019, 3.1, A.1)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

MASKED, RANDOM, KEPT = range(3)  # what a chosen token becomes: the mask, a random token, itself
_SHARES = (0.8, 0.1, 0.1)


class Masked(NamedTuple):
    """A row with some of its tokens hidden."""

    tokens: np.ndarray  # (T,) int64: what the model sees
    places: np.ndarray  # (n,) int64, ascending: where it has to guess
    labels: np.ndarray  # (n,) int64: the tokens that stood there
    kinds: np.ndarray  # (n,) uint8: MASKED, RANDOM or KEPT, as drawn; a random token may be the one that stood there


def mask_tokens(
    tokens: np.ndarray,
    words: np.ndarray,
    *,
    share: float,
    whole_words: bool,
    mask_id: int,
    random_ids: np.ndarray,
    rng: np.random.Generator,
) -> Masked:
    """Choose each token, or each word with all its tokens, with probability `share`, and hide what is chosen.

    `tokens` (T,) int64 is not altered; `words` (T,) int64 has each token's word, -1 at special tokens, which are never
    chosen; a random token is one of `random_ids`. How much is drawn from `rng` depends on shape and words alone.
    """
    n_units = int(words.max(initial=-1)) + 1 if whole_words else len(tokens)
    unit = words if whole_words else np.where(words >= 0, np.arange(len(tokens)), -1)
    places = np.flatnonzero(np.append(rng.random(n_units) < share, False)[unit])  # -1, of special tokens, is the last
    kinds = np.searchsorted(np.cumsum(_SHARES[:-1]), rng.random(len(tokens)), side="right").astype(np.uint8)
    # Scaled floats: rng.integers draws again where it would be uneven, so that how much it draws is left to chance.
    drawn = random_ids[(rng.random(len(tokens)) * len(random_ids)).astype(np.int64)]
    labels, kinds = tokens[places], kinds[places]
    seen = tokens.copy()
    seen[places] = np.select([kinds == MASKED, kinds == RANDOM], [mask_id, drawn[places]], labels)
    return Masked(seen, places, labels, kinds)


def describe_masking(rows: Iterable[tuple[np.ndarray, Masked]], *, whole_words: bool) -> str:
    """A line for the log on `rows`, each the words (T,) given to `mask_tokens` and its result: how much became what."""
    n_tokens, kinds = 0, np.zeros(3, dtype=np.int64)  # that could be chosen; the chosen ones by what they became
    for words, row in rows:
        n_tokens += int((words >= 0).sum())
        kinds += np.bincount(row.kinds, minlength=3)
    n_chosen = int(kinds.sum())
    masked, random, kept = (100 * kinds / max(1, n_chosen)).tolist()
    seen = f"of these {masked:.1f} % are [MASK], {random:.1f} % random, {kept:.1f} % kept"
    how = ", by whole words" * whole_words
    return f"masking: {100 * n_chosen / max(1, n_tokens):.1f} % of {n_tokens:,} tokens are predicted{how}; {seen}"
