"""Every optimizer: that it trains, is torch's own, resumes bit for bit, and survives what is not finite."""

import copy
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tests.tiny_recipe
from nlpstack.data.batch import Loader, Shuffled
from nlpstack.errors import ConfigError, TrainingError
from nlpstack.job import RunOptions
from nlpstack.model import GPT, TransformerConfig
from nlpstack.pretrain import pretrain
from nlpstack.train import runtime
from nlpstack.train.checkpoint import optimizer_state, restore_optimizers
from nlpstack.train.optim import OPTIONS, OptimConfig, line_search_step, make_optimizers
from nlpstack.train.trainer import Trainer
from tests.train.test_trainer import collate, losses_of, trainer

EXAMPLES = 16  # of made-up runs: two steps, or one of L-BFGS

# Options of made-up runs of twelve steps: every kind of state that an optimizer can have is there.
VARIANTS = {
    "sgd": {"name": "sgd", "lr": 0.1},
    "sgd-nesterov": {"name": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 0.01},
    "sgd-plain": {"name": "sgd", "lr": 0.1, "momentum": 0.0},
    "adagrad": {"name": "adagrad", "weight_decay": 0.01},
    "rmsprop": {"name": "rmsprop"},
    "rmsprop-momentum": {"name": "rmsprop", "momentum": 0.9, "weight_decay": 0.01},
    "adam": {"name": "adam", "lr": 1e-2, "weight_decay": 0.01},
    "adamw": {"name": "adamw", "lr": 1e-2},
    "muon": {"name": "muon", "lr": 1e-2},
    "muon-plain": {"name": "muon", "lr": 1e-2, "nesterov": False},
    "lbfgs": {"name": "lbfgs", "history": 3},  # older pairs are thrown away
}
STATES = ("sgd-nesterov", "adagrad", "rmsprop-momentum", "adam", "adamw", "muon")
FIRST_ORDER = [name for name in VARIANTS if name != "lbfgs"]


def made_up(folder: Path, values: dict[str, object], *, micro_batch: int = 8, dropout: float = 0.0, **given) -> Trainer:
    """The made-up run of test_trainer under another optimizer; all examples in a step where it needs them."""
    optim = OptimConfig(**{"warmup": 2, **values})
    batch_size = EXAMPLES if optim.full_batch else 8
    loader = Loader(
        Shuffled(EXAMPLES, batch_size=batch_size, seed=0), collate, micro_batch=batch_size * micro_batch // 8
    )
    return trainer(folder, dropout=dropout, **{"loader": loader, "optim": optim, **given})


# -- it trains -------------------------------------------------------------------------------------------------------

