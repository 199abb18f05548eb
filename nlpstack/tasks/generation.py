"""A prompt and what should follow it: a GPT is trained on the completions alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlpstack.data.batch import IGNORE_INDEX, Batch, pad_rows
from nlpstack.data.labelled import PromptExample
from nlpstack.data.readers import Note
from nlpstack.data.sentences import split_sentences
from nlpstack.decode import Sampling, decode
from nlpstack.errors import DataError, ModelError
from nlpstack.metrics import Units
from nlpstack.metrics.language_model import LanguageModelScores
from nlpstack.metrics.text import TextScores, TextScoring
from nlpstack.model import GPT, TransformerConfig
from nlpstack.model.losses import linear_cross_entropy, loss_chunk, token_scores
from nlpstack.tasks.base import EvalConfig, Task, TaskConfig
from nlpstack.tasks.labelled import Encoded, EncodedRows, Frame, RowBatch
from nlpstack.tokenizer import Tokenizer

SEPARATOR = "\n"  # between a prompt and its completion
_PROMPTS_AT_ONCE = 64


def sentences(text: str) -> list[str]:
    """The sentences of a text, for rougeLsum: the lines, each cut by the rules of English."""
    return [one for line in text.splitlines() for one in split_sentences(line, "en")]


@dataclass(frozen=True, kw_only=True)
class Prompts:
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
            readings = {name: self._reading + text for name, text in part.readings.items()}
            parts.append(replace(part, readings=readings))
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
        """Examples as rows: BOS, prompt, separator, completion (or else the first reference), EOS."""
        threads = torch.get_num_threads()
        wanted = [e.references[0] if e.completion is None else e.completion for e in examples]
        prompts = self.tokenizer.encode_batch([example.prompt + SEPARATOR for example in examples], threads=threads)
        answers = self.tokenizer.encode_batch(wanted, threads=threads)
        rows, n_cut = [], 0
        for number, (example, prompt, answer) in enumerate(zip(examples, prompts, answers, strict=True)):
            over = len(self.frame.cls) + len(prompt) + len(answer) + 1 - self.length
            if over > 0:
                if not self.config.truncate or over >= len(prompt):
                    cut = "shorten it, or cut the beginning of prompts with --set task.truncate=true"
                    cure = cut if over < len(prompt) else "a completion is never cut; shorten it"
                    size = f"have {self.length + over:,} tokens, the model's context {self.length:,}"
                    raise DataError(f"{example.where}: prompt and completion {size}; {cure}")
                prompt, n_cut = prompt[over:], n_cut + 1
            parts: list[Any] = [self.frame.cls, prompt, answer, [self.tokenizer.eos_id]]
            tokens = np.concatenate(parts).astype(np.int64)
            labels, n_counted = tokens[1:].copy(), len(answer) + 1
            labels[:-n_counted] = IGNORE_INDEX
            rows.append(Encoded(tokens[:-1], len(tokens) - 1, number, (labels, n_counted)))
        if n_cut:
            note(f"{what}: the beginning of {n_cut:,} prompts was cut to fit the context (task.truncate)")
        return EncodedRows(examples=examples, rows=rows, frame=self.frame, label=self._batch_labels)

    def _batch_labels(self, rows: list[Encoded]) -> tuple[dict[str, Tensor], dict[str, int]]:
        labels = pad_rows([row.labels[0] for row in rows], IGNORE_INDEX)
        return {"lm": labels}, {"lm": sum(row.labels[1] for row in rows)}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Summed next-token loss in nats of completions, under "lm"; padding on the right is seen by no token."""
        assert isinstance(model, GPT)
        hidden = model.transformer(batch.tokens)  # (B, T, D)
        return {"lm": linear_cross_entropy(hidden, model.unembedding, batch.labels["lm"], self.loss_chunk)}

    def eval_batches(self, model: nn.Module, data: EncodedRows, config: EvalConfig) -> Iterator[RowBatch | Prompts]:
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

    def score(self, model: nn.Module, batch: RowBatch | Prompts, metric: GenerationScores) -> None:
        """Score a batch."""
        assert isinstance(model, GPT)
        if isinstance(batch, Prompts):
            texts = self.write(model, [example.prompt for _, example in batch.examples], batch.sampling)
            for (number, example), text in zip(batch.examples, texts, strict=True):
                metric.texts.update(text, example.references, number)
            return
        hidden = model.transformer(batch.batch.tokens)
        nll, _ = token_scores(hidden, model.unembedding, batch.batch.labels["lm"], self.loss_chunk, ranked=False)
        for row, total in zip(batch.rows, nll.double().sum(dim=1).tolist(), strict=True):
            example = batch.examples[row.example]
            text = example.completion if example.completion is not None else example.references[0]
            whole, n_bytes = (len(text.split()), row.labels[1]), len(text.encode())
            metric.completions.update(row.example, total, row.labels[1], n_bytes, whole)

    def reading(self, model: nn.Module, config: EvalConfig) -> dict[str, object]:
        """What is scored, what stands before it, and the context."""
        return {"scored": "completion+eos", "separator": "newline", "context": self.length}

    def write(self, model: nn.Module, prompts: Sequence[str], sampling: Sampling) -> list[str]:
        """What the model writes after each prompt."""
        assert isinstance(model, GPT)
        # The very tokens that training puts before a completion.
        rows = [(prompt, [*self.frame.cls, *self.tokenizer.encode(prompt + SEPARATOR)]) for prompt in prompts]
        texts, _ = decode(model, self.tokenizer, rows, sampling)
        return [text.text.strip() for text in texts]
