"""Next-token prediction: the loss of a GPT, its perplexity over windows, and text to look at."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from nlpstack.data.batch import IGNORE_INDEX, Batch, by_length, pad_rows
from nlpstack.data.shards import TokenShards
from nlpstack.decode import Sampling, decode
from nlpstack.errors import ConfigError
from nlpstack.metrics.language_model import LanguageModelScores
from nlpstack.model import GPT
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores
from nlpstack.tasks.base import DocumentLayout, EvalConfig, Task
from nlpstack.tokenizer import Tokenizer

PROMPT_WORDS = 6
PROMPT_CHARS = 60  # where words are long, or not set apart
_PROMPT_TOKENS = 256  # tokens read to find a prompt in
_GROUPS = 16  # windows are gathered for so many batches, so that those batched are of like length


class Window(NamedTuple):
    """A stretch of a document: its inputs, and which of the tokens after them are scored here (DESIGN section 7)."""

    document: int
    n_words: int  # of the whole document
    n_targets: int  # of the whole document: tokens that are scored in all its windows
    tokens: np.ndarray  # inputs and the token after the last one
    n_scored: int  # the last so many targets; the ones before were scored in an earlier window

    def scored(self) -> np.ndarray:
        """The tokens that are scored."""
        return self.tokens[len(self.tokens) - self.n_scored :]


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


def batch_windows(parts: Iterator[Window], window: int, batch_tokens: int) -> Iterator[Batch]:
    """Windows in batches of at most `batch_tokens` tokens, those of like length together; each is `about` its own."""
    while group := list(islice(parts, _GROUPS * max(1, batch_tokens // window))):
        for places in by_length([len(part.tokens) - 1 for part in group], batch_tokens):
            like = [group[place] for place in places]
            labels = pad_rows([part.tokens[1:] for part in like], IGNORE_INDEX)
            for row, part in zip(labels, like, strict=True):
                row[: len(part.tokens) - 1 - part.n_scored] = IGNORE_INDEX
            yield Batch(tokens=pad_rows([part.tokens[:-1] for part in like], 0), labels={"lm": labels}, about=like)


class CausalLM(Task):
    """The next-token task."""

    name = "causal_lm"
    target = "loss"
    scores = LanguageModelScores
    predicted_share = 1.0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.loss_chunk = loss_chunk(tokenizer.vocab_size)  # rows whose logits are held at a time; a run keeps its own
        self.layout = DocumentLayout(bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
        self._bytes = [len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]

    def loss(self, model: GPT, batch: Batch) -> dict[str, Tensor]:
        """Summed next-token loss in nats, under "lm"."""
        hidden = model.transformer(batch.tokens, mask=batch.mask)  # (B, T, D)
        return {"lm": linear_cross_entropy(hidden, model.unembedding, batch.labels["lm"], self.loss_chunk)}

    def eval_batches(self, model: Any, data: TokenShards, config: EvalConfig) -> Iterator[Batch]:
        """All windows of a split, in batches under the token budget."""
        window, stride = self._window(model, config)
        return batch_windows(windows(data, window, stride, config.max_tokens), window, config.batch_tokens)

    def score(self, model: GPT, batch: Batch, metric: LanguageModelScores) -> None:
        """Score a batch of windows."""
        hidden = model.transformer(batch.tokens)  # padding on the right is what no token sees
        nll, _ = token_scores(hidden, model.unembedding, batch.labels["lm"], self.loss_chunk, ranked=False)  # (B, T)
        self.count(batch.about, nll.double().sum(dim=1).tolist(), metric)

    def count(self, parts: Sequence[Window], sums: Sequence[float], metric: LanguageModelScores) -> None:
        """Count the loss in nats that each window has in all."""
        for window, total in zip(parts, sums, strict=True):
            n_bytes = sum(self._bytes[token] for token in window.scored().tolist())
            metric.update(window.document, total, window.n_scored, n_bytes, (window.n_words, window.n_targets))

    def reading(self, model: GPT, config: EvalConfig) -> dict[str, object]:
        """Window, stride, marks that are scored, and how much of the text."""
        window, stride = self._window(model, config)
        read = {"window": window, "stride": stride, "bos": self.tokenizer.bos_id is not None, "eos": False}
        return {**read, "max_tokens": config.max_tokens or "all"}

    def _window(self, model: GPT, config: EvalConfig) -> tuple[int, int]:
        window = config.window or model.config.max_seq_len
        if window > model.config.max_seq_len and model.config.positions == "learned":
            raise ConfigError(f"eval.window={window} is more than the model's max_seq_len={model.config.max_seq_len}")
        if (stride := config.stride or window) > window:
            raise ConfigError(f"eval.stride={stride} is more than the window of {window}: tokens would go unscored")
        return window, stride

    def prompts(self, data: TokenShards, n: int) -> list[str]:
        """`n` beginnings of lines from evenly spread places of a split, of a few words each."""
        return [self._prompt(data, len(data) * i // n) for i in range(n)]

    def _prompt(self, data: TokenShards, start: int) -> str:
        for at in chain(range(start, len(data), _PROMPT_TOKENS), range(0, start, _PROMPT_TOKENS)):
            text = self.tokenizer.decode(data.read(at, min(at + _PROMPT_TOKENS, len(data))).tolist()).strip("\ufffd")
            # Text cut anywhere begins inside a line, the validation part of a single document too.
            if text := text.partition("\n")[2].strip() or text.partition(" ")[2].strip() or text.strip():
                lines = text.split("\n")
                words = next((line for line in lines if len(line.split()) >= 2), lines[0]).split()[:PROMPT_WORDS]
                return " ".join(words)[:PROMPT_CHARS].rstrip()
        return ""  # nothing but white space

    def write(self, model: Any, prompts: list[str], max_new_tokens: int, seed: int) -> list[dict[str, str]]:
        """What the model writes after each prompt, cut to its context; sampled from the 50 likeliest tokens."""
        sampling = Sampling(max_new_tokens=max_new_tokens, top_k=50, temperature=0.8, seed=seed)
        fitted = []
        for prompt in prompts:
            while len(self.tokenizer.encode(prompt)) > model.config.max_seq_len:
                prompt = prompt[:-1]
            fitted.append(prompt)
        texts, _ = decode(model, self.tokenizer, fitted, sampling)
        return [{"prompt": text.prompt, "text": text.text} for text in texts]
