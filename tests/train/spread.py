"""A float64 model trained by the processes of torchrun; the first one writes loss and gradient norm of each step.

torchrun --nproc-per-node 2 -m tests.train.spread out.json ddp fsdp
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from nlpstack.data.batch import Bucketed, Loader
from nlpstack.model import GPT, TransformerConfig
from nlpstack.train.runtime import rank, world_size
from tests.train.test_trainer import CONTEXT, VOCAB, collate, trainer

STEPS = 50
# An epoch's last batch has three rows: of four processes one has nothing to do.
ORDER = {"lengths": np.full(67, CONTEXT), "batch_size": 8, "seed": 0}


def train(kind: str, folder: Path) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of this process's share of the work."""
    torch.set_num_threads(1)
    config = TransformerConfig(vocab_size=VOCAB, max_seq_len=CONTEXT, dim=16, n_layers=2, n_heads=2)
    run = trainer(
        folder,
        model=GPT.create(config, seed=0).double(),
        loader=Loader(Bucketed(**ORDER), collate, micro_batch=2, share=(rank(), world_size())),
        train={"steps": STEPS, "parallel": kind},
        micro_batch=2,
        choices={"steps": STEPS},
    )
    return [(report.loss, report.grad_norm) for report in run.steps()]


def main() -> None:
    """Train as one of the processes, and write what came of it."""
    out, *kinds = sys.argv[1:]
    dist.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: train(kind, Path(folder)) for kind in kinds}
    if not rank():
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
