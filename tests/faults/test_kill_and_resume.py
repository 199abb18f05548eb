"""A short form of `make torture`."""

import pytest
import torch

from nlpstack.train.runtime import fast_bf16
from tests.faults.kill_and_resume import PRETRAINED, RECIPES, torture


@pytest.mark.parametrize(
    "recipe", [recipe if recipe in PRETRAINED else pytest.param(recipe, marks=pytest.mark.slow) for recipe in RECIPES]
)
def test_a_killed_and_resumed_run_equals_the_unbroken_one(recipe, tmp_path):
    # Where bf16 is not multiplied in hardware it takes minutes: there it is left to the slow tests.
    dtype = "bf16" if recipe == "gpt" and fast_bf16(torch.device("cpu")) else "fp32"
    places = torture(tmp_path, recipe=recipe, runs=1, modes=[(dtype, False)], seed=1)
    assert places["before"] + places["save"] + places["between"] == 2, "killed twice: at the start, then in a save"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", PRETRAINED)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiled_runs_too(recipe, dtype, tmp_path):
    places = torture(tmp_path, recipe=recipe, runs=4, modes=[(dtype, True)], seed=2)
    assert places["save"] >= 1
    assert places["before"] >= 1