# The loss of the validation part after so many steps of the tiny recipe at a rate, and what it may be at most. Fresh
# weights are at 6.2, and there the run would stay with a rate of 0; L-BFGS sees less text, all of it at each step.
LOSSES = {
    "sgd": (30, 0.3, 5.0),
    "adagrad": (30, 0.03, 5.0),
    "rmsprop": (30, 3e-3, 5.0),
    "adam": (30, 1e-2, 5.0),
    "adamw": (30, 1e-2, 5.0),
    "muon": (30, 1e-2, 5.0),
    "lbfgs": (5, 1.0, 5.0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the runs stand that share a tokenizer."""
    return tmp_path_factory.mktemp("optimizers")


@pytest.mark.parametrize("name", OPTIONS)
def test_the_tiny_recipe_comes_below_its_stated_loss(name, folder, monkeypatch):
    monkeypatch.setattr(tests.tiny_recipe, "N_CHARS", 6_000 if name == "lbfgs" else 40_000)
    (folder / name).mkdir()
    flags = {"data.paths": [str(tests.tiny_recipe.tiny_text(folder / name))], "train.threads": 1}
    steps, lr, bound = LOSSES[name]
    values = [*tests.tiny_recipe.TINY, f"optim.name={name}", f"optim.lr={lr}", f"train.steps={steps}"]
    values += ["train.val_every=0", "train.checkpoint_every=0", "train.samples=0"]
    values += ["train.batch_size=81", "model.dropout=0"] if name == "lbfgs" else []
    result = pretrain("gpt", values, out=folder / f"run-{name}", options=RunOptions(flags=flags))
    first = json.loads((folder / f"run-{name}" / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert result.steps == steps
    assert result.val["loss"] < bound < first - 1


# -- it is torch's own -----------------------------------------------------------------------------------------------


def by_hand(model: GPT, name: str, values: dict) -> list[torch.optim.Optimizer]:
    """What a user of torch would write, in torch's plainest form."""
    named = dict(model.named_parameters())
    matrices = [p for p in named.values() if p.dim() == 2]
    rest = [p for p in named.values() if p.dim() == 1]
    decay = values.get("weight_decay", 0.1 if name in ("adamw", "muon") else 0.0)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    plain = {"foreach": False}
    if name == "sgd":
        momentum, nesterov = values.get("momentum", 0.9), values.get("nesterov", False)
        return [torch.optim.SGD(groups, lr=values["lr"], momentum=momentum, nesterov=nesterov, **plain)]
    if name == "adagrad":
        return [torch.optim.Adagrad(groups, lr=0.03, **plain)]
    if name == "rmsprop":
        return [torch.optim.RMSprop(groups, lr=1e-3, momentum=values.get("momentum", 0.0), **plain)]
    if name == "adam":
        return [torch.optim.Adam(groups, lr=values["lr"], betas=(0.9, 0.95), **plain)]
    if name == "adamw":
        return [torch.optim.AdamW(groups, lr=values["lr"], betas=(0.9, 0.95), **plain)]
    assert name == "muon"
    kinds = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj")
    hidden = {n for n in named if n.endswith(tuple(f"{kind}.weight" for kind in kinds))}
    outer = [p for n, p in named.items() if n not in hidden and p.dim() == 2]
    groups = [{"params": outer, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    muon = torch.optim.Muon(
        [named[n] for n in sorted(hidden)], lr=values["lr"], weight_decay=decay, momentum=0.95,
        nesterov=values.get("nesterov", True), adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    return [muon, torch.optim.AdamW(groups, lr=values["lr"], betas=(0.9, 0.95), **plain)]


@pytest.mark.parametrize("variant", FIRST_ORDER)
@pytest.mark.parametrize("tied", [True, False])
def test_steps_are_those_of_torchs_own_class(variant, tied):
    values = VARIANTS[variant]
    config = TransformerConfig(vocab_size=50, max_seq_len=8, dim=16, n_layers=2, n_heads=2, tied=tied)
    ours = GPT.create(config, seed=0)
    theirs = copy.deepcopy(ours)
    pairs = [(ours, make_optimizers(ours, OptimConfig(**values))), (theirs, by_hand(theirs, values["name"], values))]
    fresh = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours.parameters()]
        for model, optimizers in pairs:
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            for optimizer in optimizers:
                optimizer.step()
    for a, b, c in zip(ours.parameters(), theirs.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not torch.equal(a, c), "every weight is some optimizer's"


def test_lbfgs_steps_are_those_of_torchs_own_class(tmp_path):
    run = made_up(tmp_path, VARIANTS["lbfgs"], micro_batch=2)
    run.model.double()  # or else roundings grow from step to step
    theirs = copy.deepcopy(run.model)
    optimizer = torch.optim.LBFGS(
        theirs.parameters(), max_iter=4, max_eval=20, history_size=3, line_search_fn="strong_wolfe"
    )
    batch = collate(run.loader.order.step(0))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(batch.tokens).flatten(0, 1), batch.labels["lm"].flatten())
        loss.backward()
        return loss

    for report in run.steps():
        optimizer.param_groups[0]["lr"] = report.lr
        loss = optimizer.step(closure)
        assert report.loss == pytest.approx(loss.item(), abs=1e-8), "the loss is that of the weights before the step"
    assert report.loss < 2.5, "of log(40) = 3.7"


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    config = TransformerConfig(vocab_size=50, max_seq_len=8, dim=16, n_layers=1, n_heads=2, tied=False)
    model = GPT.create(config, seed=0)
    muon, adamw = make_optimizers(model, OptimConfig(name="muon", weight_decay=0.2))
    names = {id(p): name for name, p in model.named_parameters()}
    hidden, (decayed, spared) = muon.param_groups[0], adamw.param_groups
    assert len(hidden["params"]) == 6
    assert all(".blocks.0." in names[id(p)] for p in hidden["params"])
    outer = {"transformer.tokens.weight", "transformer.positions.weight", "lm_head.weight"}
    assert {names[id(p)] for p in decayed["params"]} == outer
    assert {p.dim() for p in spared["params"]} == {1}
    assert [group["weight_decay"] for group in (hidden, decayed, spared)] == [0.2, 0.2, 0.0]
    assert sum(len(group["params"]) for group in (hidden, decayed, spared)) == len(names)


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adam"])
def test_decay_of_all_but_adamw_and_muon_is_off_unless_asked_for(name):
    assert OptimConfig(name=name).weight_decay == 0.0
    model = GPT.create(TransformerConfig(vocab_size=50, max_seq_len=8, dim=16, n_layers=1, n_heads=2), seed=0)
    (optimizer,) = make_optimizers(model, OptimConfig(name=name, weight_decay=0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


# -- it resumes ------------------------------------------------------------------------------------------------------


def killed_and_resumed(folder: Path, make, stopped_at: int) -> Trainer:
    """A run whose step after the checkpoint is lost, gone on with by other objects."""
    first = make(folder)
    for report in first.steps():
        first._log_step(report)
        if report.step == stopped_at:
            first.save()
        if report.step == stopped_at + 1:
            break
    torch.rand(3)
    second = make(folder)
    second.restore(second.checkpoints.load_newest(print))
    second.train()
    return second


@pytest.mark.parametrize(
    ("variant", "dtype"), [*((name, dtype) for name in STATES for dtype in ("fp32", "bf16")), ("lbfgs", "fp32")]
)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, variant, dtype):
    def make(folder: Path) -> Trainer:
        dropout = 0.0 if variant == "lbfgs" else 0.1
        given = {"choices": {"dtype": dtype, "steps": 6}, "train": {"val_every": 0, "checkpoint_every": 0}}
        run = made_up(folder, VARIANTS[variant], micro_batch=4, dropout=dropout, **given)
        run._peak_flops = 1e9  # not measured: it is for the log alone
        return run

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with runtime.session(threads=1, deterministic=True):
        whole = make(tmp_path / "a")
        whole.train()
        resumed = killed_and_resumed(tmp_path / "b", make, stopped_at=3)
    found = losses_of(tmp_path / "b")
    assert len(found) == 6
    assert found == losses_of(tmp_path / "a")
    assert found[-1] < found[0]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.skipif(not runtime.can_compile("cpu"), reason="there is no C++ compiler")
@pytest.mark.parametrize("variant", ["sgd-nesterov", "adagrad", "rmsprop", "muon", "lbfgs"])
def test_a_resumed_compiled_run_ends_in_the_same_bits(tmp_path, variant, monkeypatch):
    monkeypatch.setattr(tests.tiny_recipe, "N_CHARS", 6_000)
    text = tests.tiny_recipe.tiny_text(tmp_path)
    values = [*tests.tiny_recipe.TINY, "train.compile=true", "optim.schedule=constant", "train.checkpoint_every=0"]
    values += [f"optim.{key}={str(value).lower()}" for key, value in VARIANTS[variant].items()]
    values += ["train.batch_size=81", "model.dropout=0"] if variant == "lbfgs" else []
    options = RunOptions(flags={"data.paths": [str(text)], "train.threads": 1})
    whole = pretrain("gpt", [*values, "train.steps=6"], out=tmp_path / "whole", options=options)
    pretrain("gpt", [*values, "train.steps=3"], out=tmp_path / "longer", options=options)
    longer = pretrain("gpt", [*values, "train.steps=6"], out=tmp_path / "longer", resume=True, options=options)
    assert longer.weights == whole.weights


def test_state_with_lists_and_numbers_goes_out_and_in_as_it_was(tmp_path):
    run = made_up(tmp_path, VARIANTS["lbfgs"])
    for report in run.steps():
        if report.step == 6:
            break
    tensors, numbers = optimizer_state(run.model, run.optimizers)
    numbers = json.loads(json.dumps(numbers))
    again = made_up(tmp_path, VARIANTS["lbfgs"])
    restore_optimizers(again.model, again.optimizers, tensors, numbers)
    (then,), (now,) = (list(each.optimizers[0].state.values()) for each in (run, again))
    assert then.keys() == now.keys()
    assert len(now["old_dirs"]) == len(now["old_stps"]) == len(now["ro"]) == 3
    for entry, value in then.items():
        for a, b in zip(*(x if isinstance(x, list) else [x] for x in (value, now[entry])), strict=True):
            assert type(a) is type(b), entry
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, entry


def test_a_checkpoint_from_before_there_were_lists_still_resumes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = made_up(tmp_path / "a", VARIANTS["adamw"])
    whole.train()
    run = made_up(tmp_path / "b", VARIANTS["adamw"])
    run.restore(whole.checkpoints.load(8)._replace(state=without_optimizer(whole, 8)))
    run.train()
    for a, b in zip(whole.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(a, b)


def without_optimizer(run: Trainer, step: int) -> dict:
    state = run.checkpoints.load(step).state
    assert state.pop("optimizer") == {}, "AdamW has tensors alone"
    return {**state, "log_bytes": 0}


# -- it is guarded ---------------------------------------------------------------------------------------------------


def test_lbfgs_takes_the_same_blocks_at_every_step(tmp_path):
    run = made_up(tmp_path, VARIANTS["lbfgs"], micro_batch=2)
    seen: list[torch.Tensor] = []
    accumulate = run.accumulate
    run.accumulate = lambda batches: seen.append(torch.cat([b.tokens for b in batches])) or accumulate(batches)
    for report in run.steps():
        if report.step == 3:
            break
    assert seen[0].shape[0] == EXAMPLES
    assert len(seen) > 3, "line searches included"
    assert all(torch.equal(tokens, seen[0]) for tokens in seen)


def test_lbfgs_of_a_part_of_the_examples_is_refused_with_their_number(tmp_path):
    loader = Loader(Shuffled(EXAMPLES, batch_size=8, seed=0), collate, micro_batch=8)
    with pytest.raises(ConfigError, match=r"lbfgs takes all 16 .*, not 8; set train\.batch_size=16"):
        made_up(tmp_path, VARIANTS["lbfgs"], loader=loader)


def test_lbfgs_backs_away_from_a_trial_that_is_not_finite(tmp_path):
    run = made_up(tmp_path, {**VARIANTS["lbfgs"], "warmup": 0})
    honest, count = run._run_loss, iter(range(10_000))
    run._run_loss = lambda model, batch: {
        k: v * (math.nan if next(count) == 1 else 1) for k, v in honest(model, batch).items()
    }
    first, second, *_ = run.steps()
    assert not first.skipped
    assert second.loss < first.loss - 0.1


def test_lbfgs_puts_the_weights_back_from_a_step_that_ends_in_nan(tmp_path):
    run = made_up(tmp_path, VARIANTS["lbfgs"])
    steps = run.steps()
    for _ in range(3):
        next(steps)
    before = [p.detach().clone() for p in run.model.parameters()]
    run.optimizers[0].state[next(iter(run.model.parameters()))]["old_stps"][-1].fill_(math.nan)
    report = next(steps)
    assert report.skipped
    assert run.state.skips == 1
    assert any("new weights not finite, step skipped" in line for line in run.reporter.lines)
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert not next(steps).skipped, "the poisoned history is gone"
    assert run.state.skips == 0


def test_lbfgs_stops_after_losses_that_are_not_finite(tmp_path):
    run = made_up(tmp_path, VARIANTS["lbfgs"], train={"max_skips": 1})
    with torch.no_grad():
        run.model.transformer.norm.bias.fill_(math.nan)
    with pytest.raises(TrainingError, match="step 2: loss nan, gradient norm nan, batch of epoch 0"):
        run.train()


def test_lbfgs_with_one_iteration_a_step_does_not_stand_still(tmp_path):
    run = made_up(tmp_path, {**VARIANTS["lbfgs"], "max_iter": 1})
    losses = [report.loss for report in run.steps()]
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_a_line_that_leads_nowhere_is_not_searched_again():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.LBFGS([weight], max_iter=2, max_eval=10, line_search_fn="strong_wolfe")
    weight.grad = torch.ones(3)
    assert line_search_step(optimizer, 1.0, lambda: math.nan)
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state, "its history led there"


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "lbfgs"])
def test_a_gradient_that_is_not_finite_reaches_neither_weights_nor_state(tmp_path, name):
    run = made_up(tmp_path, {"name": name})
    honest = run._run_loss
    run._run_loss = lambda model, batch: {
        k: v * (math.inf if run.state.step == 5 else 1) for k, v in honest(model, batch).items()
    }
    run.train()
    tensors, _ = optimizer_state(run.model, run.optimizers)
    assert run.state.skips == 0
    assert all(torch.isfinite(value).all() for value in [*run.model.parameters(), *tensors.values()])


def test_timing_counts_the_evaluations_of_a_line_search(tmp_path, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("nlpstack.train.trainer.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert made_up(tmp_path, VARIANTS["adam"]).seconds_per_step(n_timed=1) == 1.0
    run = made_up(tmp_path, VARIANTS["lbfgs"])
    assert run.seconds_per_step(n_timed=1) == 6.0
    counted = iter(range(10_000))
    honest = run.accumulate
    run.accumulate = lambda batches: next(counted) >= 0 and honest(batches)
    monkeypatch.undo()
    list(run.steps())
    assert next(counted) / 12 == pytest.approx(6, abs=1.5), "as many as steps do take"


def test_every_optimizer_states_what_it_has():
    for name, options in OPTIONS.items():
        config = OptimConfig(name=name)
        for option in {option for known in OPTIONS.values() for option in known}:
            value = getattr(config, option)
            expected = options.get(option, 0.0 if option in ("weight_decay", "clip") else None)
            assert value == expected, (name, option)
        assert replace(config) == config
