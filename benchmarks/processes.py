"""Two processes of torchrun on two cores, a thread each, beside one process on both: tokens a second of training.

    python benchmarks/processes.py [--pairs 5] [--kind ddp|fsdp] [--rows 1]

Each reading is a run of its own, in turn; its first steps, which warm up, do not count. Eager on both sides, in bf16
where the processor multiplies it fast: what differs is how the work is shared.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pairs

WARM, STEPS = 10, 60
SHAPES = {
    "GPT 4 x 128, context 64, batch 12": {"dim": 128, "n_layers": 4, "n_heads": 4, "max_seq_len": 64},
    "GPT 6 x 384, context 256, batch 16": {"dim": 384, "n_layers": 6, "n_heads": 6, "max_seq_len": 256},
}


def reading(shape: str, kind: str, n: int, folder: Path) -> float:
    """Tokens a second of `n` processes behind the first steps."""
    out = folder / f"run-{n}"
    values = {
        **{f"model.{key}": value for key, value in SHAPES[shape].items()},
        **{"train.steps": WARM + STEPS, "train.batch_size": int(shape.rpartition(" ")[2]), "train.log_every": WARM},
        **{"train.val_every": 0, "train.checkpoint_every": 0, "train.compile": "false", "train.samples": 0},
        **{"train.parallel": kind, "tokenizer.vocab_size": 4096, "eval.max_tokens": 300, "eval.resamples": 0},
    }
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)] if n > 1 else []
    command = [sys.executable, *launch, "-m", "nlpstack", "pretrain", "gpt", "--threads", str(2 // n), "--quiet"]
    command += ["--overwrite", "--out", str(out), *words]
    subprocess.run(command, env=pairs.ENV | {"OMP_NUM_THREADS": str(2 // n)}, capture_output=True, check=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    warm, last = (
        next(one for one in records if one["step"] == step and "loss" in one) for step in (WARM, WARM + STEPS)
    )
    return (last["tokens"] - warm["tokens"]) / (last["seconds"] - warm["seconds"])


def main() -> None:
    """Compare, and print a table."""
    parser = pairs.parser(__doc__)
    parser.add_argument("--kind", action="append", choices=["ddp", "fsdp"], help="repeatable; both if none is given")
    parser.add_argument("--rows", type=int, default=len(SHAPES), help="so many of the shapes")
    given = parser.parse_args()
    print(pairs.describe("cpu", ["torch"]), "\n")
    print("| what | two processes / one (smallest to largest) | two, tokens/s | one, tokens/s |\n|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.kind or ["ddp", "fsdp"]:
            for shape in list(SHAPES)[: 1 if given.quick else given.rows]:
                rounds = [
                    tuple(reading(shape, kind, n, Path(folder)) for n in (2, 1))
                    for _ in range(1 if given.quick else given.pairs)
                ]
                ratios = pairs.spread([two / one for two, one in rounds])
                two, one = (statistics.median(side) for side in zip(*rounds, strict=True))
                print(f"| {kind}, {shape} | {ratios} | {two:,.0f} | {one:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
