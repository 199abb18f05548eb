"""An adapter folder: PEFT's layout, with every newly made head in it, its labels, and the hash of the base it fits."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pydantic import FiniteFloat
from torch import Tensor, nn

from nlpstack.config import checked, validated
from nlpstack.errors import ModelError
from nlpstack.files import read_json_object, verify_manifest
from nlpstack.hub import families
from nlpstack.hub.weights import read_tensors
from nlpstack.model import BERT, LanguageModel, on_meta
from nlpstack.model.heads import ALL_HEADS, Head, Labels
from nlpstack.model.lora import AdapterSize, LoRAConfig, adapters, add_lora, trainable_state

ADAPTER_CONFIG, ADAPTER_WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "nlpstack.json"
Linears = dict[str, tuple[str, ...]]  # the family's name of a linear layer -> ours, which may be several stacked in one
_ROOT = "base_model.model."  # before every name in a PEFT file
_TASKS: Mapping[str, tuple[Head, ...]] = {"SEQ_CLS": ("pooler", "sequence"), "TOKEN_CLS": ("tokens",)}
_PARTS = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "magnitude"}
_PART = re.compile(rf"(.*)\.({'|'.join(map(re.escape, _PARTS))})")
_MEND = "copy the folder again, or train the adapter again"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def adapter_files(model: LanguageModel) -> tuple[dict[str, families.Json], dict[str, Tensor]]:
    """The JSON files, by name, and tensors of what trains, which `peft` opens on the base that `model.base` names."""
    wrapped = adapters(model)
    if model.base is None:
        raise ModelError("the model has adapters, and its `base` does not say on what; merge them to save it whole")
    base, base_sha256 = model.base
    heads = families.model_heads(model)
    family = families.family_of(model.config, heads)
    prefix = families.bare_prefix(model.config, heads)
    linears = {name.removeprefix(prefix): ours for name, ours in _linear_names(model, family).items()}
    tensors, sizes = _to_peft(model, linears)
    state, trained, saved = model.state_dict(), trainable_state(model), set()
    plain = [name.replace(".base.", ".") for name in state if not name.endswith(tuple(_PARTS.values()))]
    for stored in families.layout(family, plain):
        # PEFT wants the classifier of SEQ_CLS and TOKEN_CLS there, trained or not.
        if stored.holds[0] in trained or stored.name.startswith("classifier."):
            tensors[_ROOT + stored.name.removeprefix(prefix)] = state[stored.holds[0]].cpu().contiguous()
            # PEFT knows what is saved whole by the head it belongs to.
            saved.add("pooler" if ".pooler." in stored.name else stored.name.partition(".")[0])
    first = next(iter(wrapped.values()))  # they are all alike but for their size
    targets = sorted({name.rpartition(".")[2] for name in wrapped})
    dora = first.magnitude is not None
    config = LoRAConfig(**first.size._asdict(), dropout=first.dropout, rslora=first.rslora, dora=dora, targets=targets)
    patterns = {name: size for name, size in sizes.items() if size != first.size}
    tasks = (task for task, (*_, head) in _TASKS.items() if head in heads)
    task = next(tasks, "CAUSAL_LM" if model.config.causal else None)
    # Ends of module names, if they match all of the wrapped layers and no other, else whole names.
    ends = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in sizes})
    matched = [name for name in linears if any(name == end or name.endswith(f".{end}") for end in ends)]
    values: families.Json = {
        **{"peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "inference_mode": True},
        **{"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none"},
        **{"use_rslora": config.rslora, "use_dora": config.dora, "fan_in_fan_out": family == "gpt2"},
        "target_modules": ends if sorted(matched) == sorted(sizes) else list(sizes),
        "rank_pattern": {name: size.rank for name, size in patterns.items()},
        "alpha_pattern": {name: size.alpha for name, size in patterns.items()},
        "modules_to_save": sorted(saved) or None,
    }
    labels = getattr(model, "labels", None)
    ours: families.Json = {"base": base, "base_sha256": base_sha256, "heads": list(heads), "lora": asdict(config)}
    ours["labels"] = labels._asdict() if labels else None
    return {ADAPTER_CONFIG: values, OURS: ours}, tensors


def _linear_names(model: LanguageModel, family: str) -> Linears:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".blocks." in name]
    plan = families.layout(family, [f"{name.removesuffix('.base')}.weight" for name in names])
    return {s.name.removesuffix(".weight"): tuple(one.removesuffix(".weight") for one in s.holds) for s in plan}


def _to_peft(model: LanguageModel, linears: Linears) -> tuple[dict[str, Tensor], dict[str, AdapterSize]]:
    """The adapters' tensors as PEFT stores them, and each one's size."""
    # Where layers of ours are stacked in one, their ranks are added: A's lie one below the other, B's on the diagonal.
    wrapped = adapters(model)
    magnitudes = {name: layer.magnitude for name, layer in wrapped.items() if layer.magnitude is not None}
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, AdapterSize] = {}
    for theirs, ours in linears.items():
        if not (parts := [wrapped[name] for name in ours if name in wrapped]):
            continue
        n, one = len(parts), parts[0]
        sizes[theirs] = AdapterSize(one.size.rank * n, one.size.alpha * (n**0.5 if one.rslora else n))
        tensors[f"{_ROOT}{theirs}.lora_A.weight"] = torch.cat([part.lora_a for part in parts])
        diagonal = [  # a layer without an adapter has rows of zeros
            wrapped[name].lora_b if name in wrapped else one.lora_b.new_empty(_linear(model, name).out_features, 0)
            for name in ours
        ]
        tensors[f"{_ROOT}{theirs}.lora_B.weight"] = torch.block_diag(*diagonal)
        if magnitudes:
            lengths = {name: _linear(model, name).weight.norm(dim=1) for name in ours} | magnitudes
            tensors[f"{_ROOT}{theirs}.lora_magnitude_vector"] = torch.cat([lengths[name] for name in ours])
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}, sizes


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    return cast(nn.Linear, getattr(layer, "base", layer))


@dataclass
class _Ours:
    base: str
    base_sha256: str
    heads: list[Head]
    lora: LoRAConfig
    labels: Labels | None


class _Read(NamedTuple):
    file: Path  # of the tensors
    asked: Mapping[str, Any]  # by PEFT's file
    ours: Mapping[str, Any]  # of our own file, nothing where another program wrote the folder
    config: LoRAConfig
    tensors: dict[str, Tensor]


def load_adapter(
    folder: Path, base: str | Path | None, load_base: Callable[[Path], LanguageModel], note: Callable[[str], None]
) -> LanguageModel:
    """The base model with the adapter of a folder in it; `load_base` gives the model of a folder, and sets its `base`.

    Raises ModelError if the base is another one than the adapter was trained on, or if any tensor is missing or unused.
    """
    verify_manifest(folder, ModelError, _MEND)
    asked = read_json_object(folder / ADAPTER_CONFIG, ModelError)
    ours = read_json_object(folder / OURS, ModelError) if (folder / OURS).is_file() else {}
    ours = asdict(checked(_Ours, ours, folder / OURS, ModelError)) if ours else {}
    config = _read_lora(asked, ours, folder / ADAPTER_CONFIG)
    named = ours.get("base") or asked.get("base_model_name_or_path")
    place = Path(base) if base is not None else _find_base(folder, named)
    model = load_base(place)
    assert model.base is not None
    if not ours:
        note(f"{folder}: written without nlpstack, so it is unproved that {place} is its base; only shapes are checked")
    elif model.base[1] != ours.get("base_sha256"):
        fault = f"trained on another base than {place} (its weights differ)"
        raise ModelError(f"{folder}: {fault}; give the right one with --base DIR")
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ModelError(f"{file}: missing; {_MEND}")
    tensors = {name.removeprefix(_ROOT): tensor for name, tensor in read_tensors(file, ModelError).items()}
    return _assemble(model, _Read(file, asked, ours, config, tensors))


def _find_base(folder: Path, named: object) -> Path:
    """The base model's folder: as it is named, from here or from a folder above the adapter."""
    if not isinstance(named, str) or not named:
        raise ModelError(f"{folder}: names no base model; give it with --base DIR")
    for place in (Path(named), *(parent / named for parent in folder.resolve().parents)):
        if place.is_dir():
            return place
    raise ModelError(f"{folder}: its base {named} is not there; give it with --base DIR")


