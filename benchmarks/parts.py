"""Parts of a training step beside what they would be otherwise, in turn, in seconds of one thread's processor time.

    python benchmarks/parts.py [--quick] [--only loss attention attention-dropout dropout row]

Processor time of one thread is what other work on a machine disturbs least. Beside the rules of nlpstack.model.kernels
and `loss_chunk`; loss and attention in fp32.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import pairs
import torch
import torch.nn.functional as F
from torch import Tensor

from nlpstack.model.kernels import drop, fused_attention, linear, plain_attention
from nlpstack.model.losses import linear_cross_entropy
from nlpstack.train.runtime import keep_freed_memory

Work = Callable[[], object]
CONTEXTS = ((2, 12, 512, 64), (4, 6, 256, 64), (8, 6, 128, 64), (12, 4, 64, 32))  # batch, heads, tokens, width


def of_loss(quick: bool) -> Iterator[tuple[str, Work, Work]]:
    """The vocabulary's loss in chunks of 83 rows, some four million logits, and of 256."""
    vocab, dim = (600, 8) if quick else (50257, 768)
    weight, rows = torch.randn(vocab, dim, requires_grad=True), torch.randn(512, dim, requires_grad=True)
    labels = torch.randint(vocab, (512,))

    def step(chunk: int) -> Work:
        return lambda: linear_cross_entropy(rows, weight, labels, chunk).backward()

    yield f"loss of 512 rows over {vocab:,} words: chunks of 83 / 256", step(83), step(256)


def of_attention(quick: bool, p: float = 0.0) -> Iterator[tuple[str, Work, Work]]:
    """Plain products and the fused kernel, there and back, in fp32."""
    for size in CONTEXTS[-1:] if quick else CONTEXTS:
        q, k, v = (torch.randn(size, requires_grad=True) for _ in range(3))

        def step(product: Callable[..., Tensor], q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Work:
            return lambda: product(q, k, v, None, causal=True, dropout=p).sum().backward()

        title = f"attention in fp32 {size}{f', dropout {p}' * (p > 0)}: plain / fused"
        yield title, step(plain_attention), step(fused_attention)


def of_dropout(quick: bool) -> Iterator[tuple[str, Work, Work]]:
    """torch's dropout and that of 16 random bits a value, there and back."""
    n = 1 << (12 if quick else 20)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(n, dtype=dtype, requires_grad=True)
        along = torch.ones_like(x)

        def step(work: Callable[[Tensor, float], Tensor], x: Tensor = x, along: Tensor = along) -> Work:
            return lambda: work(x, 0.1).backward(along)

        yield f"dropout of {n:,} values, {dtype}: torch's / ours", step(F.dropout), step(drop)


def of_row(quick: bool) -> Iterator[tuple[str, Work, Work]]:
    """A linear layer of one row in bf16, without gradients, its weights not in a cache."""
    for n_out, n_in in ((768, 768), (3072, 768), (768, 3072), (50257, 768)):
        count = 2 if quick else max(2, 2**27 // (n_out * n_in))
        weights = itertools.cycle([torch.randn(n_out, n_in, dtype=torch.bfloat16) for _ in range(count)])
        row, bias = torch.randn(1, 1, n_in, dtype=torch.bfloat16), torch.randn(n_out, dtype=torch.bfloat16)

        def step(
            work: Callable[..., Tensor], weights: Iterator[Tensor] = weights, row: Tensor = row, bias: Tensor = bias
        ) -> Work:
            return torch.inference_mode()(lambda: work(row, next(weights), bias))

        yield f"one row in bf16, {n_in} to {n_out}: matrix product / matrix-vector", step(F.linear), step(linear)


def main() -> None:
    """Print a row for each part."""
    parts = {
        "loss": of_loss,
        "attention": of_attention,
        "attention-dropout": partial(of_attention, p=0.1),
        "dropout": of_dropout,
        "row": of_row,
    }
    options = pairs.parser(__doc__)
    options.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    given = options.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the commands do
    print(f"{pairs.describe('cpu', ('torch',))}\n\n| part | ratio (smallest to largest) | first, ms | second, ms |")
    print("|---|--:|--:|--:|")
    for name in given.only:
        for title, *works in parts[name](given.quick):
            rounds = [[_seconds(work) for work in works] for _ in range(1 + (1 if given.quick else given.pairs))][1:]
            first, second = (f"{statistics.median(side) * 1e3:.2f}" for side in zip(*rounds, strict=True))
            print(
                f"| {title} | {pairs.spread([one / other for one, other in rounds])} | {first} | {second} |", flush=True
            )


def _seconds(work: Work, least: float = 0.05) -> float:
    """Processor seconds that the work takes, of as many times as fill a moment."""
    started, n = time.process_time(), 0
    while time.process_time() - started < least:
        work()
        n += 1
    return (time.process_time() - started) / n


if __name__ == "__main__":
    main()
