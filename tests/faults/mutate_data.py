"""Damage data files, recipes, results and logs of every kind that nlpstack reads, and read them.

    python -m tests.faults.mutate_data --n 5000 --seed 0

Each must end in a result or in one line, in bounded time and memory. Trials take the formats in turn, so that each has
as many. Exit code 1 if anything else happens.
"""

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nlpstack.compare import compare
from nlpstack.data.corpus import load_corpus
from nlpstack.data.labelled import load_labelled
from nlpstack.data.readers import DataConfig, mute, read_documents
from nlpstack.embed import _texts, read_zscore
from nlpstack.errors import NlpstackError
from nlpstack.eval import EvalOptions, score_outputs
from nlpstack.generate import default_prompts, read_prompts
from nlpstack.predict import _inputs
from nlpstack.prepare import check_data
from nlpstack.report import loss_curves, loss_picture
from nlpstack.results import asked_for
from nlpstack.start import finished_runs
from nlpstack.train.run import load_run, read_results
from tests.faults.damage import BYTES, JSON, TEXT, Change, bomb, change_packed, change_row, nested, pack
from tests.faults.goods import finished_run
from tests.faults.trials import FINDING, Trial, Wrong, again, command_verdict, main, one_line
from tests.tiny import Outcome, nlpstack

PACKED = ("", "", "", ".gz", ".zst")
BOMBS = (b"a", b" ", b'"', b"[", b"\t", b"a b ", b'{"text":')
BOMB_MEBIBYTES, LINES_MEBIBYTES = 1024, 16  # of one line, and of many; to read these takes time in proportion
ONE_BOMB_IN = 30
DIM = 8
ABOUT = {"model_sha256": "0" * 64, "layer": 1, "pooling": "mean"}
FEW = EvalOptions(overrides=("eval.resamples=5",))
GOLD_TEXT = "the king is here\nno, he is not\nwho goes there?\nwe do\n"
CONLL = "Ann\tB-PER\nlives\tO\nin\tO\nNew\tB-LOC\nYork\tI-LOC\n.\tO\n\n-DOCSTART- -X- O O\n\nBob\tB-PER\nsaw\tO\n\n"
ROWS = [("I love it", "good"), ("I hate it", "bad"), ('so "so", it is', "bad"), ("é – ü", "good")]


class Format(NamedTuple):
    """A kind of file: what a whole one holds, how it is damaged, and what reads it."""

    suffixes: tuple[str, ...]
    content: bytes
    changes: tuple[Change, ...]
    read: Callable[[Path], object]
    packed: bool = True  # whether it may be .gz or .zst


def jsonl(*rows: object) -> bytes:
    """Rows as JSON lines, three times."""
    return b"\n".join(json.dumps(row).encode() for row in rows * 3) + b"\n"


def in_turn(*acts: Callable[[], object]) -> None:
    """Do all of these; the last refusal is raised at the end, behind a look at each one's message."""
    last: NlpstackError | None = None
    for act in acts:
        again()
        try:
            act()
        except NlpstackError as error:
            last = error
            if (verdict := one_line(str(error))).kind == FINDING:
                raise Wrong(verdict.text) from error
    if last is not None:
        raise last


def read_corpus(path: Path) -> None:
    """As training reads a corpus, and each way to find its documents."""

    def documents(how: str) -> None:
        for _ in read_documents([path], how, mute):
            pass

    in_turn(partial(documents, "files"), partial(documents, "paragraphs"), lambda: load_corpus(_config(path), mute))


def _config(path: Path) -> DataConfig:
    return DataConfig(paths=[str(path)])


def read_labels(task: str, path: Path) -> None:
    """As fine-tuning, the linter and predictions read a labelled file."""
    in_turn(
        lambda: load_labelled([str(path)], task, val_share=0.2, seed=0, note=mute),
        lambda: check_data([str(path)], task),
        lambda: list(_inputs(path, task, mute)),
    )


def score(task: str, good: Path, path: Path) -> None:
    """As `eval --predictions` reads both sides."""
    in_turn(
        lambda: score_outputs(path, good, task, FEW, mute),
        lambda: score_outputs(good, path, task, FEW, mute),
    )


# -- what is no data, but is read all the same ----------------------------------------------------------------------

