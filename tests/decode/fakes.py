"""A tokenizer of single bytes and small random models whose scores differ clearly."""

from collections.abc import Iterable

import torch

from nlpstack.decode.sampling import Sampling, choose, row_generator
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


def uncached(model: GPT, prompt: str, sampling: Sampling, *, row: int = 0) -> tuple[list[int], int]:
    """New tokens and slides of one prompt, by a full forward pass over its window for each token."""
    tokenizer, context = model.tokenizer, model.config.max_seq_len
    banned = [token for token in tokenizer.special_ids if token != tokenizer.eos_id]
    window, new, slides = tokenizer.encode(prompt) or [tokenizer.bos_id], [], 0
    generator = row_generator(sampling.seed, row)
    while len(new) < sampling.max_new_tokens:
        if len(window) > context:
            window, slides = window[-max(1, context // 2) :], slides + 1
        with torch.no_grad():
            logits = model(torch.tensor([window]))[:, -1]
        logits[:, banned] = -torch.inf
        new += choose(logits, sampling, [generator])
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
