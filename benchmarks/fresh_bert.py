"""How a fresh BERT begins: its first block seeing neighbours (nlpstack/model/neighbours.py), or all of it noise.

    python benchmarks/fresh_bert.py

Trains the recipe `bert` for a quarter of its steps from either start, with the same seed, data and order, and prints
the held-out accuracy on hidden tokens beside what guessing reaches.
"""

import argparse
import json
import tempfile
from pathlib import Path
from unittest import mock

from nlpstack.pretrain import pretrain


def accuracies(start: str, steps: int, folder: Path) -> dict[str, float]:
    """mlm_accuracy of the model and of the guesses."""
    values = [f"train.steps={steps}", "train.val_every=0", "train.checkpoint_every=0", "eval.pseudo_tokens=0"]
    out = folder / start
    if start == "noise":
        with mock.patch("nlpstack.model.bert.see_neighbours"):
            pretrain("bert", values, out=out)
    else:
        pretrain("bert", values, out=out)
    (result,) = json.loads((out / "results.json").read_text())["results"]
    guesses = {name: scores["mlm_accuracy"] for name, scores in result["baselines"].items()}
    return {"model": result["metrics"]["mlm_accuracy"]["value"], **guesses}


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=420)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for start in ("noise", "neighbours"):
            found = accuracies(start, options.steps, Path(folder))
            print(start, {name: round(value, 4) for name, value in found.items()}, flush=True)


if __name__ == "__main__":
    main()