ODD_TOML = (
    *("1", "-1", "0", "1e999", "inf", "nan", "true", "''", "'x'", "[]", "{}", "[1, 'a']", "1979-05-27", "{a.b = 1}"),
    *(
        "'''\n'''",
        '"\\u0000"',
        '"\\uD800"',
        "9" * 4000,
        "9" * 5000,
        "0x" + "f" * 5000,
        "x",
        "",
        "'" + "x" * 100_000 + "'",
    ),
    *(
        "'../../outside'",
        "'/etc/hostname'",
        "['sample:shakespeare']",
        "1_000_000_000_000",
        "-9223372036854775809",
        '"\\n"',
    ),
    *(nested(depth) for depth in (50, 300, 900, 1500, 100_000)),
    *("{a = " * depth + "1" + "}" * depth for depth in (50, 900, 20_000)),
)


def change_toml(data: bytes, rng: random.Random) -> bytes:
    """A value, a key or a table of TOML changed; `extends` may lead anywhere."""
    lines = data.decode(errors="replace").split("\n")
    for _ in range(rng.randint(1, 2)):
        at = rng.choice([number for number, line in enumerate(lines) if line.strip()] or [0])
        key, equals, _ = lines[at].partition("=")
        odd = rng.choice(ODD_TOML)
        match rng.randrange(6):
            case 0:
                lines.insert(
                    at, rng.choice(["[x]", "[model]", "[[model]]", "[origin]", "[a.b.c]", "[" + "a." * 5000 + "a]"])
                )
            case 1:
                lines.insert(0, f"extends = {rng.choice([odd, *(repr(p) for p in ('../gpt.toml', '.', 'self.toml'))])}")
            case 2:
                lines[at] = f"{rng.choice(['x', '', 'model.dim', 'a.' * 900 + 'a', '__class__'])} = {odd}"
            case 3:
                lines.insert(at, lines[at])
            case _:
                lines[at] = f"{key}= {odd}" if equals else f"{lines[at]}{rng.choice([']', '[', ' = 1', ''])}"
    return "\n".join(lines).encode()


def change_npz(data: bytes, rng: random.Random) -> bytes:
    """Arrays of other shapes, kinds and names, or a header that promises more than there is."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception:  # it was damaged before
        return data[::-1]
    name = rng.choice(sorted(arrays))
    odd = [np.zeros(0), np.zeros((2, DIM)), np.full(DIM, np.nan), -np.ones(DIM), np.array("x"), np.array(["x"] * DIM)]
    odd += [np.zeros(DIM, complex), np.array(3), np.zeros(DIM, "M8[s]"), np.zeros(DIM, [("a", "i4")])]
    match rng.randrange(5):
        case 0:
            del arrays[name]
        case 1:
            arrays["../" + name] = arrays.pop(name)
        case 2 if rng.random() < 0.2:
            return npz_bomb()
        case _:
            arrays[name] = rng.choice(odd)
    out = io.BytesIO()
    np.savez(out, **arrays)
    lie = rng.choice(
        [(b"(8,)", b"(9,)"), (b"(8,), }         ", b"(8000000000,), }"), (b"'<f8'", b"'|O' "), (b"x", b"x")]
    )
    return out.getvalue().replace(*lie)


@cache
def npz_bomb() -> bytes:
    """A small file whose `mean` unpacks to 1 GiB."""
    out = io.BytesIO()
    np.savez_compressed(out, mean=np.zeros(1 << 27), deviation=np.ones(DIM), corpus="", corpus_sha256="", **ABOUT)
    return out.getvalue()


def zscores() -> bytes:
    """What embed saves of z-scores."""
    file = io.BytesIO()
    about = {**ABOUT, "corpus": "lines.txt", "corpus_sha256": "1" * 64}
    np.savez(file, mean=np.zeros(DIM), deviation=np.ones(DIM), **about)
    return file.getvalue()


def read_run(run: Path, path: Path) -> None:
    """A run whose file `path` is that of a whole run, damaged: every command that reads it."""
    place = path.parent / "runs"
    place.mkdir()
    copied = Path(shutil.copytree(run, place / "run"))
    shutil.move(path, copied / path.name)
    (place / ".cache").symlink_to(run.parent / ".cache")
    read_results(copied)
    words = ["--quiet", "--threads", 1, "--no-baselines", "--set", "eval.resamples=5", "--set", "eval.max_tokens=100"]
    for command in (["info", copied], ["eval", copied, *words]):
        if (verdict := command_verdict(nlpstack(*command))).kind == FINDING:
            raise Wrong(f"{command[0]}: {verdict.text}")
    in_turn(
        lambda: finished_runs(place),
        lambda: finished_runs(place, "causal_lm"),
        lambda: compare(copied, copied),
        lambda: default_prompts(copied),
    )


def read_finished(run: Path, words: list[object], path: Path) -> Outcome:
    """The figures of a run that is finished, when it is resumed."""
    copied = Path(shutil.copytree(run, path.parent / "run"))
    shutil.move(path, copied / path.name)
    (path.parent / ".cache").symlink_to(run.parent / ".cache")
    return nlpstack(*(copied if word == run else word for word in words))


def read_log(path: Path) -> None:
    """A run's log: its prompts, its losses and, of a short one, their picture."""
    in_turn(lambda: default_prompts(path.parent), lambda: loss_curves(path))
    if path.stat().st_size % 8 == 0:
        loss_picture(path.parent)


