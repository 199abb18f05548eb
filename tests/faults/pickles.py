"""Offer malicious pickles in place of every file that nlpstack reads: none is opened, and each ends in one line.

    python -m tests.faults.pickles --seed 0

A payload would make a marker file. Templates, archives, links and names that lead out of a folder are tried as well.
Exit code 1 if a marker is there, anything outside a folder was read or written, or a command did not end in one line.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from nlpstack.convert import convert
from nlpstack.data.readers import Piece
from nlpstack.data.shards import ShardSpec, load_or_tokenize
from nlpstack.files import sha256_file
from nlpstack.hub import load_model, save_model, weights_hash
from nlpstack.model import GPT
from nlpstack.tokenizer import load_tokenizer
from nlpstack.tokenizer.chat import Chat
from nlpstack.train.checkpoint import Checkpoints
from tests.faults.goods import (
    GPT2,
    byte_bpe,
    checkpoint_folder,
    model_folders,
    refit_manifest,
    wordpiece,
)
from tests.faults.mutate_data import FIXED, Format, all_formats, in_turn
from tests.faults.payloads import payloads
from tests.faults.trials import FINDING, Tally, Verdict, attempt
from tests.handmade import cut, encode


class Place(NamedTuple):
    """A file that is read: the folder that it stands in is copied, the file replaced, and `read` given both."""

    name: str  # of the file, in the folder
    folder: Path | None  # None: the file stands alone
    read: Callable[[Path, Path], object]  # (folder, file)
    refit: bool = False  # the manifest is made to fit, so that the file is read


def _open(folder: Path, file: Path) -> None:
    """A model folder, by all that read one."""
    out = folder.with_name("converted")
    try:
        in_turn(
            partial(load_model, folder),
            partial(weights_hash, folder),
            partial(load_tokenizer, folder),
            partial(convert, folder, out),
        )
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _convert(folder: Path, file: Path) -> None:
    convert(file if file.suffix != ".json" else folder, folder.with_name("converted"))


def _open_file(folder: Path, file: Path) -> None:
    in_turn(partial(load_model, file), partial(weights_hash, file), partial(convert, file, folder / "converted"))


def _resume(folder: Path, file: Path) -> None:
    Checkpoints(folder.parent).load_newest(lambda line: None)


def model_places(place: Path) -> Iterator[Place]:
    """Every file of model, adapter, tokenizer and checkpoint folders, and of what convert takes."""
    models = {name: pair[0] for name, pair in model_folders(place / "models").items()}
    names = [
        *(file.name for file in sorted(models["gpt2"].iterdir())),
        "special_tokens_map.json",
        "chat_template.jinja",
    ]
    yield from (Place(name, models["gpt2"], _open) for name in names)
    yield from (Place(file.name, models["sharded"], _open) for file in sorted(models["sharded"].iterdir()))
    for name in ("adapter", "headed-adapter"):
        yield from (Place(file.name, models[name], _open) for file in sorted(models[name].iterdir()))
    for number, files in enumerate((wordpiece(), byte_bpe())):
        folder = place / f"words-{number}"
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        yield from (Place(name, folder, lambda folder, file: load_tokenizer(folder)) for name in files)
    yield Place("tokenizer.model", None, lambda folder, file: load_tokenizer(file))
    pickled = Path(shutil.copytree(models["gpt2"], place / "pickled"))
    for name in ("model.safetensors", "manifest.json"):
        (pickled / name).unlink()
    for name in ("pytorch_model.bin", "x.pt", "x.pth", "x.ckpt", "pytorch_model.bin.index.json"):
        yield Place(name, pickled, _convert)
    yield Place("model.gguf", None, _open_file)
    steps = checkpoint_folder(place / "checkpoints")
    newest = sorted(steps.iterdir())[-1]
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        yield Place(name, newest, _resume, refit=name != "manifest.json")


SPEC = ShardSpec(split_key="k", tokenizer_hash="t", vocab_size=2000, bos_id=1, eos_id=2, sentences="full stops")


def _shards(cache: Path) -> None:
    pieces = [Piece("one two. three.", last=True), Piece("four.", last=True)]
    made = load_or_tokenize(lambda: pieces, encode, SPEC, cache, lambda _: None, segment=cut)
    made.read(0, len(made))
    list(made.documents())


def shard_places(place: Path) -> Iterator[Place]:
    """The files of tokenized data, whose index is made to fit what they hold."""
    cache = place / "cache"
    _shards(cache)
    folder = cache / SPEC.key
    for file in sorted(folder.iterdir()):
        yield Place(file.name, folder, _read_shards)


def _read_shards(folder: Path, file: Path) -> None:
    """Tokenize, with a cache whose index says of every file what it now holds."""
    for name in ("index.json", "shard-00000.json"):
        if name != file.name:
            told = json.loads((folder / name).read_text())
            for entry in told.get("shards", [told]):
                for key, suffix in SPEC.files.items():
                    entry[key] = sha256_file(folder / f"{entry['name']}{suffix}")
            (folder / name).write_text(json.dumps(told))
    cache = folder.with_name("caches")
    cache.mkdir()
    shutil.move(folder, cache / SPEC.key)
    _shards(cache)


def data_places(formats: dict[str, Format]) -> Iterator[Place]:
    """Every data file, recipe, result and log, each packed too where it may be."""
    for name, kind in formats.items():
        for suffix in kind.suffixes:
            for packed in ("", ".gz", ".zst") if kind.packed else ("",):
                file = FIXED.get(name, f"file{suffix}{packed}")
                yield Place(file, None, lambda folder, file, kind=kind: kind.read(file))


def offer(place: Place, name: str, data: bytes, scratch: Path) -> Verdict:
    """What comes of a payload in a place."""
    folder = scratch / "one" / (place.folder.name if place.folder else "files")
    if place.folder is None:
        folder.mkdir(parents=True)
    else:
        shutil.copytree(place.folder, folder)
    file = folder / place.name
    file.write_bytes(data)
    if place.refit:
        refit_manifest(folder)
    elif place.name != "manifest.json":
        (folder / "manifest.json").unlink(missing_ok=True)
    if place.name.startswith("vocab") or place.name == "tokenizer.json":
        (folder / "tokenizer.model").unlink(missing_ok=True)  # else it would be read in its place
    return attempt(partial(place.read, folder, file))


def offer_all(scratch: Path, places: list[Place], kinds: Callable[[int], list[str]]) -> Tally:
    """Offer payloads in places: of place number n those of the kinds that are named for it."""
    marker, tally = scratch / "marker", Tally()
    made = payloads(marker)
    for number, place in enumerate(places):
        for kind in kinds(number):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                verdict = offer(place, kind, made[kind], Path(folder))
                evil = [path for path in (*scratch.rglob("evil"), *scratch.parent.glob("evil")) if path.exists()]
            if marker.exists() or evil:
                verdict = Verdict(FINDING, "it was executed, or unpacked")
                shutil.rmtree(marker) if marker.is_dir() else marker.unlink(missing_ok=True)
            tally.add(f"{place.name} <- {kind}", verdict)
    return tally


# -- what leads out of a folder ------------------------------------------------------------------------------------

SECRET = "the-secret-that-stands-outside"
TEMPLATES = (
    "{{% include '{}' %}}",
    "{{% import '{}' as x %}}{{{{ x }}}}",
    "{{% extends '{}' %}}",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ open('{}').read() }}}}",
    "{{{{ cycler.__init__.__globals__.os.popen('cat {}').read() }}}}",
    "{{{{ self.__init__.__globals__.__builtins__.open('{}').read() }}}}",
    "{{{{ messages.__class__.__base__.__subclasses__()[0]('{}') }}}}",
    "{{{{ namespace.__init__.__globals__['__builtins__']['open']('{}').read() }}}}",
    "{{{{ ''|attr('__class__')|attr('__mro__') }}}}{}",
)


def template_trials(place: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Chat templates that would read a file, or run a program."""
    secret = place / "secret.txt"
    secret.write_text(SECRET)
    for number, template in enumerate(TEMPLATES):
        folder = place / f"template-{number}"
        folder.mkdir()
        for name, data in wordpiece().items():
            (folder / name).write_bytes(data)
        (folder / "chat_template.jinja").write_text(template.format(secret))
        yield f"template {number}", partial(_says_nothing, folder)