def _read_lora(asked: Mapping[str, Any], ours: Mapping[str, Any], source: Path) -> LoRAConfig:
    if asked.get("peft_type") != "LORA":
        raise ModelError(f"{source}: peft_type={asked.get('peft_type')!r} is not supported; LORA is")
    if asked.get("bias", "none") != "none":
        raise ModelError(f"{source}: bias={asked['bias']!r} is not supported; 'none' is")
    if other := [key for key in families.NOT_OF_PEFT if asked.get(key)]:
        raise ModelError(f"{source}: {other[0]}={asked[other[0]]!r} is not supported; plain LoRA, rsLoRA and DoRA are")
    values = ours.get("lora") or {
        **{"rank": asked.get("r"), "alpha": asked.get("lora_alpha"), "dropout": asked.get("lora_dropout", 0.0)},
        **{"rslora": asked.get("use_rslora", False), "dora": asked.get("use_dora", False)},
    }
    config = validated(LoRAConfig, values, lambda key: f"{source}: {key}".rstrip(), ModelError)
    if config.rank < 1:
        raise ModelError(f"{source}: r={config.rank} must be at least 1")
    return config


def _assemble(base: LanguageModel, read: _Read) -> LanguageModel:
    model = _with_heads(base, read) if isinstance(base, BERT) else base
    family = families.family_of(model.config, families.model_heads(model))
    linears = _linear_names(model, family)
    grouped: dict[str, dict[str, Tensor]] = {}  # their module -> our names of its parts
    values: dict[str, Tensor] = {}
    for name, tensor in read.tensors.items():
        if match := _PART.fullmatch(name):
            grouped.setdefault(match[1], {})[_PARTS[match[2]]] = tensor
        else:
            values[name] = tensor  # for which there is no place
    sizes: dict[str, AdapterSize] = {}
    place = read.file.with_name(ADAPTER_CONFIG)
    usual = checked(FiniteFloat, read.asked.get("lora_alpha", read.config.alpha), f"{place}: lora_alpha", ModelError)
    given = read.asked.get("alpha_pattern") or {}
    patterns = checked(dict[str, FiniteFloat], given, f"{place}: alpha_pattern", ModelError)
    if odd := [key for key in patterns if not re.fullmatch(r"[\w.^|]+", key)]:  # others may take for ever to match
        raise ModelError(f"{place}: alpha_pattern {odd[0]!r} is not supported; names of layers are")
    for whole, there in families.stored_names(family, [f"{name}.weight" for name in grouped]).items():
        if (module := whole.removesuffix(".weight")) not in linears:
            raise ModelError(f"{read.file}: adapts {module}, which is no linear layer of the base's blocks; {_MEND}")
        # The first pattern that matches the end of a name counts.
        alpha = next((v for key, v in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), usual)
        for name, size, one in _split(model, linears[module], grouped[there.removesuffix(".weight")], alpha, read):
            sizes[name] = size
            values |= {f"{name}.{part}": tensor for part, tensor in one.items()}
    if not sizes:
        raise ModelError(f"{read.file}: holds no adapter that fits the base; {_MEND}")
    add_lora(model, read.config, sizes=sizes)
    _check(values, trainable_state(model), read.file)
    model.load_state_dict(values, strict=False)
    model.base = base.base
    return model.eval()


