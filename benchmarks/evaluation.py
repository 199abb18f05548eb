"""Evaluation beside what people use: perplexity, scores of texts, and `predict` on a file.

    python benchmarks/evaluation.py [--quick] [--pairs 5] [--only perplexity|texts|predict] [--share 1]
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --process-time --share 0.1     # on a busy machine

perplexity: 6 layers, 384 wide, context 256, vocabulary 8,192, 250,000 tokens in fp32; the peer is transformers, fed
one window at a time. texts: 10,000 pairs of about 20 words, BLEU and chrF in process time of one thread, ROUGE on all
cores; the peers are sacrebleu and rouge-score, on one core. predict: 2,000 sentences of web text; the peer is a loop
over batches of 32 in the order of the file. Models have the weights of before training, from a folder that both read; a
comparison fails unless both find the same. --share measures that part of the data.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pairs
import torch
import torch.nn.functional as F
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nlpstack import load_model, save_model
from nlpstack.data.corpus import whole_corpus
from nlpstack.data.labelled import tagged_rows
from nlpstack.data.readers import DataConfig, mute
from nlpstack.metrics import Units, compute
from nlpstack.metrics.text import ROUGES, TextScores, TextScoring
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.model.heads import Labels
from nlpstack.predict import predict
from nlpstack.prepare import train_tokenizer_on
from nlpstack.samples import sample
from nlpstack.tasks import CausalLM, EvalConfig
from nlpstack.tasks.causal_lm import windows
from nlpstack.tasks.corpus import tokenize_split
from nlpstack.tokenizer import load_tokenizer
from nlpstack.train.runtime import keep_freed_memory
from nlpstack.train.trainer import measure

WINDOW, BATCH = 256, 32
PACKAGES = ("torch", "transformers", "sacrebleu", "rouge-score")


def shape(vocab_size: int, **more: object) -> TransformerConfig:
    """Six layers, 384 wide."""
    return TransformerConfig(vocab_size=vocab_size, max_seq_len=WINDOW, dim=384, n_layers=6, n_heads=6, **more)  # type: ignore[arg-type]


def perplexity(place: Path, share: float, n_pairs: int, clock: pairs.Clock) -> list[str]:
    """The same windows, ours in batches, the peer's one at a time."""
    tokenizer = load_tokenizer(place / "tokenizer")
    config = shape(tokenizer.vocab_size, activation="gelu_tanh")
    save_model(GPT.create(config, seed=0, tokenizer=tokenizer), place / "gpt2")
    ours, peer = load_model(place / "gpt2"), AutoModelForCausalLM.from_pretrained(place / "gpt2").eval()
    task, asked = CausalLM(ours.tokenizer), EvalConfig(max_tokens=round(250_000 * share), resamples=0)
    split, threads = whole_corpus(DataConfig(paths=["sample:shakespeare"]), mute)["all"], torch.get_num_threads()
    shards = tokenize_split(split, tokenizer, task.layout, place / "cache", threads=threads, note=mute)
    parts = list(windows(shards, WINDOW, WINDOW, asked.max_tokens))
    n_tokens, found = sum(part.n_scored for part in parts), {"ours": 0.0, "peer": 0.0}

    def batched() -> None:
        metric = measure(ours, task, shards, asked, dtype="fp32")
        found["ours"] = compute(metric, "", n_resamples=0, seed=0)["loss"].value

    @torch.inference_mode()
    def one_by_one() -> None:
        total = 0.0
        for part in parts:
            tokens = torch.from_numpy(part.tokens.astype(np.int64))
            logits = peer(tokens[None, :-1]).logits[0]
            total += F.cross_entropy(logits, tokens[1:], reduction="sum").item()
        found["peer"] = total / n_tokens

    turns = pairs.alternate(batched, one_by_one, n_pairs, clock=clock)
    assert abs(found["ours"] / found["peer"] - 1) < 1e-5, found
    return [turns.row("perplexity, one window at a time", n_tokens, "tokens/s")]


