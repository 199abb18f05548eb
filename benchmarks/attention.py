"""Training steps with plain attention products beside the fused kernel, in turn; behind `faster_in_training`.

python benchmarks/attention.py
"""

import statistics
import time
from functools import partial
from itertools import product

import torch

from nlpstack.model import GPT, TransformerConfig
from nlpstack.model.losses import linear_cross_entropy, loss_chunk
from nlpstack.train.runtime import autocast, keep_freed_memory

PAIRS = 5
STEPS = 3  # a reading is the mean of so many
SHAPES = {  # name -> (dim, layers, heads, context, batch, vocabulary)
    "4 layers, 128 wide, context 64, batch 12": (128, 4, 4, 64, 12, 328),
    "4 layers, 192 wide, context 128, batch 16": (192, 4, 6, 128, 16, 4096),
    "6 layers, 384 wide, context 256, batch 8": (384, 6, 6, 256, 8, 8192),
}


def reading(model: GPT, optimizer: torch.optim.Optimizer, rows: torch.Tensor, product: str, dtype: str) -> float:
    """Seconds a training step takes."""
    model.transformer.train_attention = product
    chunk = loss_chunk(model.config.vocab_size)
    started = time.perf_counter()
    for _ in range(STEPS):
        with autocast(torch.device("cpu"), dtype):
            loss = linear_cross_entropy(model.transformer(rows[:, :-1]), model.unembedding, rows[:, 1:], chunk)
        (loss / rows[:, 1:].numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - started) / STEPS


def main() -> None:
    """Measure every shape in both dtypes and print the ratio with its spread."""
    keep_freed_memory()  # as the commands do
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; fused / plain, {PAIRS} pairs")
    for dtype, (name, (dim, n_layers, n_heads, context, batch, vocab)) in product(("bf16", "fp32"), SHAPES.items()):
        config = TransformerConfig(vocab_size=vocab, max_seq_len=context, dim=dim, n_layers=n_layers, n_heads=n_heads)
        model = GPT.create(config, seed=0).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        rows = torch.randint(vocab, (batch, context + 1), generator=torch.Generator().manual_seed(0))
        both = [partial(reading, model, optimizer, rows, kind, dtype) for kind in ("plain", "fused")]
        for read in both:
            read()
        pairs = [[read() for read in both] for _ in range(PAIRS)]
        ratios = sorted(fused / plain for plain, fused in pairs)
        plain, fused = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(
            f"{dtype}, {name}: {statistics.median(ratios):.2f} ({spread}); plain {plain:.0f} ms, fused {fused:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