def _split(
    model: LanguageModel, names: tuple[str, ...], parts: dict[str, Tensor], alpha: float, read: _Read
) -> Iterator[tuple[str, AdapterSize, dict[str, Tensor]]]:
    """The adapters of our layers that one of PEFT's holds: ours lie on its diagonal, another's share its A."""
    if missing := {"lora_a", "lora_b"} - parts.keys():
        raise ModelError(f"{read.file}: {names[0]} lacks its {' and '.join(sorted(missing))}; {_MEND}")
    a, b, lengths = parts["lora_a"], parts["lora_b"], parts.get("magnitude")
    n_rows = [_linear(model, name).out_features for name in names]
    if b.dim() != 2 or a.dim() != 2 or sum(n_rows) != len(b) or b.shape[1] != len(a):
        shapes = f"A {list(a.shape)} and B {list(b.shape)}"
        raise ModelError(f"{read.file}: {names[0]}: {shapes} do not fit the base; {_MEND}")
    asked = [name for name in names if name.rpartition(".")[2] in read.config.targets]
    adapted = asked if read.ours and asked else list(names)
    n = len(adapted) if read.ours else 1
    size = AdapterSize(len(a) // n, alpha / (n**0.5 if read.config.rslora else n))
    for name, rows in zip(names, torch.arange(len(b)).split(n_rows), strict=True):
        if name in adapted:
            first = adapted.index(name) * size.rank if read.ours else 0
            columns = slice(first, first + size.rank)
            one = {"lora_a": a[columns], "lora_b": b[rows, columns]}
            if lengths is not None:
                one["magnitude"] = lengths[rows]
            yield name, size, {part: tensor.contiguous().clone() for part, tensor in one.items()}


def _with_heads(base: BERT, read: _Read) -> BERT:
    """The base with the heads that the adapter brings, taken out of its tensors, in place of its own."""
    wanted = read.ours.get("heads") or _TASKS.get(str(read.asked.get("task_type"))) or base.heads
    heads = tuple(head for head in ALL_HEADS if head in wanted)
    labels = None
    if {"sequence", "tokens"} & set(heads):
        there = (t for name, t in read.tensors.items() if re.search(r"classifier\.(out_proj\.)?weight$", name))
        outputs = (len(t) for t in there if t.dim() and t.numel())
        labels = base.labels or Labels(tuple(f"LABEL_{number}" for number in range(next(outputs, 0))))
        labels = read.ours.get("labels") or labels
    try:
        with on_meta():
            model = BERT(base.config, base.tokenizer, heads=heads, labels=labels)
    except (AssertionError, RuntimeError) as error:
        raise ModelError(f"{read.file}: its heads {', '.join(heads)} do not fit the base") from error
    state = model.state_dict()
    kept = {name: tensor for name, tensor in base.state_dict().items() if name in state}
    prefix, device = families.bare_prefix(model.config, heads), base.transformer.tokens.weight.device
    brought = {
        stored.holds[0]: read.tensors.pop(name).to(device)
        for stored in families.layout(families.family_of(model.config, heads), list(state))
        for name in (stored.name, stored.name.removeprefix(prefix))
        if name in read.tensors
    }
    _check(brought, {name: tensor for name, tensor in state.items() if name not in kept or name in brought}, read.file)
    model.load_state_dict({**kept, **brought}, strict=True, assign=True)
    return model


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path) -> None:
    sizes, asked = ({name: list(tensor.shape) for name, tensor in tensors.items()} for tensors in (found, wanted))
    families.check_tensors(file, sizes, asked, "the base", _MEND)
