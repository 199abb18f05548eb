"""What the tokens that a text already holds make of the next one's logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nlpstack.decode.sampling import Sampling


class History:
    """All tokens of each row, its whole prompt included, also of what a sliding context has dropped."""

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self.n_prompt = max(map(len, prompts))
        padded = [[-1] * (self.n_prompt - len(prompt)) + list(prompt) for prompt in prompts]
        self.tokens = torch.tensor(padded, dtype=torch.long, device=device)  # (B, S), -1 left of the shorter prompts

    @property
    def new(self) -> Tensor:
        """The tokens behind the prompts (B, T)."""
        return self.tokens[:, self.n_prompt :]

    def add(self, tokens: Sequence[int]) -> None:
        """Go on with one more token a row."""
        column = torch.tensor(tokens, device=self.tokens.device)[:, None]
        self.tokens = torch.cat((self.tokens, column), dim=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order; a row may be named more than once."""
        self.tokens = self.tokens[torch.tensor(rows, device=self.tokens.device)]


def counts(tokens: Tensor, like: Tensor) -> Tensor:
    """How often each row of tokens (B, S) holds each token, (B, V) in the shape and dtype of `like`; -1 is none."""
    return torch.zeros_like(like).scatter_add_(1, tokens.clamp(min=0), (tokens >= 0).to(like.dtype))


def penalize_repetition(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Logits (B, V), those of the tokens (B, S) divided by the penalty, or multiplied where negative.

    Keskar et al. 2019, CTRL, section 4.1, with the multiplication that transformers adds.
    """
    lowered = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(counts(tokens, logits) > 0, lowered, logits)


def penalize_frequency(logits: Tensor, tokens: Tensor, frequency: float, presence: float) -> Tensor:
    """Logits (B, V) less `frequency` for each time a token occurs among tokens (B, S) and `presence` if it does.

    As OpenAI's API defines frequency_penalty and presence_penalty.
    """
    n = counts(tokens, logits)
    return logits - frequency * n - presence * (n > 0)


def repeated_ngrams(tokens: Tensor, n: int, like: Tensor) -> Tensor:
    """True (B, V), the shape of `like`, at each token that would end n tokens in a row which tokens (B, S) hold."""
    if tokens.shape[1] < n:
        return torch.zeros_like(like, dtype=torch.bool)
    windows = tokens.unfold(1, n, 1)  # (B, S - n + 1, n)
    begun = (windows[..., :-1] == windows[:, -1:, 1:]).all(dim=-1)  # the last n - 1 tokens stand here too
    held = begun & (windows >= 0).all(dim=-1)  # (B, S - n + 1)
    last = windows[..., -1].clamp(min=0)
    return torch.zeros_like(like).scatter_add_(1, last, held.to(like.dtype)) > 0


def penalize(logits: Tensor, history: History, sampling: Sampling) -> Tensor:
    """Logits (B, V) after all of a Sampling's penalties, -inf for what no_repeat_ngram rules out."""
    everything, new, prompt = history.tokens, history.new, sampling.penalize_prompt
    if sampling.repetition_penalty != 1:
        tokens = new if prompt is False else everything
        logits = penalize_repetition(logits, tokens, sampling.repetition_penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        tokens = everything if prompt else new
        logits = penalize_frequency(logits, tokens, sampling.frequency_penalty, sampling.presence_penalty)
    if sampling.no_repeat_ngram:
        tokens = new if prompt is False else everything
        logits = logits.masked_fill(repeated_ngrams(tokens, sampling.no_repeat_ngram, logits), -torch.inf)
    return logits


def uses_history(sampling: Sampling) -> bool:
    """Whether a token's chances depend on the tokens before it by more than the model."""
    penalties = (sampling.frequency_penalty, sampling.presence_penalty, sampling.no_repeat_ngram)
    return sampling.repetition_penalty != 1 or any(penalties)
