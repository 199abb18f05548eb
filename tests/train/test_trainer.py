"""The loop on made-up data: counting, guards, early stopping, signals."""

import json
import math
import os
import signal
import sys
import threading
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from nlpstack.data.batch import IGNORE_INDEX, Batch, Loader, Shuffled
from nlpstack.errors import TrainingError
from nlpstack.model import GPT, TransformerConfig
from nlpstack.signals import Stopped, StopSignal
from nlpstack.tasks import CausalLM
from nlpstack.train.checkpoint import Checkpoints
from nlpstack.train.optim import OptimConfig
from nlpstack.train.run import MetricsLog, Reporter, TrainConfig
from nlpstack.train.runtime import Choices
from nlpstack.train.trainer import Trainer

VOCAB, CONTEXT, EXAMPLES = 40, 12, 64
CHOICES = Choices(
    steps=12, device="cpu", dtype="fp32", compile=False, threads=1, micro_batch=8, attention="plain", loss_chunk=16,
    deterministic=False, processor="", torch="", nlpstack="",
)  # fmt: skip


class Listener(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class BareTask(CausalLM):
    """The next-token task without a tokenizer, on ids alone."""

    def __init__(self) -> None:
        self.loss_chunk = 16


def collate(examples: list[tuple[int, int]]) -> Batch:
    rows = [torch.randint(VOCAB, (CONTEXT + 1,), generator=torch.Generator().manual_seed(i)) for _, i in examples]
    tokens = torch.stack(rows)
    labels = tokens[:, 1:].clone()
    for row, (_, index) in enumerate(examples):
        labels[row, : index % CONTEXT] = IGNORE_INDEX  # ragged: rows count unequally
    return Batch(tokens=tokens[:, :-1], labels={"lm": labels}, n_targets={"lm": int((labels != IGNORE_INDEX).sum())})


def trainer(folder: Path, *, micro_batch: int = 8, losses=(3.0,), dropout: float = 0.0, **given) -> Trainer:
    scores = iter([*losses, *[losses[-1]] * 100])
    config = TransformerConfig(vocab_size=VOCAB, max_seq_len=CONTEXT, dim=16, n_layers=2, n_heads=2, dropout=dropout)
    train = {"steps": 12, "batch_size": 8, "log_every": 1, "val_every": 3, "checkpoint_every": 4}
    values = {
        "model": GPT.create(config, seed=0),
        "task": BareTask(),
        "loader": Loader(Shuffled(EXAMPLES, batch_size=8, seed=0), collate, micro_batch=micro_batch),
        "config": TrainConfig(**{**train, **given.pop("train", {})}),
        "optim": OptimConfig(lr=1e-2, warmup=2),
        "choices": replace(CHOICES, micro_batch=micro_batch, **given.pop("choices", {})),
        "checkpoints": Checkpoints(folder / "checkpoints"),
        "log": MetricsLog(folder / "metrics.jsonl"),
        "reporter": Listener(),
        "validate": lambda: {"val": {"loss": next(scores)}, "samples": []},
    }
    torch.manual_seed(0)
    return Trainer(**{**values, **given})


def losses_of(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_add_up_to_the_batch(tmp_path, micro_batch):
    whole, parts = trainer(tmp_path), trainer(tmp_path, micro_batch=micro_batch)
    gradients = []
    for each in (whole, parts):
        means = each.accumulate(each.loader.micro_batches(0))
        gradients.append(torch.cat([p.grad.flatten() for p in each.model.parameters()]))
        assert means["lm"].item() == pytest.approx(math.log(VOCAB), abs=0.2)
    assert (gradients[0] - gradients[1]).norm() / gradients[0].norm() <= 1e-6


def test_the_loss_is_the_mean_over_targets_not_over_rows(tmp_path):
    run = trainer(tmp_path, micro_batch=2)
    batches = run.loader.micro_batches(0)
    mean = run.accumulate(batches)["lm"].item()
    with torch.no_grad():
        logits = torch.cat([run.model(batch.tokens) for batch in batches]).flatten(0, 1)
    labels = torch.cat([batch.labels["lm"] for batch in batches]).flatten()
    assert mean == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_training_lowers_the_loss_and_logs_every_step(tmp_path):
    run = trainer(tmp_path, choices={"steps": 60}, train={"steps": 60})
    run.train()
    found = losses_of(tmp_path)
    assert len(found) == 60
    assert found[-1] < found[0] - 0.3


@pytest.mark.parametrize("stopped_at", [1, 4, 7, 11])
def test_a_restored_run_ends_in_the_same_bits(tmp_path, stopped_at):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = trainer(tmp_path / "a", dropout=0.3)
    whole.train()
    first = trainer(tmp_path / "b", dropout=0.3)
    for report in first.steps():
        first._log_step(report)
        if report.step == stopped_at:
            first.save()
        if report.step == stopped_at + 1:
            break  # a step after the save is lost, as in a kill
    second = trainer(tmp_path / "b", dropout=0.3)
    second.restore(second.checkpoints.load_newest(print))
    torch.rand(7)  # whatever draws in between: the state comes from the checkpoint
    second.restore(second.checkpoints.load_newest(print))
    second.train()
    assert losses_of(tmp_path / "b") == losses_of(tmp_path / "a")
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_skips_the_step_then_stops_and_names_it(tmp_path):
    run = trainer(tmp_path, train={"max_skips": 2})
    before = [p.detach().clone() for p in run.model.parameters()]
    with torch.no_grad():
        run.model.transformer.norm.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"step 3: loss nan, gradient norm nan, batch of epoch 0.*Lower optim"):
        run.train()
    assert [line for line in run.reporter.lines if "step skipped (2 of at most 2" in line]
    for then, now in zip(before[:-2], list(run.model.parameters())[:-2], strict=True):
        assert torch.equal(then, now), "no weight moved"


def test_one_bad_step_in_between_is_survived(tmp_path):
    run = trainer(tmp_path)
    honest = run._run_loss
    run._run_loss = lambda model, batch: {
        k: v * (math.inf if run.state.step == 5 else 1) for k, v in honest(model, batch).items()
    }
    run.train()
    assert run.state.step == 12
    assert run.state.skips == 0
    assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_a_first_loss_far_from_that_of_fresh_weights_is_a_warning(tmp_path):
    for expected, warned in ((math.log(VOCAB), False), (math.log(VOCAB) + 1.0, True)):
        run = trainer(tmp_path, expected_first_loss=expected)
        next(iter(run.steps()))
        assert any("first loss" in line for line in run.reporter.lines) == warned


def test_early_stopping_ends_after_patience_and_survives_a_resume(tmp_path):
    run = trainer(tmp_path, losses=(3.0, 2.0, 2.5, 2.6), train={"patience": 2, "val_every": 2})
    run.train()
    assert run.state.step == 8
    assert run.state.best == 2.0
    assert run.state.best_step == 4
    saved = Checkpoints(tmp_path / "checkpoints").load_newest(print).state
    assert (saved["best"], saved["n_worse"]) == (2.0, 2)
    assert 4 in run.checkpoints.steps(), "the best one is kept"
    again = trainer(tmp_path, train={"patience": 2, "val_every": 2})
    again.restore(again.checkpoints.load_newest(print))
    again.train()
    assert again.state.step == 8, "a run that had stopped early does not go on"
    again.take_best()
    best = again.checkpoints.load(4).model
    assert all(torch.equal(best[name], value) for name, value in again.model.state_dict().items())
    assert not torch.equal(best["transformer.norm.weight"], run.model.transformer.norm.weight)


def test_a_signal_finishes_the_step_saves_and_raises(tmp_path):
    with StopSignal().installed() as stop:
        run = trainer(tmp_path, stop=stop)
        honest = run._run_loss

        def loss(model, batch):
            if run.state.step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return honest(model, batch)

        run._run_loss = loss
        with pytest.raises(Stopped) as stopped:
            run.train()
    assert stopped.value.signum == signal.SIGTERM
    assert run.checkpoints.steps()[-1] == 7, "the step that was being done is done"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handlers are put back"


@pytest.mark.parametrize("signals", [("SIGTERM",), ("SIGINT", "SIGTERM")], ids=" ".join)
def test_a_signal_that_meets_an_import_stops_after_it(signals, tmp_path, monkeypatch):
    sent = "".join(f"os.kill(os.getpid(), signal.{name})\nsum(range(10**7))\n" for name in signals)
    (tmp_path / "loaded_slowly.py").write_text(f"import os, signal\n{sent}WHOLE = True\n")
    monkeypatch.delitem(sys.modules, "loaded_slowly", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def load() -> None:
        import_module("loaded_slowly")
        for _ in range(10):
            sum(range(10**7))

    with StopSignal().installed(), pytest.raises(Stopped) as stopped:
        load()
    assert sys.modules["loaded_slowly"].WHOLE, "a module of which half is loaded cannot be loaded again"
    assert stopped.value.signum == getattr(signal, signals[-1])
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


def test_gradients_are_clipped_to_the_stated_norm(tmp_path):
    run = trainer(tmp_path, optim=OptimConfig(lr=1e-2, clip=0.01))
    report = next(iter(run.steps()))
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()])
    assert report.grad_norm > 0.01
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    run = trainer(tmp_path)
    run.train()
    text = (tmp_path / "metrics.jsonl").read_text()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "loss": 0.0}\n{"torn')
    again = trainer(tmp_path)
    again.restore(again.checkpoints.load_newest(print))
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_timing_steps_changes_neither_weights_nor_generators(tmp_path):
    run = trainer(tmp_path, dropout=0.2)
    before, state = [p.detach().clone() for p in run.model.parameters()], torch.get_rng_state()
    assert run.seconds_per_step(n_timed=2) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_thread_outlives_a_run(tmp_path):
    trainer(tmp_path).train()
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]
