"""How a fresh BERT begins: as noise, seeing neighbours, or what two texts share as well (nlpstack/model/bert.py).

    python benchmarks/fresh_bert.py

Trains the recipe `bert` for a quarter of its steps from each start (the third is what the recipe does), with the same
seed, data and order, and prints the held-out accuracy on hidden tokens, beside what guessing reaches, and on next
sentences.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

from nlpstack.pretrain import pretrain

# What each start leaves out.
STARTS = {"noise": ("see_neighbours", "see_shared_tokens"), "neighbours": ("see_shared_tokens",), "both": ()}


def accuracies(start: str, steps: int, folder: Path) -> dict[str, float]:
    """mlm_accuracy of the model and of the guesses, and the model's nsp_accuracy."""
    values = [f"train.steps={steps}", "train.val_every=0", "train.checkpoint_every=0", "eval.pseudo_tokens=0"]
    out = folder / start
    with ExitStack() as patches:
        for name in STARTS[start]:
            patches.enter_context(mock.patch(f"nlpstack.model.bert.{name}"))
        pretrain("bert", values, out=out)
    (result,) = json.loads((out / "results.json").read_text())["results"]
    guesses = {name: scores["mlm_accuracy"] for name, scores in result["baselines"].items()}
    model = {name: result["metrics"][name]["value"] for name in ("mlm_accuracy", "nsp_accuracy")}
    return {**model, **guesses}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=420)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for start in STARTS:
            found = accuracies(start, options.steps, Path(folder))
            print(start, {name: round(value, 4) for name, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
