"""Documents to overlapping windows, for scores in which each token counts once (DESIGN section 7)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nlpstack.data.batch import IGNORE_INDEX, Batch, Scored, by_length, pad_rows
from nlpstack.data.shards import TokenShards

_SHORT_GROUPS = 16  # short windows are gathered for so many batches, so that those batched are of like length


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
    """Windows in batches of at most `batch_tokens` tokens: full ones as they come, short ones with their like."""
    rows = max(1, batch_tokens // window)
    full: list[Window] = []
    short: list[Window] = []
    for part in parts:
        (full if len(part.tokens) == window + 1 else short).append(part)
        if len(full) == rows:
            yield _pad(full)
            full = []
        if len(short) == _SHORT_GROUPS * rows:
            yield from _like_length(short, batch_tokens)
            short = []
    if full:
        yield _pad(full)
    yield from _like_length(short, batch_tokens)


def _like_length(parts: list[Window], batch_tokens: int) -> Iterator[WindowBatch]:
    for places in by_length([len(part.tokens) for part in parts], batch_tokens):
        yield _pad([parts[place] for place in places])


def _pad(parts: list[Window]) -> WindowBatch:
    targets = []
    for part in parts:
        labels = part.tokens[1:].copy()
        labels[: len(labels) - part.n_scored] = IGNORE_INDEX
        targets.append(labels)
    tokens = pad_rows([part.tokens[:-1] for part in parts], 0)
    return WindowBatch(batch=Batch(tokens=tokens, labels={"lm": pad_rows(targets, IGNORE_INDEX)}), windows=parts)
