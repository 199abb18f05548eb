"""Damage model, adapter, tokenizer and checkpoint folders in every way, and open them.

    python -m tests.faults.mutate_folders --n 2000 --seed 0

Each must end in a result or in one line, in bounded time and memory, and read and write nothing outside its folder.
Where a manifest stands, what is opened must be what was saved. Exit code 1 if anything else happens.
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nlpstack.convert import convert
from nlpstack.errors import NlpstackError
from nlpstack.hub import load_model, weights_hash
from nlpstack.model import LanguageModel
from nlpstack.tokenizer import load_tokenizer
from nlpstack.train.checkpoint import Checkpoints
from tests.faults.damage import BYTES, JSON, SAFETENSORS, TEXT, Change, odd_value
from tests.faults.goods import (
    checkpoint_folder,
    finished_run,
    gguf_file,
    model_folders,
    refit_manifest,
    tokenizer_folders,
)
from tests.faults.trials import ACCEPTED, EQUAL, FINDING, Trial, Wrong, main, one_line
from tests.tiny import nlpstack

KINDS = ("model",) * 7 + ("tokenizer", "checkpoint", "gguf")
RESUMED = 25  # one trial in so many is a run that is resumed by its command
WEIGHTS, INDEX, MANIFEST = "model.safetensors", "model.safetensors.index.json", "manifest.json"
SECRET = 1234.5  # the value of every weight outside the folder
Make = Callable[[int, Path, random.Random], Trial]


class Goods:
    """The whole folders that trials damage copies of, and what each of them is when it is opened."""

    def __init__(self, place: Path, *, runs: bool = True) -> None:
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or the library warns in each child
        self.models = model_folders(place / "models")
        self.tokenizers = tokenizer_folders(place / "tokenizers", self.models)
        self.checkpoints = checkpoint_folder(place / "checkpoints"), checkpoint_folder(place / "others", 1)
        llamas = enumerate(self.models["llama"])
        self.ggufs = [gguf_file(folder, place / "gguf" / f"{number}.gguf") for number, folder in llamas]
        self.run, self.resume = finished_run(place / "runs") if runs else (None, [])
        self.known = {folder: model_print(load_model(folder)) for pair in self.models.values() for folder in pair}
        self.known |= {folder: tokenizer_print(folder) for pair in self.tokenizers.values() for folder in pair}


def model_print(model: LanguageModel) -> tuple[object, ...]:
    """All that a model is: weights, shape, labels, tokenizer."""
    state = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    words = model.tokenizer
    told = (words.hash, words.chat_template, words.special_ids) if words is not None else ()
    return state, model.config, getattr(model, "heads", ()), getattr(model, "labels", None), told


def tokenizer_print(folder: Path) -> tuple[object, ...]:
    """All that a tokenizer is."""
    words = load_tokenizer(folder)
    return words.hash, words.chat_template, words.special_ids, words.vocab_size, words.encode("The king's <s> crown é")


# -- damage --------------------------------------------------------------------------------------------------------


def changes_for(file: Path) -> tuple[Change, ...]:
    """Ways to damage a file of its kind, the plain ones among them."""
    if file.suffix == ".safetensors":
        return (*SAFETENSORS, *SAFETENSORS, *BYTES)
    return (*JSON, *JSON, *BYTES) if file.suffix == ".json" else (*TEXT, *BYTES) if file.suffix == ".txt" else BYTES


def damage_file(file: Path, rng: random.Random) -> str:
    """Change what is in a file."""
    change = rng.choice(changes_for(file))
    file.write_bytes(change(file.read_bytes(), rng))
    return f"{change.__name__} {file.name}"


def swap_file(file: Path, rng: random.Random, other: Path) -> str:
    """Put the file of another whole folder, or another file of this one, in its place."""
    near = [one for one in sorted(file.parent.iterdir()) if one.is_file() and one != file]
    source = rng.choice([other / file.name] * 3 + near)
    if not source.is_file():
        source = rng.choice(near or [file])
    file.write_bytes(source.read_bytes())
    return f"swap {file.name} for {source.parent.name}/{source.name}"


def replace_file(file: Path, rng: random.Random, outside: Path) -> str:
    """No file stands there any more, or something else than a file."""
    what = rng.choice(
        ["missing", "missing", "folder", "link out", "link to nothing", "link to itself", "link to a device"]
    )
    data = file.read_bytes()
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "link out":
        (outside / "linked").write_bytes(rng.choice(BYTES)(data, rng) if rng.random() < 0.5 else data)
        file.symlink_to(outside / "linked")
    elif what != "missing":
        file.symlink_to({"link to nothing": "nowhere", "link to itself": file.name}.get(what, "/dev/zero"))
    return f"{what}: {file.name}"


def add_file(folder: Path, rng: random.Random, other: Path) -> str:
    """A file more, of a name that may be read, from another folder or damaged."""
    names = [one.name for one in sorted(other.iterdir()) if one.is_file() and not (folder / one.name).exists()]
    extra = ["chat_template.jinja", "special_tokens_map.json", "tokenizer_config.json", "nlpstack.json", "vocab.txt"]
    name = rng.choice([*names, *[one for one in extra if not (folder / one).exists()], "x.bin", "notes.txt"])
    data = (other / name).read_bytes() if name in names else b'{"a": 1}'
    (folder / name).write_bytes(data)
    return f"add {name}"


def lie_in_index(folder: Path, rng: random.Random, outside: Path) -> str:
    """An index, or a manifest, that names what is outside, not there, or no file at all."""
    file = folder / (INDEX if (folder / INDEX).exists() else MANIFEST)
    if not file.is_file():
        return damage_file(rng.choice(files_of(folder)), rng)
    table = None
    with suppress(ValueError, AttributeError, RecursionError):  # it was damaged before
        told = json.loads(file.read_bytes())
        table = told.get("weight_map", told.get("files"))
    if not isinstance(table, dict) or not table:
        return damage_file(file, rng)
    name = rng.choice(sorted(table))
    steps = os.path.relpath(outside / "secret.safetensors", folder)
    odd = [
        steps,
        str(outside / "secret.safetensors"),
        "../" + name,
        "",
        ".",
        "a\0b.safetensors",
        "x" * 300 + ".safetensors",
    ]
    place = rng.choice([*odd, "a\nb.safetensors", f"./{name}", f"{name}/../{name}"])
    if "weight_map" in told:
        table[name] = rng.choice([place, place, place, odd_value(rng)])
        if rng.random() < 0.3:
            table |= dict.fromkeys(table, place)
    elif rng.random() < 0.5:
        table[place] = table[name]
    else:
        told_of = table[name] if isinstance(table[name], dict) else {}
        table[name] = rng.choice([odd_value(rng), {**told_of, rng.choice(["size", "sha256"]): odd_value(rng)}])
    file.write_text(json.dumps(told))
    return f"lie in {file.name} {place[:20]!r}"


def files_of(folder: Path) -> list[Path]:
    """The files of a folder, in the order of their names."""
    return [one for one in sorted(folder.iterdir()) if one.is_file() and not one.is_symlink()]


def damage(folder: Path, other: Path, outside: Path, rng: random.Random) -> str:
    """Damage a folder in one way, or in two or three; how comes back."""
    done = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        files = files_of(folder)
        if not files:
            break
        file = rng.choice([one for one in files if one.name != "README.md"] or files)
        how = rng.randrange(12)
        if how == 0:
            done.append(swap_file(file, rng, other))
        elif how == 1:
            done.append(replace_file(file, rng, outside))
        elif how == 2:
            done.append(add_file(folder, rng, other))
        elif how in (3, 4):
            done.append(lie_in_index(folder, rng, outside))
        else:
            done.append(damage_file(file, rng))
    return ", ".join(done)


def surround(folder: Path) -> Path:
    """A folder beside the one that is damaged, with weights that nothing in it may lead to."""
    outside = folder.with_name("outside")
    outside.mkdir()
    save_file({"secret": torch.full((4,), SECRET)}, outside / "secret.safetensors")
    return outside


# -- trials --------------------------------------------------------------------------------------------------------


def guarded(folder: Path, outside: Path, act: Callable[[], object]) -> object:
    """What `act` gives back; Wrong if it changed anything in the folder or beside it."""
    before = _seen(folder), _seen(outside)
    try:
        return act()
    finally:
        if (_seen(folder), _seen(outside)) != before:
            raise Wrong("a file was written")


def _seen(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        return {"": folder.read_bytes()}
    return {p.name: (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.iterdir()}


def compared(found: tuple[object, ...], good: tuple[object, ...] | None) -> str:
    """EQUAL, or ACCEPTED where there is nothing to compare with; Wrong if it has to be equal and is not."""
    if good is None:
        return ACCEPTED
    if found != good:
        raise Wrong("accepted, though it is not what was saved")
    return EQUAL


def open_model(folder: Path, good: tuple[object, ...] | None, number: int) -> str:
    """Load a model, and now and then convert it, or read its tokenizer alone."""
    others = (weights_hash, *([load_tokenizer] * (number % 3 == 0)), *([_convert] * (number % 5 == 0)))
    for act in others:
        try:
            act(folder)
        except NlpstackError as error:
            if (verdict := one_line(str(error))).kind == FINDING:
                raise Wrong(verdict.text) from error
    model = load_model(folder)
    if any(bool((tensor == SECRET).any()) for tensor in model.state_dict().values()):
        raise Wrong("holds what stands outside the folder")
    return compared(model_print(model), good)


def _convert(folder: Path) -> None:
    out = folder.with_name("converted")
    try:
        convert(folder, out)
    finally:
        if any(path.name not in ("converted", "outside") and path != folder for path in folder.parent.iterdir()):
            raise Wrong("convert left something beside its --out")


def model_trial(goods: Goods, number: int, place: Path, rng: random.Random) -> Trial:
    """A model or adapter folder, every second one without its manifest."""
    name = rng.choice(sorted(goods.models))
    good, other = rng.choice([goods.models[name], goods.models[name][::-1]])
    folder = Path(shutil.copytree(good, place / name))
    outside = surround(folder)
    foreign = number % 2 == 1 or not (folder / MANIFEST).exists()
    if foreign:
        (folder / MANIFEST).unlink(missing_ok=True)
    how = damage(folder, other, outside, rng)
    sure = not foreign and listed(folder) >= listed(good)  # else nothing says what the folder was
    kept = goods.known[good] if sure else None
    kind = "foreign" if foreign else "own"
    act = partial(guarded, folder, outside, partial(open_model, folder, kept, number))
    return Trial(f"{kind}-{name} {number}: {how}", act)


def listed(folder: Path) -> set[str]:
    """The files that a folder's manifest names; none if it cannot be read."""
    try:
        return set(json.loads((folder / MANIFEST).read_bytes())["files"]) if (folder / MANIFEST).is_file() else set()
    except (ValueError, LookupError, TypeError, RecursionError):
        return set()