def texts(place: Path, share: float, n_pairs: int, clock: pairs.Clock) -> list[str]:
    """BLEU, chrF and ROUGE, each alone: the reference package's own loop over the pairs."""
    rng, words = random.Random(0), sample("shakespeare").read_text(encoding="utf-8").split()
    starts = [rng.randrange(len(words) - 30) for _ in range(round(10_000 * share))]
    gold = [" ".join(words[start : start + rng.randint(10, 30)]) for start in starts]
    told = [" ".join(word for word in text.split() if rng.random() < 0.9) for text in gold]
    metric, scorer, found = TextScores(TextScoring()), RougeScorer(list(ROUGES)), {}
    references = [(one,) for one in gold]

    def scored(part: Callable[[], Units]) -> Callable[[], None]:
        return lambda: found.update(_values(part()))

    def overlap(
        make: type[BLEU] | type[CHRF],
    ) -> Callable[[], None]:  # a new one each turn: it remembers tokens of texts
        return lambda: found.update(peer=make().corpus_score(told, [gold]).score)

    def rouge() -> None:
        scores = [scorer.score(true, text) for text, true in zip(told, gold, strict=True)]
        found["peer"] = float(np.mean([one["rougeLsum"].fmeasure for one in scores])) * 100

    rows = []
    for name, ours, peer in (
        ("bleu", scored(lambda: metric._overlap("bleu", told, references)), overlap(BLEU)),
        ("chrf", scored(lambda: metric._overlap("chrf", told, references)), overlap(CHRF)),
        ("rougeLsum", scored(lambda: metric._rouge(told, references)), rouge),
    ):
        # What ROUGE does on all cores is no time of this process; the other two have one thread each.
        turns = pairs.alternate(ours, peer, n_pairs, clock=clock if name == "rougeLsum" else time.process_time)
        assert abs(found[name] - found["peer"]) < 1e-9, found
        rows.append(turns.row(name.replace("Lsum", ", all four"), len(gold), "pairs/s"))
    return rows


def _values(part: Units) -> dict[str, float]:
    ones = np.ones((1, len(part.rows)), dtype=np.int64)
    return {name: float(value[0]) for name, (value, _) in part.scores(part.rows, ones).items()}


def predictions(place: Path, share: float, n_pairs: int, clock: pairs.Clock) -> list[str]:
    """Labels of a file's lines, reading of model and file included."""
    folder, file = place / "bert", place / "lines.txt"
    tokenizer, labels = load_tokenizer(place / "tokenizer"), Labels(("a", "b", "c"))
    config = shape(tokenizer.vocab_size, causal=False, pre_norm=False, n_segments=2)
    bert = BERT.create(config, seed=0, tokenizer=tokenizer, heads=("pooler", "sequence"), labels=labels)
    save_model(bert, folder)
    sentences = tagged_rows(next(sample("uner_en_ewt").glob("test.*")), mute)
    fitting = (line for _, words, _ in sentences if len(tokenizer.encode(line := " ".join(words))) <= WINDOW - 2)
    lines = list(islice(fitting, round(2_000 * share)))
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    found: dict[str, list[list[float]]] = {}

    def ours() -> None:
        found["ours"] = [list(one["probabilities"].values()) for one in predict(folder, file)]

    @torch.inference_mode()
    def peer() -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        lines, shares = file.read_text(encoding="utf-8").removesuffix("\n").split("\n"), []
        for start in range(0, len(lines), BATCH):
            inputs = tokenizer(lines[start : start + BATCH], padding=True, return_tensors="pt")
            shares += model(**inputs).logits.softmax(dim=-1).tolist()
        found["peer"] = shares

    turns = pairs.alternate(ours, peer, n_pairs, clock=clock)
    assert np.abs(np.array(found["ours"]) - np.array(found["peer"])).max() < 1e-5
    return [turns.row(f"predict, batches of {BATCH} in file order", len(lines), "lines/s")]


KINDS = {"perplexity": perplexity, "texts": texts, "predict": predictions}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--process-time", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()  # as `nlpstack eval` and `nlpstack predict` do; the peers have the good of it too
    clock: pairs.Clock = time.process_time if options.process_time else time.perf_counter
    share = 0.02 if options.quick else options.share
    threads = torch.get_num_threads()
    print(f"{pairs.describe('cpu', PACKAGES)}, {threads} threads\n\n{pairs.TURNS_HEADER}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        train_tokenizer_on(["sample:shakespeare"], {"vocab_size": 8192}, Path(place, "tokenizer"))
        for name, kind in KINDS.items():
            if options.only in (None, name):
                print("\n".join(kind(Path(place), share, options.pairs, clock)), flush=True)


if __name__ == "__main__":
    main()
