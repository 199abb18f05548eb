"""Generation beside transformers: warm decoding, and a cold `nlpstack generate` beside a plain script.

    python benchmarks/generation.py [--quick] [--pairs 5] [--only warm|cold] [--dtypes fp32,bf16] [--batches 1,8]
    OMP_NUM_THREADS=1 python benchmarks/generation.py --only warm --process-time --new 16    # on a busy machine

Greedy, prompts of 32 tokens, 256 new ones, weights of the 124M shape as they are before training, from one folder that
both read. Without --dtypes it is bf16 where the processor multiplies that fast, else fp32. --quick: a tiny model, few
tokens.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pairs
import torch
from transformers import AutoModelForCausalLM

from nlpstack import load_model, save_model
from nlpstack.generate import Sampling, generate
from nlpstack.model import GPT, TransformerConfig
from nlpstack.prepare import train_tokenizer_on
from nlpstack.samples import sample
from nlpstack.tokenizer import load_tokenizer
from nlpstack.train.runtime import DTYPES, fast_bf16

PROMPT = 32
PACKAGES = ("torch", "transformers")


def folder_of(place: Path, *, quick: bool) -> Path:
    """A GPT in GPT-2's layout with fresh weights, and a tokenizer of the bundled text."""
    train_tokenizer_on(["sample:shakespeare"], {"vocab_size": 512 if quick else 8192}, place / "tokenizer")
    size = {"dim": 64, "n_layers": 12, "n_heads": 4} if quick else {"dim": 768, "n_layers": 12, "n_heads": 12}
    config = TransformerConfig(vocab_size=50257, max_seq_len=1024, activation="gelu_tanh", **size)
    save_model(GPT.create(config, seed=0, tokenizer=load_tokenizer(place / "tokenizer")), place / "gpt2")
    return place / "gpt2"


def prompt_texts(folder: Path, n: int) -> list[str]:
    """Texts of PROMPT tokens each, so that no row is padded."""
    tokenizer, text = load_tokenizer(folder), sample("shakespeare").read_text(encoding="utf-8")
    texts: list[str] = []
    for start in range(0, len(text), 500):
        found = tokenizer.decode(tokenizer.encode(text[start : start + 500])[1 : PROMPT + 1]).strip()
        if len(tokenizer.encode(found)) == PROMPT:
            texts.append(found)
        if len(texts) == n:
            return texts
    raise AssertionError("the bundled text has too few prompts")


def warm(folder: Path, batch: int, dtype: str, n_pairs: int, n_new: int, clock: pairs.Clock) -> str:
    """Both models loaded, the same prompts: a row of the table, once their logits agree."""
    ours, texts = load_model(folder, dtype=DTYPES[dtype]), prompt_texts(folder, batch)
    assert isinstance(ours, GPT)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype]).eval()
    tokens = torch.tensor([ours.tokenizer.encode(text) for text in texts])
    rule = Sampling(greedy=True, max_new_tokens=n_new, min_new_tokens=n_new)
    with torch.inference_mode():
        gap = (ours(tokens).float() - peer(tokens).logits.float()).abs().max().item()
        assert gap < {"fp32": 1e-3, "bf16": 0.1}[dtype], f"the logits differ by {gap}"
        lengths = dict(max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, pad_token_id=0)
        mask = torch.ones_like(tokens)
        turns = pairs.alternate(
            lambda: generate(ours, texts, rule, dtype=dtype, batch_size=batch),
            lambda: peer.generate(tokens, attention_mask=mask, **lengths),
            n_pairs,
            clock=clock,
        )
    return turns.row(f"warm, {dtype}, batch {batch}", batch * n_new, "new tokens/s")


def cold(folder: Path, dtype: str, n_pairs: int, n_new: int) -> str:
    """A process each, start and imports included."""
    (text,) = prompt_texts(folder, 1)
    length = ["--max-new-tokens", str(n_new), "--min-new-tokens", str(n_new)]
    command = ["-m", "nlpstack", "generate", "--model", str(folder), "--prompt", text, "--greedy", *length]
    ours = [sys.executable, *command, "--dtype", dtype]
    script = str(Path(__file__).with_name("peer_generate.py"))
    peer = [sys.executable, script, str(folder), text, str(n_new), str(DTYPES[dtype]).removeprefix("torch.")]
    run = [lambda one=one: subprocess.run(one, check=True, capture_output=True) for one in (ours, peer)]
    return pairs.alternate(*run, n_pairs).row(f"cold, {dtype}, one text", 1, "runs/s")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=["warm", "cold"])
    parser.add_argument("--dtypes", default="bf16" if fast_bf16(torch.device("cpu")) else "fp32")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--process-time", action="store_true")
    options = parser.parse_args()
    n_new = min(options.new, 16) if options.quick else options.new
    clock: pairs.Clock = time.process_time if options.process_time else time.perf_counter
    threads = torch.get_num_threads()
    print(f"{pairs.describe('cpu', PACKAGES)}, {threads} threads\n\n{pairs.TURNS_HEADER}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = folder_of(Path(place), quick=options.quick)
        for dtype in options.dtypes.split(","):
            if options.only != "cold":
                for batch in map(int, options.batches.split(",")):
                    print(warm(folder, batch, dtype, options.pairs, n_new, clock), flush=True)
            if options.only != "warm":
                print(cold(folder, dtype, options.pairs, n_new), flush=True)


if __name__ == "__main__":
    main()