# -- all formats ---------------------------------------------------------------------------------------------------


def labelled_formats() -> dict[str, Format]:
    """Files of each task."""
    tsv = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS * 3)
    csv = "text,label\n" + "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in ROWS * 3)
    pairs = "text_a\ttext_b\tscore\n" + "".join(f"{text}\tb {n}\t{n / 2}\n" for n, (text, _) in enumerate(ROWS * 3))
    rows = [{"text": text, "label": label} for text, label in ROWS]
    many = [{"text": text, "label": [label, "x"]} for text, label in ROWS]
    words = [{"tokens": ["Ann", "saw", "Rome"], "tags": ["B-PER", "O", "B-LOC"]}, {"tokens": ["so"], "tags": ["O"]}]
    asked = [{"prompt": "who?", "completion": "me"}, {"source": "why?", "target": "so", "references": ["a", "b"]}]
    talks = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}]
    classify, tag, write = (partial(read_labels, task) for task in ("classification", "ner", "generation"))
    lines = (change_row, change_row, *TEXT)
    return {
        "classification.tsv": Format((".tsv",), tsv.encode(), TEXT, classify),
        "classification.csv": Format((".csv",), csv.encode(), TEXT, classify),
        "pairs.tsv": Format((".tsv",), pairs.encode(), TEXT, classify),
        "classification.jsonl": Format((".jsonl",), jsonl(*rows), lines, classify),
        "labels.jsonl": Format((".jsonl",), jsonl(*many), lines, classify),
        "conll": Format((".conll", ".bio", ".iob", ".iob2", ".txt", ".tsv"), CONLL.encode() * 4, TEXT, tag),
        "ner.jsonl": Format((".jsonl",), jsonl(*words), lines, tag),
        "prompts.jsonl": Format((".jsonl",), jsonl(*asked), lines, write),
        "messages.jsonl": Format((".jsonl",), jsonl(*talks), lines, write),
    }


def text_formats(place: Path) -> dict[str, Format]:
    """Plain text and JSON lines: corpora, prompts, inputs of embed, and both sides of `eval --predictions`."""
    lines = (change_row, change_row, *TEXT)
    golds = {
        "generation": ("gold.txt", GOLD_TEXT),
        "ner": ("gold.conll", CONLL * 4),
        "classification": ("gold-labels.txt", "good\nbad\nbad\ngood\n"),
    }
    found = {
        "corpus.txt": Format((".txt",), (GOLD_TEXT + "\n").encode() * 9, TEXT, read_corpus),
        "corpus.jsonl": Format((".jsonl",), jsonl({"text": "one\n\ntwo"}, {"text": "é"}), lines, read_corpus),
        "prompts.txt": Format((".txt",), GOLD_TEXT.encode(), TEXT, lambda path: read_prompts(path)),
        "embed.txt": Format((".txt",), GOLD_TEXT.encode(), TEXT, lambda path: list(_texts(path))),
        "embed.jsonl": Format((".jsonl",), jsonl({"text": "a"}), lines, lambda path: list(_texts(path))),
    }
    for task, (name, content) in golds.items():
        (place / name).write_text(content)
        read = partial(score, task, place / name)
        found[f"outputs-{task}"] = Format((Path(name).suffix,), content.encode(), TEXT, read)
    rows = jsonl(*({"text": line, "references": [line, "x"]} for line in GOLD_TEXT.split("\n")[:4]))
    (place / "gold.jsonl").write_bytes(rows)
    found["outputs.jsonl"] = Format((".jsonl",), rows, lines, partial(score, "generation", place / "gold.jsonl"))
    return found