def _says_nothing(folder: Path) -> None:
    chat = Chat(load_tokenizer(folder), "it")
    texts = list(chat._texts([([("user", "hi")], True)], ()))
    if any(SECRET in text for text in texts):
        raise AssertionError("a template read what stands outside its folder")


def link_trials(place: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and links that lead out of a folder: read from, or written to."""
    good = GPT.create(GPT2, seed=0)
    for number, name in enumerate(("../victim/x.json", "/etc/hostname", "a/../../victim/x.json", "..")):
        folder = place / f"out-{number}" / "model"
        save_model(good, folder)
        told = json.loads((folder / "manifest.json").read_text())
        told["files"][name] = {"size": 0, "sha256": ""}
        (folder / "manifest.json").write_text(json.dumps(told))
        yield f"manifest names {name}", partial(load_model, folder)
    for name in ("config.json", "model.safetensors", "README.md", "manifest.json"):
        folder = place / f"link-{name}" / "model"
        save_model(good, folder)
        victim = place / f"victim-{name}"
        shutil.move(folder / name, victim)
        (folder / name).symlink_to(victim)
        yield f"link out: {name}, saved over", partial(_saved_over, good, folder, victim)


def _saved_over(model: GPT, folder: Path, victim: Path) -> None:
    before = victim.read_bytes()
    save_model(GPT.create(GPT2, seed=5), folder)
    if victim.read_bytes() != before:
        raise AssertionError("a file outside the folder was written")


def other_trials(place: Path) -> Tally:
    """All that leads out of a folder."""
    tally = Tally()
    for name, act in (*template_trials(place), *link_trials(place)):
        tally.add(name, attempt(act))
    return tally


def all_places(place: Path, *, runs: bool = True) -> list[Place]:
    """Every file that is read."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    return [*model_places(place), *shard_places(place), *data_places(all_formats(place / "data", runs=runs))]


def main() -> None:
    """Read the options, offer everything everywhere, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the order of payloads, if --n is given")
    parser.add_argument("--n", type=int, default=0, help="payloads for each place; 0: all")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch, goods = Path(folder) / "scratch", Path(folder) / "goods"
        scratch.mkdir()
        goods.mkdir()
        names = list(payloads(scratch / "marker"))
        places = all_places(goods)
        tally = offer_all(scratch, places, lambda _: rng.sample(names, options.n) if options.n else names)
        tally.show()
        others = other_trials(scratch)
        others.show()
    print(f"{len(names)} kinds of payload, {len(places)} places where a file is read")
    raise SystemExit(1 if tally.findings or others.findings else 0)


if __name__ == "__main__":
    main()
