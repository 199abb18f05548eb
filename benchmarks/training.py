"""Training beside transformers' Trainer (peer_training.py), in turn: tokens/s, data loading and optimizer included.

    python benchmarks/training.py [--rows gpt-char ner ...] [--peers default best compiled] [--set train.compile=false]
    python benchmarks/training.py --losses [--rows ...]    # what 200 steps come to, beside fp32 runs of two seeds, and
                                                           # beside the peer unless --peers is empty
    python benchmarks/training.py --profile [--rows ...]   # where a step's time goes, and what making batches takes

Our side is a run as the commands make it: loader, trainer and optimizer by nlpstack.job, the choices those of a run of
RUN_STEPS steps. What the peers are is told in peer_training.py. `--losses` holds the losses of that run to those of the
same seed in plain fp32 (eager, the fused attention kernel), by windows of 50 steps: the largest difference must not
be above what another seed makes. `--set` changes our side's recipe, to see what a choice is worth.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pairs

RUN_STEPS = 20_000
LOSS_STEPS, WINDOW = 200, 50
OPTIM = {
    "name": "adamw",
    "lr": 3e-4,
    "weight_decay": 0.01,
    "beta2": 0.999,
    "schedule": "linear",
    "warmup": 100,
    "clip": 1.0,
}
PEERS = ("default", "best", "compiled")
TARGETS = '["q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj"]'
WORDS = (5, 60)  # of the sentences of named entities


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    title: str
    recipe: str
    dim: int
    layers: int
    heads: int
    length: int
    batch: int
    dropout: float = 0.0
    vocab: int = 8192  # of the tokenizer; 0: every character
    grown: int = 0  # the model's vocabulary, where it is that of a published shape; the tokens are the tokenizer's
    warmup: int = 4  # steps before the first reading
    steps: int = 4  # of a reading
    peers: tuple[str, ...] = ("default", "best")  # compiled: where that is faster for it
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """Whether it pretrains or fine-tunes."""
        return "finetune" if self.recipe.startswith("ner") else "pretrain"

    def tiny(self) -> "Row":
        """The same with next to nothing to do."""
        return replace(
            self, dim=16, layers=2, heads=2, length=min(self.length, 64), batch=4, vocab=self.vocab and 400, grown=0
        )


_GPT = {"recipe": "gpt", "more": {"model.activation": "gelu_tanh"}}
_BERT = {"recipe": "bert", "dropout": 0.1}
_NER = {"dim": 384, "layers": 6, "heads": 6, "length": 128, "batch": 32, "dropout": 0.1, "warmup": 8, "steps": 20}
_SMALL, _BASE = {"dim": 384, "layers": 6, "heads": 6}, {"dim": 768, "layers": 12, "heads": 12}
_CHAR = {"dim": 128, "layers": 4, "heads": 4, "length": 64, "batch": 12, "vocab": 0, "warmup": 20, "steps": 100}
_ON_GPU = {"warmup": 10, "steps": 20}
ROWS = {
    "gpt-char": Row(title="GPT 4 x 128, context 64, batch 12, characters", peers=PEERS, **_CHAR, **_GPT),
    "gpt-384": Row(
        title="GPT 6 x 384, context 256, batch 16, vocabulary 8,192", length=256, batch=16, **_SMALL, **_GPT
    ),
    "gpt2-124m": Row(
        title="GPT-2 124M, context 512, batch 2", length=512, batch=2, grown=50257, warmup=2, steps=2, **_BASE, **_GPT
    ),
    "bert-384": Row(
        title="BERT MLM + NSP 6 x 384, length 128, batch 32, vocabulary 8,192", length=128, batch=32, **_SMALL, **_BERT
    ),
    "bert-base": Row(
        title="BERT-base, length 128, batch 8", length=128, batch=8, grown=30522, warmup=2, steps=2, **_BASE, **_BERT
    ),
    "ner": Row(title="NER full, 6 x 384, 5-60 words, batch 32 (real tokens)", recipe="ner", **_NER),
    "ner-lora": Row(title="NER LoRA rank 8, the same", recipe="ner-lora", more={"lora.targets": TARGETS}, **_NER),
}
GPU_ROWS = {
    "gpt2-124m-1024": Row(
        title="GPT-2 124M, context 1,024, batch 32", length=1024, batch=32, grown=50257, **_BASE, **_ON_GPU, **_GPT
    ),
    "bert-base-512": Row(
        title="BERT-base, length 512, batch 64", length=512, batch=64, grown=30522, **_BASE, **_ON_GPU, **_BERT
    ),
}


def settings(row: Row, seed: int, cache: Path, device: str, sets: list[str]) -> list[str]:
    """The row's recipe as overrides."""
    values = {
        **{f"optim.{key}": value for key, value in OPTIM.items()},
        "optim.min_lr": 0.0,
        "model.dropout": row.dropout,
        "data.cache": str(cache),
        "train.batch_size": row.batch,
        "train.seed": seed,
        "train.device": device,
        **row.more,
    }
    if row.stage == "pretrain":
        shape = {"dim": row.dim, "n_layers": row.layers, "n_heads": row.heads, "max_seq_len": row.length}
        values |= {"train.steps": RUN_STEPS, **{f"model.{key}": value for key, value in shape.items()}}
        values |= {"tokenizer.kind": "unigram", "tokenizer.vocab_size": row.vocab} if row.vocab else {}
    else:
        values |= {"data.paths": json.dumps([str(sentences(cache))]), "train.epochs": 100.0}
    return [*(f"{key}={value}" for key, value in values.items()), *sets]


