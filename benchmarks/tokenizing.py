"""The peak memory and the speed of tokenizing 10 MB and 1 GB of text, each in a process of its own.

    python benchmarks/tokenizing.py                           # generates the text, about 1 GB, in a temporary folder
    python benchmarks/tokenizing.py peak CORPUS CACHE [TOKENIZER]
    python benchmarks/tokenizing.py batch [PAIRS [BYTES]]     # 10 MB, beside SentencePiece alone, in turn

The second form surveys and tokenizes one corpus; without a tokenizer each byte is a token, which costs no time. The
third gives the same texts, and as many threads, to our tokenizer and to SentencePiece's own call for many texts.
"""

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pairs
import sentencepiece

from nlpstack.data.corpus import whole_corpus
from nlpstack.data.readers import DataConfig
from nlpstack.data.shards import ShardSpec, load_or_tokenize
from nlpstack.prepare import train_tokenizer_on
from nlpstack.samples import sample
from nlpstack.tasks import DocumentLayout
from nlpstack.tasks.corpus import tokenize_split
from nlpstack.tokenizer import load_tokenizer

SIZES = (10_000_000, 1_000_000_000)  # bytes of text
WORDS = 300  # a document of the .jsonl corpus
FILE_BYTES = 5_000_000  # of each file of the folder corpus
THREADS = 2


def main() -> None:
    """Print the peak of both sizes, as .jsonl and as a folder of .txt files, and how fast the text was tokenized."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer_on(["sample:shakespeare"], {"vocab_size": 8192}, Path(folder, "tokenizer"))
        for kind in ("jsonl", "folder"):
            for size in SIZES:
                corpus = Path(folder, f"{kind}-{size}" + ".jsonl" * (kind == "jsonl"))
                write_jsonl(corpus, size) if kind == "jsonl" else write_folder(corpus, size)
                command = [sys.executable, __file__, "peak", corpus, Path(folder, "cache"), Path(folder, "tokenizer")]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout)
                print(
                    f"{kind}: {found['bytes'] / 1e6:,.0f} MB, {found['tokens']:,} tokens: peak "
                    f"{found['peak'] / 1e6:,.1f} MB; {done.stderr.splitlines()[-1]}",
                    flush=True,
                )


def text_of(generator: random.Random, words: list[str], n_words: int) -> str:
    """Words of the bundled text, drawn at random, in lines of twelve."""
    drawn = generator.choices(words, k=n_words)
    return "\n".join(" ".join(drawn[at : at + 12]) for at in range(0, n_words, 12))


def write_jsonl(path: Path, n_bytes: int) -> None:
    """Documents of WORDS words, one a line."""
    generator, words = random.Random(0), sample("shakespeare").read_text(encoding="utf-8").split()
    size = 0
    with open(path, "w", encoding="utf-8") as file:
        while size < n_bytes:
            text = text_of(generator, words, WORDS)
            size += len(text)
            file.write(json.dumps({"text": text}) + "\n")


def write_folder(folder: Path, n_bytes: int) -> None:
    """Files of FILE_BYTES bytes of text, each one document."""
    generator, words = random.Random(1), sample("shakespeare").read_text(encoding="utf-8").split()
    folder.mkdir()
    for number in range(max(1, n_bytes // FILE_BYTES)):
        text = text_of(generator, words, FILE_BYTES // 5)[:FILE_BYTES]
        (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")


def peak(corpus: str, cache: str, tokenizer: str = "") -> None:
    """Tokenize a corpus and print bytes of text, tokens, and the most memory this process ever held."""
    split = whole_corpus(DataConfig(paths=[corpus]), note)["all"]
    if tokenizer:
        read = load_tokenizer(Path(tokenizer))
        layout = DocumentLayout(bos_id=read.bos_id, eos_id=read.eos_id)
        shards = tokenize_split(split, read, layout, Path(cache), threads=THREADS, note=note)
    else:
        spec = ShardSpec(split_key=split.key, tokenizer_hash="bytes", vocab_size=256, bos_id=None, eos_id=None)
        shards = load_or_tokenize(split.pieces, bytes_as_tokens, spec, Path(cache), note)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({"bytes": shards.n_bytes, "tokens": len(shards), "peak": 1024 * int(held.split()[1])}))


def bytes_as_tokens(texts: list[str]) -> list[np.ndarray]:
    """One token a byte."""
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def batch(n_pairs: str = "5", n_bytes: str = "10_000_000") -> None:
    """Print how our encode_batch compares with SentencePiece's Encode, on documents of WORDS words."""
    generator, words = random.Random(0), sample("shakespeare").read_text(encoding="utf-8").split()
    texts = [text_of(generator, words, WORDS) for _ in range(int(n_bytes) // (5 * WORDS))]
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer_on(["sample:shakespeare"], {"vocab_size": 8192}, Path(folder, "tokenizer"))
        ours = load_tokenizer(Path(folder, "tokenizer"))
        peer = sentencepiece.SentencePieceProcessor(model_file=str(Path(folder, "tokenizer", "tokenizer.model")))
    few = texts[:100]
    assert [one.tolist() for one in ours.encode_batch(few, threads=THREADS)] == peer.Encode(few)
    turns = pairs.alternate(
        lambda: ours.encode_batch(texts, threads=THREADS), lambda: peer.Encode(texts, num_threads=THREADS), int(n_pairs)
    )
    print(f"{pairs.describe('cpu', ('torch', 'sentencepiece'))}\n\n{pairs.TURNS_HEADER}")
    print(turns.row("tokenizing", sum(map(len, texts)) / 1e6, "MB/s"))


def note(text: str) -> None:
    """What the library says, on standard error."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    {"peak": peak, "batch": batch}.get("".join(sys.argv[1:2]), main)(*sys.argv[2:])
