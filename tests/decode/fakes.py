"""Tokenizers of bytes or letters, small random models whose scores differ clearly, and decoding by definition."""

import math
from collections.abc import Iterable

import torch

from nlpstack.decode import Sampling
from nlpstack.decode.next_token import choose, row_generator
from nlpstack.model import GPT, TransformerConfig

N_SPECIALS = 4
SHAPES: dict[str, dict] = {
    "learned": {},
    "rotary-grouped": {
        "positions": "rotary",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "bias": False,
        "n_kv_heads": 2,
        "tied": False,
    },
    "sinusoidal": {"positions": "sinusoidal", "pre_norm": False, "activation": "relu"},
}


class ByteTokenizer:
    """Four special ids, then one id a byte."""

    pad_id, unk_id, bos_id, eos_id = range(N_SPECIALS)
    special_ids = frozenset(range(N_SPECIALS))
    vocab_size = N_SPECIALS + 256

    def __init__(self, *, eos: bool = True, bos: bool = True) -> None:
        self.eos_id = 3 if eos else None
        self.bos_id = 2 if bos else None

    def encode(self, text: str) -> list[int]:
        return [N_SPECIALS + byte for byte in text.encode()]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token - N_SPECIALS]) if token >= N_SPECIALS else b""

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")


class LetterTokenizer(ByteTokenizer):
    """Four special ids, then as many letters of the alphabet."""

    def __init__(self, n_letters: int) -> None:
        super().__init__()
        self.vocab_size = N_SPECIALS + n_letters

    def encode(self, text: str) -> list[int]:
        return [N_SPECIALS + ord(letter) - ord("a") for letter in text]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token - N_SPECIALS + ord("a")]) if token >= N_SPECIALS else b""


def letter_model(n_letters: int, shape: str = "learned", **values) -> GPT:
    """A random model of a few letters."""
    model = random_model(shape, vocab_size=N_SPECIALS + n_letters, **values)
    model.tokenizer = LetterTokenizer(n_letters)
    return model


def random_model(shape: str = "learned", *, seed: int = 0, max_seq_len: int = 32, eos: bool = True, **values) -> GPT:
    """A two-layer model with weights ten times as large as fresh ones, so that no two scores are nearly equal."""
    values = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": ByteTokenizer.vocab_size} | SHAPES[shape] | values
    model = GPT.create(
        TransformerConfig(max_seq_len=max_seq_len, **values), seed=seed, tokenizer=ByteTokenizer(eos=eos)
    )
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(10)
    return model.eval()


def by_definition(
    logits: list[float], sampling: Sampling, prompt: list[int], new: list[int], tokenizer: ByteTokenizer
) -> list[float]:
    """One row's logits after bias, penalties, bans and forced tokens (ids only), token by token in plain Python."""
    never = tokenizer.special_ids - {tokenizer.eos_id} | set(sampling.banned)
    if len(new) < len(sampling.forced):
        return [logit if token == sampling.forced[len(new)] else -math.inf for token, logit in enumerate(logits)]
    repeated = new if sampling.penalize_prompt is False else prompt + new
    counted = prompt + new if sampling.penalize_prompt else new
    size = sampling.no_repeat_ngram
    ngrams = {tuple(repeated[at : at + size]) for at in range(len(repeated) - size + 1)} if size else set()
    end = tuple(repeated[len(repeated) - size + 1 :]) if size else ()
    out = []
    for token, logit in enumerate(logits):
        logit += sampling.logit_bias.get(token, 0)
        if token in repeated:
            logit = logit * sampling.repetition_penalty if logit < 0 else logit / sampling.repetition_penalty
        if token in counted:
            logit -= counted.count(token) * sampling.frequency_penalty + sampling.presence_penalty
        early = token == tokenizer.eos_id and len(new) < sampling.min_new_tokens
        if token in never or early or (*end, token) in ngrams:
            logit = -math.inf
        out.append(logit)
    return out


def uncached(model: GPT, prompt: str, sampling: Sampling, *, row: int = 0, sample: int = 0) -> tuple[list[int], int]:
    """New tokens and slides of one prompt, by a full forward pass over its window for each token."""
    tokenizer, context = model.tokenizer, model.config.max_seq_len
    start, new, slides = tokenizer.encode(prompt) or [tokenizer.bos_id], [], 0
    window = list(start)
    generator = row_generator(sampling.seed, *(row, sample)[: 2 if sample else 1])
    while len(new) < sampling.max_new_tokens:
        if len(window) > context:
            window, slides = window[-max(1, context // 2) :], slides + 1
        with torch.no_grad():
            logits = model(torch.tensor([window]))[0, -1]
        allowed = torch.tensor([by_definition(logits.tolist(), sampling, start, new, tokenizer)], dtype=logits.dtype)
        new += choose(allowed, sampling, [generator])
        window.append(new[-1])
        if new[-1] == tokenizer.eos_id:
            break
    return new, slides


def scripted(model: GPT, tokens: list[int]) -> GPT:
    """The model, made to prefer these tokens one after the other in every row."""
    script = iter(tokens)

    def next_logits(*args, **kwargs) -> torch.Tensor:
        logits = GPT.next_logits(model, *args, **kwargs)
        logits[:, next(script)] = 1e6
        return logits

    model.next_logits = next_logits
    return model
