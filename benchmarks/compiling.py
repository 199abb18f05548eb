"""Compiled training steps beside eager ones, in turn, and what compiling costs; behind `compile_pays`.

python benchmarks/compiling.py [--dtype fp32]
"""

import argparse
import statistics
import time

import torch

from nlpstack.model import GPT, TransformerConfig
from nlpstack.model.kernels import faster_in_training
from nlpstack.model.losses import linear_cross_entropy, loss_chunk

PAIRS = 5
STEPS = 5
SHAPES = {  # name -> (dim, layers, heads, context, batch, vocabulary, dropout)
    "4 layers, 128 wide, context 64, batch 12": (128, 4, 4, 64, 12, 70, 0.0),
    "4 layers, 192 wide, context 128, batch 16": (192, 4, 6, 128, 16, 4096, 0.0),
    "4 layers, 192 wide, context 128, batch 16, dropout 0.1": (192, 4, 6, 128, 16, 4096, 0.1),
    "6 layers, 384 wide, context 256, batch 8": (384, 6, 6, 256, 8, 8192, 0.0),
}


def main() -> None:
    """Measure every shape and print the ratio with its spread, the seconds of the first step, and FLOP/s."""
    import torch._inductor.config as inductor

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of products")
    dtype = options.parse_args().dtype
    torch.use_deterministic_algorithms(True)  # as in every run on a CPU
    torch.utils.deterministic.fill_uninitialized_memory = False
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}; eager / compiled, {PAIRS} pairs")
    for name, (dim, n_layers, n_heads, context, batch, vocab, dropout) in SHAPES.items():
        config = TransformerConfig(
            vocab_size=vocab, max_seq_len=context, dim=dim, n_layers=n_layers, n_heads=n_heads, dropout=dropout
        )
        model = GPT.create(config, seed=0).train()
        model.transformer.train_attention = faster_in_training("cpu", dtype, dropout)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        rows = torch.randint(vocab, (batch, context + 1), generator=torch.Generator().manual_seed(0))
        chunk = loss_chunk(vocab)

        def eager(rows: torch.Tensor, model: GPT = model, chunk: int = chunk) -> torch.Tensor:
            return linear_cross_entropy(model.transformer(rows[:, :-1]), model.unembedding, rows[:, 1:], chunk)

        def reading(loss_of, n_steps: int, optimizer=optimizer, rows=rows) -> float:
            started = time.perf_counter()
            for _ in range(n_steps):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
                    loss = loss_of(rows)
                (loss / rows[:, 1:].numel()).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return (time.perf_counter() - started) / n_steps

        with inductor.patch(force_disable_caches=True):
            torch._dynamo.reset()
            compiled = torch.compile(eager, dynamic=False)
            first = reading(compiled, 1)
            reading(eager, 1)
            pairs = [[reading(eager, STEPS), reading(compiled, STEPS)] for _ in range(PAIRS)]
        ratios = sorted(e / c for e, c in pairs)
        seconds = statistics.median(e for e, _ in pairs)
        flops = 6 * sum(p.numel() for p in model.parameters()) * batch * context / seconds
        print(
            f"{name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}); "
            f"eager {seconds * 1e3:.0f} ms, {flops / 1e9:.0f} GFLOP/s; first compiled step {first:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