def tokenizer_trial(goods: Goods, number: int, place: Path, rng: random.Random) -> Trial:
    """A tokenizer folder, with a manifest made for it or without."""
    name = rng.choice(sorted(goods.tokenizers))
    good, other = rng.choice([goods.tokenizers[name], goods.tokenizers[name][::-1]])
    folder = Path(shutil.copytree(good, place / "tokenizer"))
    outside = surround(folder)
    if number % 2 == 0:
        refit_manifest(folder)
    names = {file.name for file in files_of(good)}
    how = damage(folder, other, outside, rng)
    kept = goods.known[good] if names <= listed(folder) else None
    act = partial(guarded, folder, outside, lambda: compared(tokenizer_print(folder), kept))
    return Trial(f"tokenizer-{name} {number}: {how}", act)


def gguf_trial(goods: Goods, number: int, place: Path, rng: random.Random) -> Trial:
    """A GGUF file."""
    file = Path(shutil.copy(goods.ggufs[number % 2], place / "model.gguf"))
    outside = surround(file)
    hows = [damage_file(file, rng) for _ in range(rng.randint(1, 3))]
    act = partial(guarded, file, outside, partial(open_model, file, None, number))
    return Trial(f"gguf {number}: {', '.join(hows)}", act)


def checkpoint_trial(goods: Goods, number: int, place: Path, rng: random.Random) -> Trial:
    """A run's checkpoints, one or both damaged; of every second trial the manifest is made to fit the damage."""
    folder = Path(shutil.copytree(goods.checkpoints[0], place / "checkpoints"))
    outside = surround(folder)
    steps = sorted(folder.iterdir())
    hows = []
    for step in steps[-1:] if rng.random() < 0.7 else steps:
        hows.append(damage(step, goods.checkpoints[1] / step.name, outside, rng))
        if number % 2 and (step / MANIFEST).is_file():
            refit_manifest(step)
    return Trial(f"checkpoint {number}: {', '.join(hows)}", partial(_newest, folder, goods, fits=number % 2 == 1))


