"""A prompt and what should follow it: a GPT is trained on the completions alone."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlpstack.data.batch import IGNORE_INDEX, Batch, pad_rows
from nlpstack.data.corpus import split_sentences
from nlpstack.data.labelled import PromptExample
from nlpstack.data.readers import Note
from nlpstack.decode import Sampling, decode
from nlpstack.errors import DataError, ModelError
from nlpstack.metrics import Units
from nlpstack.metrics.language_model import LanguageModelScores
from nlpstack.metrics.text import TextScores, TextScoring
from nlpstack.model import GPT, TransformerConfig
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores
from nlpstack.tasks.base import EvalConfig, Task, TaskConfig
from nlpstack.tasks.labelled import Encoded, EncodedRows, Frame
from nlpstack.tokenizer import Tokenizer
from nlpstack.tokenizer.chat import ASSISTANT, Chat

SEPARATOR = "\n"  # between a prompt and its completion
_PROMPTS_AT_ONCE = 64


def sentences(text: str) -> list[str]:
    """The sentences of a text, for rougeLsum: the lines, each cut by the rules of English."""
    return [one for line in text.splitlines() for one in split_sentences(line, "en")]


class Prompts(NamedTuple):
    """Examples whose texts are to be written and scored."""

    examples: list[tuple[int, PromptExample]]  # with their numbers
    sampling: Sampling

    def to(self, device: torch.device) -> "Prompts":
        """The same: these are no tensors."""
        return self


class GenerationScores:
    """Loss and its kin of completions, and the scores of texts that were written, if any were."""

    def __init__(self, scoring: TextScoring, reading: str) -> None:
        self.completions, self.texts = LanguageModelScores(), TextScores(scoring, sentences)
        self.told = self.texts.told
        self._reading = reading  # how texts were written, for their signatures

    def parts(self) -> list[Units]:
        """What was counted: completions, and texts."""
        parts = self.completions.parts()
        for part in self.texts.parts() if self.told else []:
            parts.append(replace(part, readings={name: self._reading + text for name, text in part.readings.items()}))
        return parts


class Generation(Task):
    """The task of completions: the next-token loss on a completion and the end after it, given the prompt."""

    name = "generation"
    target = "loss"
    scores = GenerationScores
    predicted_share = 1.0

    def __init__(self, tokenizer: Tokenizer, shape: TransformerConfig, config: TaskConfig) -> None:
        if tokenizer.eos_id is None:
            raise ModelError("the tokenizer has no token that ends a text, so the model could not learn to stop")
        self.tokenizer, self.config, self.length = tokenizer, config, shape.max_seq_len
        self.loss_chunk = loss_chunk(tokenizer.vocab_size)
        self.frame = Frame(tokenizer, shape, truncate=config.truncate)

    def encode(self, examples: Sequence[PromptExample], what: str, note: Note) -> EncodedRows:
        """Examples as rows: BOS, prompt, separator, completion (or else the first reference), EOS.

        A conversation is what the chat template makes of it, if there is one, and all that the assistant says counts.
        """
        rows, n_cut, n_marks = [], 0, len(self.frame.cls)
        for number, (example, found) in enumerate(zip(examples, self._tokens(examples), strict=True)):
            tokens, counted, n_before = found
            if (over := len(tokens) - self.length) > 0:
                if not self.config.truncate or over >= n_before:
                    cut = "shorten it, or cut the beginning of prompts with --set task.truncate=true"
                    cure = cut if over < n_before else "a completion is never cut, nor a conversation; shorten it"
                    size = f"have {len(tokens):,} tokens, the model's context {self.length:,}"
                    raise DataError(f"{example.where}: prompt and completion {size}; {cure}")
                kept = np.r_[:n_marks, n_marks + over : len(tokens)]
                tokens, counted, n_cut = tokens[kept], counted[kept], n_cut + 1
            labels = np.where(counted, tokens, IGNORE_INDEX)[1:]
            rows.append(Encoded(tokens[:-1], len(tokens) - 1, number, (labels, int(counted[1:].sum()))))
        if n_cut:
            note(f"{what}: the beginning of {n_cut:,} prompts was cut to fit the context (task.truncate)")
        return EncodedRows(examples=examples, rows=rows, frame=self.frame, label=self._batch_labels)

    def _tokens(self, examples: Sequence[PromptExample]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Each example's tokens (T,), which of them count, bool (T,), and how many before those may be left out."""
        talks = [one for one in examples if self._is_talk(one)]
        told = iter(self.chat.rows([one.messages for one in talks], [one.where for one in talks]) if talks else ())
        plain = [one for one in examples if not self._is_talk(one)]
        texts = [[one.prompt + SEPARATOR for one in plain], [_answers(one)[-1] for one in plain]]
        pairs = zip(*(self.tokenizer.encode_batch(one, threads=torch.get_num_threads()) for one in texts), strict=True)
        for example in examples:
            if self._is_talk(example):
                yield *next(told), 0
                continue
            prompt, answer = next(pairs)
            parts: list[Any] = [self.frame.cls, prompt, answer, [self.tokenizer.eos_id]]
            tokens = np.concatenate(parts).astype(np.int64)
            yield tokens, np.arange(len(tokens)) >= len(tokens) - len(answer) - 1, len(prompt)

    @cached_property
    def chat(self) -> Chat:
        """How conversations are written down, where the tokenizer says it."""
        return Chat(self.tokenizer, "the model")

    def _is_talk(self, example: PromptExample) -> bool:
        """Is it a conversation for the chat template; without one it is a prompt as any other."""
        return bool(example.messages and self.tokenizer.chat_template)

    def _batch_labels(self, rows: list[Encoded]) -> tuple[dict[str, Tensor], dict[str, int]]:
        labels = pad_rows([row.labels[0] for row in rows], IGNORE_INDEX)
        return {"lm": labels}, {"lm": sum(row.labels[1] for row in rows)}

    def loss(self, model: GPT, batch: Batch) -> dict[str, Tensor]:
        """Summed next-token loss in nats of completions, under "lm"; padding on the right is seen by no token."""
        hidden = model.transformer(batch.tokens)  # (B, T, D)
        return {"lm": linear_cross_entropy(hidden, model.unembedding, batch.labels["lm"], self.loss_chunk)}

    def eval_batches(self, model: Any, data: EncodedRows, config: EvalConfig) -> Iterator[Batch | Prompts]:
        """All rows, in batches under the token budget, then the prompts, those of like length together."""
        yield from data.batches(config.batch_tokens)
        if config.new_tokens:
            sampling = Sampling(max_new_tokens=config.new_tokens, beams=config.beams, greedy=config.beams == 1)
            order = sorted(enumerate(data.examples), key=lambda one: len(one[1].prompt))
            for start in range(0, len(order), _PROMPTS_AT_ONCE):
                yield Prompts(examples=order[start : start + _PROMPTS_AT_ONCE], sampling=sampling)

    def metric(self, config: EvalConfig) -> GenerationScores:
        """Loss, perplexities and bits per byte of completions, and scores of texts, not filled yet."""
        how = f"|decoding:{f'beam{config.beams}' if config.beams > 1 else 'greedy'}|new_tokens:{config.new_tokens}"
        return GenerationScores(config.texts, how)

    def score(self, model: GPT, batch: Batch | Prompts, metric: GenerationScores) -> None:
        """Score a batch."""
        if isinstance(batch, Prompts):
            texts = self.write(model, [example for _, example in batch.examples], batch.sampling)
            for (number, example), text in zip(batch.examples, texts, strict=True):
                metric.texts.update(text, example.references, number)
            return
        hidden, (rows, examples) = model.transformer(batch.tokens), batch.about
        nll, _ = token_scores(hidden, model.unembedding, batch.labels["lm"], self.loss_chunk, ranked=False)
        for row, total in zip(rows, nll.double().sum(dim=1).tolist(), strict=True):
            example = examples[row.example]
            text = "\n".join(_answers(example, whole=self._is_talk(example)))
            whole, n_bytes = (len(text.split()), row.labels[1]), len(text.encode())
            metric.completions.update(row.example, total, row.labels[1], n_bytes, whole)

    def reading(self, model: GPT, config: EvalConfig) -> dict[str, object]:
        """What is scored, what stands before it, and the context."""
        template = self.tokenizer.chat_template
        chat = {"chat": hashlib.sha256(template.encode()).hexdigest()[:12]} if template else {}
        return {"scored": "completion+eos", "separator": "newline", **chat, "context": self.length}

    def write(self, model: Any, examples: Sequence[PromptExample], sampling: Sampling) -> list[str]:
        """What the model writes after each example's prompt, or next in its conversation."""
        talks = [one for one in examples if self._is_talk(one)]
        places = [one.where for one in talks]
        asked = [one.messages[: -1 if one.messages[-1][0] == ASSISTANT else None] for one in talks]  # without an answer
        begun = iter(self.chat.prompts(asked, places) if talks else ())
        cls, encode = self.frame.cls, self.tokenizer.encode
        rows = [
            # The very tokens that training puts before a completion.
            (one.prompt, next(begun) if self._is_talk(one) else [*cls, *encode(one.prompt + SEPARATOR)])
            for one in examples
        ]
        texts, _ = decode(model, self.tokenizer, rows, sampling)
        return [text.text.strip() for text in texts]


def _answers(example: PromptExample, *, whole: bool = False) -> tuple[str, ...]:
    """The completion, or else the first reference; of a `whole` conversation all that the assistant says."""
    if whole:
        return tuple(text for role, text in example.messages if role == ASSISTANT)
    return (example.references[0] if example.completion is None else example.completion,)
