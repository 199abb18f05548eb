"""A model folder and its card: Hugging Face's layout, written whole or not at all, checked before it is believed."""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from nlpstack.errors import ModelError, NlpstackError, did_you_mean
from nlpstack.files import ASIDE_SUFFIX, MANIFEST, new_folder, read_json_object, sha256_file, standing, verify_manifest
from nlpstack.hub import families
from nlpstack.hub.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_files, is_adapter, load_adapter
from nlpstack.hub.gguf import GGUF, SUFFIX
from nlpstack.hub.weights import MEND, READABLE, WEIGHTS, Weights, refuse_pickle, refuse_pickles, write_tensors
from nlpstack.model import BERT, GPT, LanguageModel, TransformerConfig, on_meta
from nlpstack.model.lora import adapters
from nlpstack.tokenizer import Tokenizer, load_tokenizer

T = TypeVar("T")
Device = str | torch.device

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.model", "tokenizer.json", "vocab.txt", "vocab.json")  # any of these: there is a tokenizer
_OUTPUTS = ("classifier.weight", "classifier.out_proj.weight")  # of our format and the families'
CARD = "README.md"
_FRONT = ("name", "license", "language", "family", "outputs")  # facts with a place of their own
_WORDS = tomllib.loads(Path(__file__).with_name("card.toml").read_text("utf-8"))
_ATTEMPTS = 1000  # how often reading starts again because a writer has just put a new folder in place


def save_model(model: LanguageModel, path: str | Path, *, card: str | None = None) -> None:
    """Write the model's folder, tokenizer included, in place of an older one; equal models give equal bytes.

    Of a model with adapters it is the adapter's folder, and `model.base` has to name the base. `card`: README's text,
    else what the model itself shows. ModelError, and nothing is replaced, if no model folder of ours stands at `path`.
    """
    target = Path(path).resolve()
    ours = (target / MANIFEST).is_file() and any((target / name).is_file() for name in (CONFIG, ADAPTER_CONFIG))
    if target.exists() and (not target.is_dir() or any(target.iterdir())) and not ours:
        fault = "stands there and is not a model folder that nlpstack wrote, so it is not replaced"
        raise ModelError(f"{target}: {fault}; choose another place or move it away")
    whole = not adapters(model)
    made, tensors = _whole_files(model, target) if whole else adapter_files(model)
    texts = {name: json.dumps(one, indent=2, sort_keys=True, allow_nan=False) + "\n" for name, one in made.items()}
    texts[CARD] = model_card(shape_facts(model)) if card is None else card
    with new_folder(target, free_text=frozenset((CARD,))) as folder:
        for name, text in texts.items():
            (folder / name).write_bytes(text.encode())
        write_tensors(folder / (WEIGHTS if whole else ADAPTER_WEIGHTS), tensors, {"format": "pt"})
        if whole and model.tokenizer is not None:
            # An encoder's inputs are framed, and no longer than its position table.
            framed = {"max_length": model.config.max_seq_len, "pairs": True} if isinstance(model, BERT) else {}
            model.tokenizer.save(folder, **framed)