def _newest(folder: Path, goods: Goods, *, fits: bool) -> str:
    found = Checkpoints(folder).load_newest(lambda line: None)
    if found is None:
        raise Wrong("a folder of checkpoints was taken for an empty one")
    if fits:
        return ACCEPTED
    known = Checkpoints(goods.checkpoints[0])
    for step in known.steps():
        good = known.load(step)
        same = all(torch.equal(found.model[name], tensor) for name, tensor in good.model.items() if name in found.model)
        if found.state == good.state and found.model.keys() == good.model.keys() and same:
            return EQUAL
    raise Wrong("accepted, though it is not what was saved")


def resume_trial(goods: Goods, number: int, place: Path, rng: random.Random) -> Trial:
    """A run whose newest checkpoint, log, figures or config are damaged, resumed by the command."""
    assert goods.run is not None
    run = Path(shutil.copytree(goods.run, place / "run"))
    if rng.random() < 0.7:
        (run / "results.json").unlink()
    files = [*run.glob("checkpoints/*/*"), run / "metrics.jsonl", run / "config.toml", *run.glob("results.json")]
    state = [file for file in files if file.name == "state.json"]
    file = rng.choice([*sorted(files), *state])
    change = rng.choice((*TEXT, *BYTES) if file.suffix == ".toml" else changes_for(file))
    file.write_bytes(change(file.read_bytes(), rng))
    if file.parent.parent.name == "checkpoints" and rng.random() < 0.8:
        refit_manifest(file.parent)
    words = [run if word == goods.run else word for word in goods.resume]
    (run.parent / ".cache").symlink_to(goods.run.parent / ".cache")  # nothing is tokenized again
    where = file.relative_to(run)
    return Trial(f"resume {number}: {change.__name__} {where}", partial(nlpstack, *words))


def make_in(place: Path) -> Make:
    """The function that makes trials of folders in a place of its own."""
    goods = Goods(place / "goods")
    return partial(make_trial, goods)


def make_trial(goods: Goods, number: int, place: Path, rng: random.Random) -> Trial:
    """Trial `number`: what kind of folder it damages depends on the number alone."""
    if goods.run is not None and number % RESUMED == RESUMED - 1:
        return resume_trial(goods, number, place, rng)
    kind = KINDS[(number // 2) % len(KINDS)]
    trial = {"model": model_trial, "tokenizer": tokenizer_trial, "checkpoint": checkpoint_trial, "gguf": gguf_trial}
    return trial[kind](goods, number, place, rng)


if __name__ == "__main__":
    main(__doc__, make_in, 2000)