def other_formats(place: Path) -> dict[str, Format]:
    """Recipes, results, logs and z-scores, none of which may be packed."""
    run, words = finished_run(place)
    root = Path(__file__).resolve().parents[2]
    saved = place / "saved.json"
    outputs = ["--predictions", place / "gold-labels.txt", "--references", place / "gold-labels.txt"]
    assert nlpstack("eval", *outputs, "--task", "classification", "--save", saved, "--quiet").code == 0
    toml = (change_toml, change_toml, change_toml, *TEXT)
    recipes = {"pretrain": "gpt", "finetune": "ner-lora"}
    log = (run / "metrics.jsonl").read_bytes()
    made = {
        f"recipe-{stage}.toml": Format(
            (".toml",), (root / stage / f"{name}.toml").read_bytes(), toml, partial(_load, stage), False
        )
        for stage, name in recipes.items()
    }
    scoring = (root / "eval" / "generation.toml").read_bytes()
    made["recipe-eval.toml"] = Format((".toml",), scoring, toml, lambda p: asked_for(EvalOptions(recipe=str(p))), False)
    npz = (change_npz, change_npz, *BYTES)
    made["zscore.npz"] = Format((".npz",), zscores(), npz, lambda path: read_zscore(path, DIM, **ABOUT), False)
    compared = partial(_compare, saved)
    made["results.json"] = Format((".json",), saved.read_bytes(), (*JSON, *BYTES), compared, False)
    made["metrics.jsonl"] = Format((".jsonl",), log, (change_row, change_row, *TEXT), read_log, False)
    for name in ("config.toml", "results.json"):
        changes = toml if name == "config.toml" else (*JSON, *BYTES)
        made[f"run-{name}"] = Format((".",), (run / name).read_bytes(), changes, partial(read_run, run), False)
    figures = (run / "results.json").read_bytes()
    made["resumed-results.json"] = Format((".",), figures, (*JSON, *BYTES), partial(read_finished, run, words), False)
    return made


def _load(stage: str, path: Path) -> None:
    load_run(str(path), stage, {}, ())


def _compare(good: Path, path: Path) -> None:
    in_turn(lambda: compare(good, path), lambda: compare(path, good), lambda: compare(path, path))


def all_formats(place: Path, *, runs: bool = True) -> dict[str, Format]:
    """Every format, by its name."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    place.mkdir()
    return labelled_formats() | text_formats(place) | (other_formats(place) if runs else {})


FIXED = {"metrics.jsonl": "metrics.jsonl", "run-config.toml": "config.toml", "run-results.json": "results.json"}
FIXED |= {"resumed-results.json": "results.json"}


def make_trial(formats: dict[str, Format], number: int, place: Path, rng: random.Random) -> Trial:
    """Trial `number`: formats come in turn."""
    name = sorted(formats)[number % len(formats)]
    kind = formats[name]
    packed = rng.choice(PACKED) if kind.packed else ""
    path = place / FIXED.get(name, f"file{rng.choice(kind.suffixes)}{packed}")
    hows = []
    if packed and rng.randrange(ONE_BOMB_IN) == 0:
        unit = rng.choice((*BOMBS, b"\n", b"a b\n") if name.startswith("corpus") else BOMBS)
        data = bomb(packed, unit, LINES_MEBIBYTES if b"\n" in unit else BOMB_MEBIBYTES)
        hows.append(f"bomb of {unit!r}")
    elif packed and rng.random() < 0.4:
        data = change_packed(pack(kind.content, packed), rng, packed)
        hows.append("change_packed")
    else:
        data = kind.content
        for _ in range(rng.choice([1, 1, 2, 3])):
            change = rng.choice(kind.changes)
            data = change(data, rng)
            hows.append(change.__name__)
        data = pack(data, packed)
    path.write_bytes(data)
    return Trial(f"{name} {number}: {', '.join(hows)} {path.name}", partial(kind.read, path))


def make_in(place: Path) -> Callable[[int, Path, random.Random], Trial]:
    """The function that makes trials of data in a place of its own."""
    return partial(make_trial, all_formats(place / "goods"))


if __name__ == "__main__":
    main(__doc__, make_in, 5000)
