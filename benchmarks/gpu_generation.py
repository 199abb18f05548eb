"""Greedy decoding of GPT-2's 124M shape in bf16, warm, beside transformers' generate, in turn; a part of gpu.sh.

    python benchmarks/gpu_generation.py [--device cpu --quick]

Prompts of 32 tokens, 256 new ones, batches of 1 and 64; both read one folder of fresh weights.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pairs

PROMPT, NEW = 32, 256
BATCHES = (1, 64)


def write_model(folder: Path, *, quick: bool) -> None:
    """A model folder in GPT-2's layout, and prompts of PROMPT tokens each as ids and as text."""
    from nlpstack.hub import save_model
    from nlpstack.model import GPT, TransformerConfig
    from nlpstack.prepare import train_tokenizer_on
    from nlpstack.samples import sample

    tokenizer = train_tokenizer_on(["sample:shakespeare"], {"kind": "char"}, folder / "tokenizer")
    size = {"dim": 16, "n_layers": 1, "n_heads": 2} if quick else {"dim": 768, "n_layers": 12, "n_heads": 12}
    config = TransformerConfig(vocab_size=50257, max_seq_len=1024, activation="gelu_tanh", **size)
    save_model(GPT.create(config, seed=0, tokenizer=tokenizer), folder / "model")
    text = sample("shakespeare").read_text(encoding="utf-8")
    texts = [text[100 * row : 100 * row + PROMPT] for row in range(max(BATCHES))]
    ids = [list(tokenizer.encode(one)) for one in texts]
    (folder / "prompts.json").write_text(json.dumps({"texts": texts, "ids": ids}), encoding="utf-8")


def ours(folder: Path, given: argparse.Namespace) -> Callable[[], int]:
    """Our decoding of one batch; new tokens come back."""
    from nlpstack import load_model
    from nlpstack.decode import Sampling, decode
    from nlpstack.train.runtime import DTYPES

    model = load_model(folder / "model", device=given.device, dtype=DTYPES[given.dtype])
    texts = json.loads((folder / "prompts.json").read_text())["texts"][: given.batch]
    rule = Sampling(greedy=True, max_new_tokens=given.new, min_new_tokens=given.new)
    return lambda: sum(
        len(one.tokens) for one in decode(model, model.tokenizer, texts, rule, batch_size=given.batch)[0]
    )


def peer(folder: Path, given: argparse.Namespace) -> Callable[[], int]:
    """The same by transformers."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        pairs.missing("transformers")
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype).to(given.device).eval()
    ids = torch.tensor(json.loads((folder / "prompts.json").read_text())["ids"][: given.batch], device=given.device)
    lengths = {"max_new_tokens": given.new, "min_new_tokens": given.new, "do_sample": False, "pad_token_id": 0}

    def generate() -> int:
        with torch.inference_mode():
            found = model.generate(ids, attention_mask=torch.ones_like(ids), **lengths)
        return found.numel() - ids.numel()

    return generate


def main() -> None:
    """Print the table, or be one of its sides."""
    options = pairs.parser(__doc__)
    options.add_argument("--side", choices=("write", "ours", "peer"), help=argparse.SUPPRESS)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    given = options.parse_args()
    given.dtype, given.new = "bf16" if given.device == "cuda" else "fp32", 4 if given.quick else NEW
    if given.side == "write":
        write_model(given.folder, quick=given.quick)
        pairs.tell(written=True)
    elif given.side:
        work = (ours if given.side == "ours" else peer)(given.folder, given)
        gauge = pairs.Gauge(warmup=1, steps=1, device=given.device)
        while gauge.step(work()):
            pass
    else:
        print(f"{pairs.describe(given.device)}\n\n{pairs.header('new tokens')}")
        with tempfile.TemporaryDirectory() as folder:
            shared = ["--folder", folder, "--device", given.device, *["--quick"] * given.quick]
            line = [sys.executable, __file__, *shared, "--side"]
            pairs.ask([*line, "write"])
            for batch in BATCHES:
                mine, its = ([*line, side, "--batch", str(batch)] for side in ("ours", "peer"))
                title = f"generation, {given.dtype}, batch {batch}, prompt {PROMPT}, {given.new} new tokens"
                n_pairs = 1 if given.quick else given.pairs
                pairs.compare(title, mine, {"generate": its}, pairs=n_pairs, together=given.device == "cuda")


if __name__ == "__main__":
    main()
