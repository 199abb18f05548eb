"""Beam search: the best of the texts that begin with the best beginnings."""

from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor

from nlpstack.decode.cached_batch import CachedBatch
from nlpstack.decode.next_token import TokenRules, likeliest
from nlpstack.decode.text import Generation, Prompt, Text
from nlpstack.errors import ConfigError

# A beam and one token more: summed log-probability after penalties, row of the beam, token, and the token's
# log-probability under the model's own distribution.
_Candidate = tuple[float, int, int, float]


class Beams:
    """Each prompt's beams: those that go on, best first, and the best that have ended.

    It follows transformers with early_stopping=False: of the 2 * beams best candidates a step, those that end are kept
    if they are among the first `beams`, the best of the others go on. A search is over when `beams` texts have ended
    and the best that goes on, scored as if it ended at its present length, is no better than the worst of them.
    """

    def __init__(self, prompts: list[Prompt], rules: TokenRules) -> None:
        self.rules = rules
        self.going = [Text(prompt, rules) for prompt in prompts]
        self.ended: dict[int, list[Text]] = {prompt.number: [] for prompt in prompts}

    @torch.inference_mode()
    def extend(self, logits: Tensor, batch: CachedBatch) -> None:
        """Take each search a step on, given the logits (B, V) of all beams."""
        likeliest(logits)  # or they are not finite
        own = logits.log_softmax(dim=-1)
        allowed = self.rules.apply(own, batch.tokens, batch.new)
        # All of a search's best candidates are among the best of their beams: no sum over the vocabulary is needed.
        best, ids = allowed.topk(min(2 * self.rules.sampling.beams, logits.shape[-1]), dim=-1)  # (B, 2 * beams)
        rows = list(zip(best.tolist(), ids.tolist(), own.gather(-1, ids).tolist(), strict=True))
        going: list[Text] = []
        for number, beams in groupby(enumerate(self.going), key=lambda beam: beam[1].prompt.number):
            candidates = [
                (beam.total + value, row, token, logprob)
                for row, beam in beams
                for value, token, logprob in zip(*rows[row], strict=True)
                if value > -torch.inf
            ]
            going += self._best(candidates, self.ended[number])
        self.going = going

    def _best(self, candidates: list[_Candidate], ended: list[Text]) -> list[Text]:
        """The beams with which a search goes on; those that end here are added to `ended`."""
        n_beams = self.rules.sampling.beams
        going: list[Text] = []
        best = sorted(candidates, key=itemgetter(0), reverse=True)[: 2 * n_beams]
        for rank, (total, row, token, logprob) in enumerate(best):
            if rank >= n_beams and len(going) == n_beams:
                break
            beam = self.going[row].copy()
            beam.total, beam.row = total, row
            beam.logprobs.append(logprob)
            beam.add(token)
            if beam.stopped_by is None and len(going) < n_beams:
                going.append(beam)
            elif beam.stopped_by is not None and rank < n_beams:
                ended.append(beam)
        ended.sort(key=lambda beam: beam.score, reverse=True)
        del ended[n_beams:]
        over = going and len(ended) == n_beams and going[0].score <= ended[-1].score
        return [] if over else going

    def generations(self) -> list[Generation]:
        """Each prompt's best texts, as many as there are samples; ConfigError if the options leave fewer."""
        wanted = self.rules.sampling.samples
        for number, ended in self.ended.items():
            if len(ended) < wanted:
                found = f"beam search found {len(ended)} texts after prompt {number}"
                why = "the bans, no_repeat_ngram and max_new_tokens leave no others"
                raise ConfigError(f"samples={wanted}: {found}; {why}")
        return [text.generation(k) for ended in self.ended.values() for k, text in enumerate(ended[:wanted])]