def _whole_files(model: LanguageModel, source: Path) -> tuple[dict[str, families.Json], dict[str, Tensor]]:
    """A whole model's JSON files, by name, and tensors, as its family has them; ModelError for another's tokenizer."""
    ids = {f"{name}_token_id": getattr(model.tokenizer, f"{name}_id", None) for name in ("bos", "eos", "pad")}
    values = families.write_config(model.config, families.model_heads(model), getattr(model, "labels", None))
    _check_tokenizer(model.tokenizer, model.config, values, source)
    dtype = str(model.transformer.tokens.weight.dtype).removeprefix("torch.")
    # Ids that are not there are null, since the families' defaults differ; torch_dtype: until transformers 4.56.
    texts: dict[str, families.Json] = {CONFIG: ids | values | {"dtype": dtype, "torch_dtype": dtype}}
    if isinstance(model, GPT) and (known := {key: token for key, token in ids.items() if token is not None}):
        texts["generation_config.json"] = known
    family = str(values["model_type"])
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors = {}
    for stored in families.layout(family, list(state)):
        parts = [state[name] for name in stored.holds]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        tensors[stored.name] = (whole.T if stored.transposed else whole).contiguous()
    if not model.config.tied:
        for second, first in families.second_names(family, tensors, tied=False).items():
            tensors[second] = tensors[first].clone()
    prefix = families.bare_prefix(model.config, families.model_heads(model))
    return texts, {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def load_model(
    path: str | Path,
    *,
    device: Device = "cpu",
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> LanguageModel:
    """The model of a run, model, adapter or published folder, in evaluation mode, its tokenizer attached if it has one.

    `base` is where an adapter's base model stands, if not where the adapter says; `note` is told what cannot be proved.
    A causal shape is a GPT, any other a BERT with the heads whose weights are there. Weights of fewer than 32 bits
    become fp32 unless `dtype` says otherwise. ModelError where anything is missing, altered, unused or not supported.
    """

    def read(folder: Path) -> LanguageModel:
        if is_adapter(folder):
            return load_adapter(folder, base, read_base, note)
        if base is not None:
            raise ModelError(f"{folder}: a whole model, not an adapter, so it has no base; leave --base out")
        return read_folder(folder, GGUF(folder) if folder.is_file() else None, device, dtype)

    def read_base(place: Path) -> LanguageModel:
        model = load_model(place, device=device, dtype=dtype)
        if adapters(model):
            raise ModelError(f"{place}: an adapter itself, so it is no base; merge it first: nlpstack merge {place}")
        model.base = str(place), weights_hash(place)
        return model

    return _undisturbed(path, read)


def weights_hash(path: str | Path) -> str:
    """SHA-256 of the weights file that load_model would read from, or of several, as hexadecimal digits."""

    def read(folder: Path) -> str:
        if folder.is_file():
            return sha256_file(folder)
        return Weights(folder, ADAPTER_WEIGHTS if is_adapter(folder) else WEIGHTS).hash()

    return _undisturbed(path, read)


def model_folder(path: str | Path) -> Path:
    """The folder that holds a run's model, or the given folder if it holds one; raises ModelError otherwise."""
    folder = standing(Path(path))
    if not folder.exists():
        near = f"; nor is there a folder {folder.parent}"
        if folder.parent.is_dir():
            names = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
            near = did_you_mean(folder.name, names, str(folder).removesuffix(folder.name))
        raise ModelError(f"{path}: no such file or folder{near}")
    if folder.is_file():
        if folder.suffix == SUFFIX:
            return folder
        refuse_pickle(folder)
        raise ModelError(f"{path}: a file; give the folder that holds it")
    for place in (folder, standing(folder / "model")):
        if (place / CONFIG).is_file() or is_adapter(place):
            return place
    if (folder / "config.toml").is_file():
        cure = "resume it: the command that started it, with --resume"
        raise ModelError(f"{path}: a run that has no finished model yet; {cure}")
    refuse_pickles(folder)
    raise ModelError(f"{path}: holds no model: neither {CONFIG} and {WEIGHTS}, nor a run's model/ folder")


def _undisturbed(path: str | Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of the model folder, all of it from one folder, though a writer may exchange it meanwhile."""
    for _ in range(_ATTEMPTS):
        before = _identity(path)
        try:
            result = read(model_folder(path))
        except (NlpstackError, OSError) as error:
            if _identity(path) != before:
                continue
            if isinstance(error, OSError):
                raise ModelError(f"{path}: cannot be read ({error})") from error
            raise
        if _identity(path) == before:
            return result
    raise ModelError(f"{path}: is exchanged faster than it can be read; try again")


def _identity(path: str | Path) -> list[tuple[str, int, int, int]]:
    """What stands at a model's or run's folder and beside it; changes whenever one is exchanged."""
    found = []
    for folder in (f"{place}{aside}" for place in (path, Path(path) / "model") for aside in ("", ASIDE_SUFFIX)):
        with suppress(OSError):
            status = os.stat(folder)
            found.append((folder, status.st_dev, status.st_ino, status.st_ctime_ns))
    return found


def read_folder(
    place: Path, given: Weights | None = None, device: Device = "cpu", dtype: torch.dtype | None = None
) -> LanguageModel:
    """The model of a folder, its weights read from its own files or those `given`, or of a GGUF file, given too."""
    tokenizer: Tokenizer | None
    if isinstance(given, GGUF):
        source, values, tokenizer = place, given.config(), given.tokenizer()
    else:
        source = place / CONFIG
        verify_manifest(place, ModelError, MEND)
        values = read_json_object(source, ModelError)
        there = any((place / name).is_file() for name in TOKENIZERS)
        tokenizer = load_tokenizer(place, verify=False) if there else None
    config = families.read_config(values, source)
    if config.causal and config.n_segments:
        raise ModelError(f"{source}: causal=True with n_segments={config.n_segments}; a GPT reads no segments")
    weights = given or Weights(place, WEIGHTS)
    _check_tokenizer(tokenizer, config, values, place)
    model, state = _read_weights(weights, config, values, device, dtype)
    model.load_state_dict(state, strict=True, assign=True)
    model.tokenizer = tokenizer
    return model.eval()


def _check_tokenizer(tokenizer: object, config: TransformerConfig, values: Mapping[str, object], source: Path) -> None:
    size, pad = getattr(tokenizer, "vocab_size", 0), getattr(tokenizer, "pad_id", None)
    first, cure = config.position_offset, "use the tokenizer the model was trained with"
    if size > config.vocab_size:
        fault = f"the tokenizer has {size:,} ids and the model {config.vocab_size:,}, so they do not belong together"
        raise ModelError(f"{source}: {fault}; {cure}")
    if values["model_type"] == "roberta" and pad not in (None, first - 1):
        why = f"a RoBERTa's positions start at {first}, its pad id + 1"
        fault = f"the tokenizer's pad id is {pad} and the model's has to be {first - 1}, since {why}"
        raise ModelError(f"{source}: {fault}; {cure}")


def _read_weights(
    weights: Weights, config: TransformerConfig, values: families.Json, device: Device, dtype: torch.dtype | None
) -> tuple[LanguageModel, dict[str, Tensor]]:
    """The model on the meta device, and its tensors, each in memory of its own."""
    family, source = str(values["model_type"]), weights.source
    present = families.stored_names(family, list(weights.sizes))
    sizes = {name: weights.sizes[there] for name, there in present.items()}
    kinds = {name: weights.kinds[there] for name, there in present.items()}
    for name, kind in kinds.items():
        if kind not in READABLE:
            there = ", ".join(READABLE)
            raise ModelError(f"{source}: {name} is stored as {kind}, which is not supported; there are {there}")
    model = _on_meta(config, values, sizes, source)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    plan = families.layout(family, list(shapes))
    if isinstance(weights, GGUF):  # there no matrix lies transposed
        plan = [stored._replace(transposed=False) for stored in plan]
    wanted = {}
    for stored in plan:
        size = [sum(shapes[name][0] for name in stored.holds), *shapes[stored.holds[0]][1:]]
        wanted[stored.name] = size[::-1] if stored.transposed else size
    present = _named_once(weights, present, families.second_names(family, wanted, tied=config.tied), tied=config.tied)
    sizes = {name: weights.sizes[there] for name, there in present.items()}
    said = "its metadata" if isinstance(weights, GGUF) else CONFIG
    families.check_tensors(source, sizes, wanted, said, MEND)
    for kind in kinds.values() if dtype is None else ():
        dtype = torch.promote_types(dtype or torch.float32, READABLE[kind])
    state = {}
    for stored in plan:
        tensor = weights.read(present[stored.name])
        rows = (tensor.T if stored.transposed else tensor).split([shapes[name][0] for name in stored.holds])
        for name, part in zip(stored.holds, rows, strict=True):
            own = weights.fresh and part.is_contiguous()
            state[name] = part.to(device, dtype, copy=not own, memory_format=torch.contiguous_format)
    return model, state


def _on_meta(config: TransformerConfig, values: families.Json, sizes: families.Sizes, file: Path) -> LanguageModel:
    """The model without memory for its weights, with the heads whose tensors are among those of these sizes."""
    source = file if file.suffix == SUFFIX else file.parent / CONFIG
    if config.n_layers > (n := len(sizes)):  # before a config that lies makes billions of layers
        raise ModelError(f"{file}: {n} tensors, too few for the {config.n_layers:,} layers of {CONFIG}; {MEND}")
    heads = families.heads_of(values, sizes)
    for head, name in (("nsp", "next-sentence head"), ("sequence", "classifier of texts")):
        if head in heads and "pooler" not in heads and not config.causal:
            raise ModelError(f"{file}: holds a {name}, but lacks the pooler that it stands on; {MEND}")
    outputs = [size[0] for name, size in sizes.items() if name.endswith(_OUTPUTS) and size and all(size)]
    labels = families.read_labels(values, (outputs or [1])[-1], source) if {"sequence", "tokens"} & set(heads) else None
    try:
        with on_meta():
            return GPT(config) if config.causal else BERT(config, heads=heads, labels=labels)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ModelError(f"{source}: sizes that no tensor can have; {MEND}") from error


def _named_once(weights: Weights, present: dict[str, str], twice: Mapping[str, str], *, tied: bool) -> dict[str, str]:
    """`present` without second names; a tied model's file may hold one tensor twice, but not two tensors."""
    present = dict(present)
    for second, first in twice.items():
        if (there := present.pop(second, None)) is None:
            continue
        if tied and first in present:
            one, other = weights.read(there), weights.read(present[first])
            if one.dtype != other.dtype or not torch.equal(one, other):
                fault = f"{second} is not {first}, though {CONFIG} ties them (tie_word_embeddings)"
                raise ModelError(f"{weights.source}: {fault}")
        else:
            present[first] = there
    return present


def shape_facts(model: LanguageModel) -> dict[str, object]:
    """What a card can say of any model: family, a BERT's heads as `outputs`, parameters and shape."""
    config, heads = model.config, families.model_heads(model)
    return {
        "family": families.family_of(config, heads),
        **({"outputs": heads} if isinstance(model, BERT) else {}),
        **({"adapts": model.base[0]} if model.base else {}),  # with adapters: the folder of the base
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{"layers": config.n_layers, "dim": config.dim, "heads": config.n_heads},
        **{"context": f"{config.max_seq_len:,} tokens", "vocabulary": config.vocab_size},
    }


def license_of(folder: Path) -> str | None:
    """The licence that the front of a model folder's README.md names, or a GGUF file; None if none is named."""
    if folder.suffix == SUFFIX and folder.is_file():
        return str(GGUF(folder).said.get("general.license") or "") or None
    page = next((one for place in (folder, folder / "model") if (one := place / CARD).is_file()), None)
    front = re.match(r"---\n(.*?)\n---", page.read_text("utf-8", errors="replace"), re.DOTALL) if page else None
    named = re.search(r"^license: *(\S.*)$", front[1], re.MULTILINE) if front else None
    return named[1].strip("\"' ") if named else None


def model_card(facts: Mapping[str, object]) -> str:
    """The text of README.md.

    `name`, `license`, `language` and `family` (as families.family_of) have their places, and so have `outputs`, the
    heads of a BERT, without which the card is a GPT's; every other fact is a line of the list, in the given order, a
    mapping (scores, say) a list below its line. Values are shown as they are.
    """
    family, outputs = facts.get("family"), facts.get("outputs")
    words, heads = (_WORDS["bert"], outputs) if isinstance(outputs, tuple | list) else (_WORDS["gpt"], ())
    task, loader = next(found for needed, found in words["tasks"].items() if set(needed.split()) <= set(heads))
    opens = family in families.FAMILIES
    front = {
        "library_name": "nlpstack" if not opens else "peft" if facts.get("adapts") else "transformers",
        "pipeline_tag": task,
        "tags": ["nlpstack", task],
        **{key: facts[key] for key in ("license", "language") if facts.get(key)},
    }
    kind = f" of the {family} family" if opens else " of a shape that only nlpstack opens" if family else ""
    does = "".join(f", {what}" for head, what in words["does"].items() if head in heads)
    page: str = _WORDS["page"]
    return page.format(
        # JSON is YAML, and leaves nothing to quote wrongly.
        front="".join(f"{key}: {json.dumps(value, default=str)}\n" for key, value in front.items()),
        name=_plain(facts.get("name") or "A language model"),
        description=words["description"].format(kind=kind, does=does),
        facts="\n".join(_lines(facts)) or "Nothing is recorded.",
        intended=words["intended"],
        transformers=_WORDS["transformers"].format(loader=loader) if opens and not facts.get("adapts") else "",
    )


def _lines(facts: Mapping[str, object]) -> Iterator[str]:
    for key, value in facts.items():
        if key in _FRONT or value is None:
            continue
        if isinstance(value, Mapping):
            yield from (f"- {_plain(key)}:", *(f"  - {_plain(name)}: {_plain(part)}" for name, part in value.items()))
        else:
            yield f"- {_plain(key)}: {_plain(value)}"


def _plain(value: object) -> str:
    """The value on one line, with whatever Markdown or HTML would read as markup escaped."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    line = re.sub(r"[\s\x00-\x1f\x7f]+", " ", str(value)).strip()
    line = re.sub(r"([\\`*\[\]<>|~#&$])", r"\\\1", line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # inside a word it marks nothing up
