"""The smallest recipe that is real, for runs through the library."""

from pathlib import Path

from nlpstack.samples import sample

N_CHARS = 40_000

# A few hundred thousand FLOPs a step.
TINY = (
    "model.dim=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.max_seq_len=32",
    "model.dropout=0.1",
    "tokenizer.vocab_size=500",
    "optim.lr=2e-3",
    "optim.warmup=4",
    "train.steps=20",
    "train.batch_size=8",
    "train.log_every=1",
    "train.val_every=10",
    "train.checkpoint_every=5",
    "train.sample_tokens=8",
    "train.dtype=fp32",
    "eval.max_tokens=2000",
    "eval.resamples=20",
)


def tiny_text(folder: Path) -> Path:
    """The beginning of the bundled Shakespeare as a file."""
    path = folder / "text.txt"
    path.write_text(sample("shakespeare").read_text(encoding="utf-8")[:N_CHARS], encoding="utf-8")
    return path
