"""Beam search: the best of the texts that begin with the best beginnings."""

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nlpstack.decode.cached_batch import CachedBatch
from nlpstack.decode.filters import likeliest
from nlpstack.decode.generation import Continuation, Generation, Prompt, Timing
from nlpstack.decode.penalties import History, uses_history
from nlpstack.decode.rules import TokenRules
from nlpstack.errors import ConfigError
from nlpstack.model import GPT

if TYPE_CHECKING:
    from nlpstack.tokenizer.base import Tokenizer


class _Candidate(NamedTuple):
    """A beam and one token more."""

    total: float  # summed log-probability, after penalties
    beam: int
    token: int
    logprob: float  # of the token under the model's own distribution


@dataclass
class _Beam:
    """A text and its summed log-probability; its score once it has ended."""

    text: Continuation
    total: float

    def extended(self, candidate: _Candidate) -> "_Beam":
        text = self.text.copy()
        text.add(candidate.token)
        text.logprobs.append(candidate.logprob)
        return _Beam(text, candidate.total)


class _Search:
    """One prompt's beams: those that go on, best first, and the best that have ended.

    It follows transformers: of the 2 * beams best candidates a step, those that end are kept if they are among the
    first `beams`, the best of the others go on. It is over when `beams` texts have ended and the best that goes on,
    scored as if it ended at its present length, is no better than the worst of them.
    """

    def __init__(self, prompt: Prompt, text: Continuation) -> None:
        self.prompt = prompt
        self.sampling = text.sampling
        self.beams = [_Beam(text, 0.0)]
        self.ended: list[_Beam] = []

    def extend(self, candidates: list[_Candidate]) -> list[int]:
        """Go on with the best candidates; which beam each one that goes on came from."""
        n_beams = self.sampling.beams
        going: list[_Beam] = []
        sources: list[int] = []
        length = len(self.beams[0].text.tokens) + 1
        best = sorted(candidates, key=lambda candidate: candidate.total, reverse=True)[: 2 * n_beams]
        for rank, candidate in enumerate(best):
            if rank >= n_beams and len(going) == n_beams:
                break
            beam = self.beams[candidate.beam].extended(candidate)
            if beam.text.stopped_by is None:
                if len(going) < n_beams:
                    going.append(beam)
                    sources.append(candidate.beam)
            elif rank < n_beams:
                self.ended.append(_Beam(beam.text, self._score(beam.total, length)))
        self.ended = sorted(self.ended, key=lambda beam: beam.total, reverse=True)[:n_beams]
        self.beams = going
        if going and len(self.ended) == n_beams and self._score(going[0].total, length) <= self.ended[-1].total:
            self.beams, sources = [], []
        return sources

    def _score(self, total: float, length: int) -> float:
        return total / math.pow(length, self.sampling.length_penalty)

    def generations(self) -> list[Generation]:
        """The best texts, as many as there are samples; ConfigError if the options leave fewer."""
        wanted = self.sampling.samples
        if len(self.ended) < wanted:
            raise ConfigError(
                f"samples={wanted}: beam search found {len(self.ended)} texts after prompt {self.prompt.number}; "
                "the bans, no_repeat_ngram and max_new_tokens leave no others"
            )
        best = enumerate(self.ended[:wanted])
        return [beam.text.generation(self.prompt, sample=k, score=beam.total) for k, beam in best]


def search(
    model: GPT, tokenizer: "Tokenizer", prompts: list[Prompt], rules: TokenRules, timing: Timing
) -> list[Generation]:
    """The best texts of each prompt, as many as there are samples, best first; the time is added to `timing`.

    A text's score is its summed log-probability / (number of new tokens ** length_penalty); the end-of-text token
    counts as one. Penalties act on the log-probabilities, which are not made to sum to 1 again, as in transformers
    with early_stopping=False.
    """
    sampling, start = rules.sampling, time.perf_counter()
    searches = [_Search(prompt, Continuation(tokenizer, sampling)) for prompt in prompts]
    history = None
    with torch.inference_mode():
        batch = CachedBatch(model, [prompt.tokens for prompt in prompts], sampling.max_new_tokens)
        logits = batch.prefill()
        if uses_history(sampling):
            history = History([prompt.tokens for prompt in prompts], logits.device)
        timing.prefill_tokens += sum(len(prompt.tokens) for prompt in prompts)
        timing.prefill_seconds += time.perf_counter() - start
        start, live = time.perf_counter(), searches
        while rows := _extend(live, _candidates(logits, live, rules, history)):
            live = [one for one in live if one.beams]
            tokens = [beam.text.tokens[-1] for one in live for beam in one.beams]
            batch.keep(rows)
            if history is not None:
                history.keep(rows)
                history.add(tokens)
            logits = batch.step(tokens)
            timing.decode_tokens += len(tokens)
        timing.decode_seconds += time.perf_counter() - start
    return [generation for one in searches for generation in one.generations()]


def _candidates(
    logits: Tensor, searches: list[_Search], rules: TokenRules, history: History | None
) -> list[list[_Candidate]]:
    """The best candidates of each search, given the logits (B, V) of all their beams in a row."""
    likeliest(logits)  # or they are not finite
    own = logits.log_softmax(dim=-1)
    allowed = rules.apply(own, history, len(searches[0].beams[0].text.tokens))
    # All of a search's best candidates are among the best of their beams: no sum over the vocabulary is needed.
    n_each = min(2 * rules.sampling.beams, logits.shape[-1])
    values, ids = allowed.topk(n_each, dim=-1)  # (B, n_each)
    rows = iter(zip(values.tolist(), ids.tolist(), own.gather(-1, ids).tolist(), strict=True))
    return [
        [
            _Candidate(beam.total + value, n, token, logprob)
            for n, (beam, row) in enumerate(zip(one.beams, rows, strict=False))
            for value, token, logprob in zip(*row, strict=True)
            if value > -torch.inf
        ]
        for one in searches
    ]


def _extend(searches: list[_Search], candidates: list[list[_Candidate]]) -> list[int]:
    """Take each search a step on; the row of the batch that each beam came from, for all that go on."""
    rows, first = [], 0
    for one, of_one in zip(searches, candidates, strict=True):
        n_before = len(one.beams)
        rows += [first + source for source in one.extend(of_one)]
        first += n_before
    return rows
