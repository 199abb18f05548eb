"""Loss curves and a checkpoint that stand: a change that should not alter results leaves them equal.

Regenerated only by `make golden`, and explained in the changelog.
"""

import json
import math
from pathlib import Path

import pytest
import torch

import nlpstack
from nlpstack.job import RunOptions
from nlpstack.pretrain import pretrain
from tests.tiny_recipe import TINY, tiny_text

GOLDEN = Path(__file__).parent / "golden"
# Another processor or library rounds otherwise; over 20 steps that stays far below what a change of meaning does.
TOLERANCE = 2e-3
CURVES = {
    "gpt": ("gpt", TINY),
    "bert": ("bert", [*TINY, "data.documents=paragraphs"]),
    "llama": (
        "llama-mini",
        [v for v in TINY if "n_heads" not in v] + ["model.n_heads=4", "model.n_kv_heads=2", "model.ffn_dim=88"],
    ),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_loss_curve_of_a_tiny_recipe_stands(name, tmp_path, regenerate_golden):
    recipe, values = CURVES[name]
    options = RunOptions(flags={"data.paths": [str(tiny_text(tmp_path))], "train.threads": 1})
    pretrain(recipe, [*values, "model.dropout=0"], out=tmp_path / "run", options=options)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    curve = [record["loss"] for record in records if "loss" in record]
    file = GOLDEN / f"{name}-curve.json"
    if regenerate_golden:
        file.write_text(json.dumps(curve, indent=1) + "\n")
    assert len(curve) == 20
    assert curve == pytest.approx(json.loads(file.read_text()), abs=TOLERANCE)


def test_a_released_model_folder_still_loads_and_scores_the_same(tmp_path, regenerate_golden):
    folder = GOLDEN / "gpt2-folder"
    if regenerate_golden:
        options = RunOptions(flags={"data.paths": [str(tiny_text(tmp_path))], "train.threads": 1})
        values = [*TINY, "model.dim=16", "model.n_layers=1", "tokenizer.vocab_size=400", "train.steps=2"]
        pretrain("gpt", values, out=tmp_path / "run", options=options)
        nlpstack.save_model(nlpstack.load_model(tmp_path / "run"), folder)
    model = nlpstack.load_model(folder)
    ids = model.tokenizer.encode("To be, or not to be")
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0].double()
    found = {
        "ids": ids,
        "mean": logits.mean().item(),
        "deviation": logits.std().item(),
        "last": logits[-1, :8].tolist(),
    }
    file = GOLDEN / "gpt2-folder.json"
    if regenerate_golden:
        file.write_text(json.dumps(found, indent=1) + "\n")
    expected = json.loads(file.read_text())
    assert found["ids"] == expected["ids"]
    assert math.isclose(found["mean"], expected["mean"], abs_tol=1e-5)
    assert math.isclose(found["deviation"], expected["deviation"], abs_tol=1e-5)
    assert found["last"] == pytest.approx(expected["last"], abs=1e-5)