def sentences(cache: Path) -> Path:
    """The bundled sentences of 5 to 60 words, as a data folder; and their text, for a tokenizer."""
    from nlpstack.data.labelled import load_labelled

    folder = cache / "sentences"
    if not folder.exists():
        folder.mkdir()
        splits: Any = load_labelled(["sample:uner_en_ewt"], "ner", val_share=0.1, seed=0, note=lambda line: None)
        for part in ("train", "val"):
            kept = [one for one in splits[part] if WORDS[0] <= len(one.words) <= WORDS[1]]
            lines = [json.dumps({"tokens": list(one.words), "tags": list(one.tags)}) + "\n" for one in kept]
            (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
            if part == "train":
                text = "\n\n".join(" ".join(one.words) for one in kept)
                (cache / "words.txt").write_text(text, encoding="utf-8")
    return folder


def start_of(row: Row, cache: Path) -> Path:
    """A fresh encoder to fine-tune, as a model folder."""
    from nlpstack.hub import save_model
    from nlpstack.model import BERT, TransformerConfig
    from nlpstack.prepare import train_tokenizer_on

    place = cache / f"encoder-{row.dim}"
    if not place.exists():
        sentences(cache)
        made = train_tokenizer_on([str(cache / "words.txt")], {"vocab_size": row.vocab}, cache / f"words-{row.vocab}")
        shape = {"dim": row.dim, "n_layers": row.layers, "n_heads": row.heads, "max_seq_len": row.length}
        form = {"causal": False, "pre_norm": False, "norm_eps": 1e-12, "n_segments": 2}
        config = TransformerConfig(vocab_size=made.vocab_size, dropout=row.dropout, **shape, **form)
        save_model(BERT.create(config, seed=0, tokenizer=made), place)
    return place


@contextmanager
def our_run(row: Row, given: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """Our trainer before its first step, made by the code that makes a command's, and its material."""
    from nlpstack import finetune, pretrain
    from nlpstack.job import Job, RunOptions, run_session
    from nlpstack.start import begin_with
    from nlpstack.train import runtime
    from nlpstack.train.run import Reporter, RunFolder, load_run

    cache, options = Path(given.cache), RunOptions()
    run = load_run(row.recipe, row.stage, {}, settings(row, given.seed, cache, given.device, given.set))
    if row.stage == "finetune":
        place = start_of(row, cache)
        start, run = begin_with(place, run)
        prepare = partial(finetune._prepare, run, start, place)
    else:
        prepare = partial(pretrain._prepare, run, None, options)
    runtime.keep_freed_memory()  # as the commands do
    with tempfile.TemporaryDirectory() as scratch, run_session(run.config):
        job = Job(run, options, RunFolder(Path(scratch)), Reporter(), partial(_grown, row, prepare))
        material = job.prepare(cache, job.say)
        trainer = job._trainer(material, None)
        if given.plain:  # the arithmetic that everything else is held to
            trainer.model.transformer.train_attention = "fused"
        yield trainer, material


def _grown(row: Row, prepare: Any, *given: Any) -> Any:
    """A stage's material, the model with a larger vocabulary if the row wants one."""
    from nlpstack.model import BERT, GPT

    kind = GPT if row.recipe == "gpt" else BERT
    create = kind.create

    def larger(config: Any, **given: Any) -> Any:
        return create(replace(config, vocab_size=row.grown or config.vocab_size), **given)

    with mock.patch.object(kind, "create", larger):
        return prepare(*given)


def our_side(row: Row, given: argparse.Namespace) -> None:
    """Train until nothing more is asked for."""
    from nlpstack.train.runtime import peak_flops
    from nlpstack.train.trainer import flops_per_token

    with our_run(row, given) as (trainer, _):
        if given.losses:
            steps = trainer.steps()
            pairs.tell(losses=[next(steps).loss for _ in range(given.losses)])
            return
        flops = flops_per_token(trainer.model, predicted=trainer.task.predicted_share)["training"]
        share = flops / peak_flops(trainer.device, trainer.choices.dtype)[0] if given.device == "cuda" else None
        gauge = pairs.Gauge(warmup=given.warmup, steps=given.steps, device=given.device, utilisation_of_one=share)
        for report in trainer.steps():
            if not gauge.step(report.n_tokens):
                return


def write_rows(row: Row, given: argparse.Namespace) -> None:
    """Write what we train on as the peer's rows: the first epoch's, before tokens are hidden."""
    from nlpstack.model import GPT
    from nlpstack.train.runtime import fast_bf16

    with our_run(row, given) as (trainer, material):
        config, tokenizer = trainer.model.config, trainer.model.tokenizer
        numbers = range(min(material.order.n_examples, 20_000))
        shape: dict[str, Any] = {
            **{"vocab": config.vocab_size, "dim": config.dim, "layers": config.n_layers, "heads": config.n_heads},
            **{"length": config.max_seq_len, "batch": row.batch, "dropout": config.dropout, "steps": RUN_STEPS},
            **{"lr": OPTIM["lr"], "warmup": OPTIM["warmup"], "decay": OPTIM["weight_decay"], "clip": OPTIM["clip"]},
            **{"pad": tokenizer.pad_id or 0, "mask": tokenizer.mask_id, "marks": sorted(tokenizer.special_ids)},
            "bf16": fast_bf16(trainer.device),
        }
        arrays: dict[str, Any] = {}
        if isinstance(trainer.model, GPT):
            shape["kind"] = "gpt"
            rows = [material.collate([(0, number)]).tokens[0].numpy() for number in numbers]
        elif row.stage == "pretrain":
            shape |= {"kind": "pairs", "share": trainer.task.config.mask_share}
            made = [material.collate.__self__.row(0, number) for number in numbers]  # type: ignore[attr-defined]
            rows = [one.tokens for one in made]
            arrays = {"n_first": [one.n_first for one in made], "following": [one.label for one in made]}
        else:
            rank = 8 if row.recipe == "ner-lora" else 0
            shape |= {"kind": "ner", "rank": rank, "labels": len(trainer.task.labels.names)}
            batches = [material.collate([(0, number)]) for number in numbers]
            rows = [batch.tokens[0].numpy() for batch in batches]
            arrays = {"labels": np.concatenate([batch.labels["tag"][0].numpy() for batch in batches])}
        lengths = [len(one) for one in rows]
        np.savez(given.write, shape=json.dumps(shape), tokens=np.concatenate(rows), lengths=lengths, **arrays)
    pairs.tell(rows=len(rows))


def profile(row: Row, given: argparse.Namespace) -> None:
    """Print what making batches takes of a step, and the operations that take most of it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as traced

    with our_run(row, given) as (trainer, material):
        steps = trainer.steps()
        for _ in range(given.warmup):
            next(steps)
        waits, loader = [], trainer.loader
        wait = type(loader).micro_batches
        started = time.perf_counter()
        for _ in range(given.steps):
            next(steps)
        seconds = (time.perf_counter() - started) / given.steps
        for step in range(given.steps):
            started = time.thread_time()
            wait(loader, step)
            waits.append(time.thread_time() - started)
        shares = {"making batches": statistics.mean(waits)}
        if hasattr(getattr(material.collate, "__self__", None), "masked"):
            shares["of that masking and pairs"] = _masking_seconds(trainer, material, given.steps)
        print(f"\n{row.title}: {seconds * 1e3:,.1f} ms a step")
        for what, took in shares.items():
            print(f"  {what}: {took * 1e3:,.2f} ms, {took / seconds:.2%} of a step")
        with traced(activities=[ProfilerActivity.CPU]) as found:
            next(steps)
        averages = found.key_averages()
        total = sum(one.self_cpu_time_total for one in averages)
        for one in sorted(averages, key=lambda one: -one.self_cpu_time_total)[:16]:
            print(f"  {one.self_cpu_time_total / total:6.1%} {one.count:5} x {one.key}")


def _masking_seconds(trainer: Any, material: Any, n: int) -> float:
    """Seconds a step that its pairs and hidden tokens take, without padding and stacking."""
    seconds = []
    for step in range(n):
        examples, started = trainer.loader.order.step(step), time.thread_time()
        for example in examples:
            material.collate.__self__.masked(*example)
        seconds.append(time.thread_time() - started)
    return statistics.mean(seconds)


def command(name: str, given: argparse.Namespace, cache: Path, *more: str) -> list[str]:
    """Our side's command line."""
    options = ["--quick"] * given.quick + [f"--set={one}" for one in given.set]
    return [sys.executable, __file__, "--side", name, "--cache", str(cache), "--device", given.device, *options, *more]


def peer_command(rows: Path, given: argparse.Namespace, *more: str) -> list[str]:
    """A peer's command line."""
    return [
        sys.executable,
        str(Path(__file__).with_name("peer_training.py")),
        str(rows),
        "--device",
        given.device,
        *more,
    ]


def compare_losses(name: str, row: Row, given: argparse.Namespace, cache: Path, rows: Path) -> str:
    """A line of the table: mean losses of the windows' last, and how far ours is from plain fp32."""
    n = 20 if given.quick else LOSS_STEPS
    plain = ["--plain", "--set=train.dtype=fp32", "--set=train.compile=false"]
    runs = {
        "ours": command(name, given, cache, f"--losses={n}"),
        **{f"fp32 {seed}": command(name, given, cache, f"--losses={n}", f"--seed={seed}", *plain) for seed in (1, 2)},
    }
    for seed in () if given.peers == [] else (1, 2):
        runs[f"peer {seed}"] = peer_command(rows, given, f"--losses={n}", f"--seed={seed}")
    means = {}
    for run, line in runs.items():
        losses = pairs.ask(line).get("losses")
        means[run] = np.reshape(losses, (-1, n * WINDOW // LOSS_STEPS)).mean(axis=1) if losses else None
    own, other = (np.abs(means[run] - means["fp32 1"]).max() for run in ("ours", "fp32 2"))
    last = [f"{mean[-1]:.4f}" if mean is not None else "not installed" for mean in means.values()]
    last += ["not run"] * (5 - len(last))
    return f"| {' | '.join([row.title, *last, f'{own:.2g}', f'{other:.2g}', 'yes' if own <= other else 'NO'])} |"


def main() -> None:
    """Do what the options ask for, row by row."""
    options = pairs.parser(__doc__)
    every = {**ROWS, **GPU_ROWS}
    options.add_argument("--rows", nargs="+", choices=every, default=list(ROWS))
    options.add_argument("--peers", nargs="*", choices=PEERS, help="by default those of each row")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of our side's recipe")
    options.add_argument("--losses", type=int, nargs="?", const=LOSS_STEPS, default=0)
    options.add_argument("--profile", action="store_true")
    for flag, value in (("--side", None), ("--cache", None), ("--write", None)):  # of the processes that it starts
        options.add_argument(flag, default=value, help=argparse.SUPPRESS)
    options.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    options.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.quick:
        every, given.pairs = {name: row.tiny() for name, row in every.items()}, 1
    if given.side:
        row = every[given.side]
        given.warmup, given.steps = (1, 1) if given.quick else (row.warmup, row.steps)
        return (write_rows if given.write else profile if given.profile else our_side)(row, given)
    print(pairs.describe(given.device) + "\n")
    if given.losses:
        names = ("ours", "fp32, seed 1", "fp32, seed 2", "peer, seed 1", "peer, seed 2")
        print(f"| what | {' | '.join(names)} | ours from fp32 | seed from seed | within |\n|---{'|--:' * 8}|")
    elif not given.profile:
        print(pairs.header("tokens"))
    with tempfile.TemporaryDirectory() as folder:
        pairs.ENV["TMPDIR"] = folder  # what the sides leave behind goes with it
        for name in given.rows:
            run_row(name, every[name], given, Path(folder))


def run_row(name: str, row: Row, given: argparse.Namespace, cache: Path) -> None:
    """One row of what is asked for."""
    if given.profile:
        subprocess.run(command(name, given, cache, "--profile"), check=True)
        return
    rows = cache / f"{name}.npz"
    pairs.ask(command(name, given, cache, f"--write={rows}"))
    if given.losses:
        print(compare_losses(name, row, given, cache, rows), flush=True)
        return
    counts = ("1", "1") if given.quick else (str(row.warmup), str(row.steps))
    more = ["--warmup", counts[0], "--steps", counts[1]]
    peers = {peer: peer_command(rows, given, "--variant", peer, *more) for peer in given.peers or row.peers}
    on_gpu = given.device == "cuda"
    pairs.compare(row.title, command(name, given, cache), peers, pairs=given.pairs, together=on_gpu)


if __name__ == "__main__":
    main()
