"""Documents to overlapping windows, for scores in which each token counts once (DESIGN section 7)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from nlpstack.data.batch import IGNORE_INDEX, Batch, Scored, by_length, pad_rows
from nlpstack.data.shards import TokenShards

_GROUPS = 16  # windows are gathered for so many batches, so that those batched are of like length


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of a document: its inputs, and which of the tokens after them are scored here."""

    document: int
    n_words: int  # of the whole document
    n_targets: int  # of the whole document: tokens that are scored in all its windows
    tokens: np.ndarray  # inputs and the token after the last one
    n_scored: int  # the last so many targets; the ones before were scored in an earlier window

    def scored(self) -> np.ndarray:
        """The tokens that are scored."""
        return self.tokens[len(self.tokens) - self.n_scored :]


@dataclass(frozen=True, kw_only=True)
class WindowBatch(Scored):
    """Windows that are scored together, as a batch padded on the right."""

    windows: list[Window]


def windows(data: TokenShards, window: int, stride: int, max_tokens: int) -> Iterator[Window]:
    """Every document's windows: the next begins `stride` inputs on, and scores what was not scored before.

    The last may be short. EOS is no text and is not scored. After `max_tokens` scored tokens (0: never) it ends.
    """
    n_scored = 0
    for number, (start, end, n_words) in enumerate(data.documents()):
        n_inputs = end - (data.spec.eos_id is not None) - start - 1
        at, done = 0, 0  # the window's first input; targets scored so far
        while done < n_inputs and not (max_tokens and n_scored >= max_tokens):
            stop = min(at + window, n_inputs)
            tokens = data.read(start + at, start + stop + 1)
            yield Window(document=number, n_words=n_words, n_targets=n_inputs, tokens=tokens, n_scored=stop - done)
            n_scored += stop - done
            done, at = stop, at + stride


def batch_windows(parts: Iterator[Window], window: int, batch_tokens: int) -> Iterator[WindowBatch]:
    """Windows in batches of at most `batch_tokens` tokens, those of like length together."""
    while group := list(islice(parts, _GROUPS * max(1, batch_tokens // window))):
        for places in by_length([len(part.tokens) - 1 for part in group], batch_tokens):
            yield _pad([group[place] for place in places])


def _pad(parts: list[Window]) -> WindowBatch:
    targets = []
    for part in parts:
        labels = part.tokens[1:].copy()
        labels[: len(labels) - part.n_scored] = IGNORE_INDEX
        targets.append(labels)
    tokens = pad_rows([part.tokens[:-1] for part in parts], 0)
    return WindowBatch(batch=Batch(tokens=tokens, labels={"lm": pad_rows(targets, IGNORE_INDEX)}), windows=parts)
