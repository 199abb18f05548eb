"""Checkpoints: whole or not at all, and the newest good one is found."""

import json
from pathlib import Path

import pytest
import torch

from nlpstack.errors import CheckpointError
from nlpstack.model import GPT, TransformerConfig
from nlpstack.train.checkpoint import Checkpoint, Checkpoints, optimizer_state, restore_optimizers
from nlpstack.train.optim import OptimConfig, make_optimizers


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint({"w": torch.full((3,), float(step))}, {"w.exp_avg": torch.zeros(3)}, {"step": step})


def save(folder, *steps: int, best: int | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(checkpoint(step), best_step=best)
    return checkpoints


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    assert save(tmp_path / "c", 5, 10, 15, 20, best=5).steps() == [5, 15, 20]


def test_the_newest_is_loaded_with_all_it_held(tmp_path):
    found = save(tmp_path / "c", 5, 10).load_newest(print)
    assert found.state == {"step": 10}
    assert found.model["w"].tolist() == [10.0] * 3
    assert list(found.optimizer) == ["w.exp_avg"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, name, damage):
    checkpoints = save(tmp_path / "c", 5, 10)
    file = checkpoints.path(10) / name
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    said = []
    assert checkpoints.load_newest(said.append).state["step"] == 5
    assert len(said) == 1
    assert "step-00000010" in said[0]
    assert checkpoints.steps() == [5], "the damaged one is gone, so it cannot be taken for the newest later"


def test_if_none_is_whole_it_refuses_instead_of_starting_over(tmp_path):
    checkpoints = save(tmp_path / "c", 5)
    (checkpoints.path(5) / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint is whole.*--overwrite"):
        checkpoints.load_newest(print)


def test_what_a_killed_save_left_is_no_checkpoint_and_is_removed(tmp_path):
    checkpoints = save(tmp_path / "c", 5)
    leftover = tmp_path / "c" / ".step-00000010.tmp-123"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert checkpoints.load_newest(print).state["step"] == 5
    assert not leftover.exists()


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    checkpoints = save(tmp_path / "c", 5, 10)

    def refuse(path, iterdir=Path.iterdir):
        if path == tmp_path / "c":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", refuse)
        for attempt in (lambda: checkpoints.load_newest(print), lambda: save(tmp_path / "c", 15)):
            with pytest.raises(PermissionError):
                attempt()
    assert checkpoints.steps() == [5, 10, 15], "nothing is taken for old, so nothing is deleted"


def test_nothing_is_pickled(tmp_path):
    checkpoints = save(tmp_path / "c", 5)
    names = {path.name for path in checkpoints.path(5).iterdir()}
    assert names == {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    json.loads((checkpoints.path(5) / "state.json").read_text())


def test_optimizer_state_goes_out_and_in_bit_for_bit():
    config = TransformerConfig(vocab_size=50, max_seq_len=8, dim=16, n_layers=1, n_heads=2)
    models = [GPT.create(config, seed=0) for _ in range(2)]
    optimizers = [make_optimizers(model, OptimConfig()) for model in models]
    generator = torch.Generator().manual_seed(0)

    def step(*which: int) -> None:
        gradients = [torch.randn(p.shape, generator=generator) for p in models[0].parameters()]
        for i in which:
            for parameter, gradient in zip(models[i].parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizers[i][0].step()

    for _ in range(3):
        step(0)
    models[1].load_state_dict(models[0].state_dict())
    restore_optimizers(models[1], optimizers[1], *optimizer_state(models[0], optimizers[0]))
    for _ in range(3):
        step(0, 1)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_other_weights_is_refused():
    model = GPT.create(TransformerConfig(vocab_size=50, max_seq_len=8, dim=16, n_layers=1, n_heads=2), seed=0)
    optimizers = make_optimizers(model, OptimConfig())
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        restore_optimizers(model, optimizers, {"lm_head.weight.exp_avg": torch.zeros(2)}, {})
