"""An adapter folder: PEFT's layout, with every newly made head in it, its labels, and the hash of the base it fits."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from nlpstack.errors import ModelError
from nlpstack.files import new_folder, read_json_object, verify_manifest
from nlpstack.hub.families import family_of, layout, stored_names
from nlpstack.hub.tensors import read_tensors
from nlpstack.model import BERT, GPT, LanguageModel
from nlpstack.model.heads import ALL_HEADS, Head, Labels
from nlpstack.model.lora import AdapterSize, LoRAConfig, LoRALinear, adapters, add_lora, trainable_state
from nlpstack.model.meta import on_meta

ADAPTER_CONFIG, ADAPTER_WEIGHTS, OURS = "adapter_config.json", "adapter_model.safetensors", "nlpstack.json"
CARD = "README.md"
_ROOT = "base_model.model."  # before every name in a PEFT file
_TASKS: Mapping[Head, str] = {"sequence": "SEQ_CLS", "tokens": "TOKEN_CLS"}
_PARTS = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "magnitude"}
# What PEFT can ask for beside plain LoRA, rsLoRA and DoRA; nothing of it may be.
_OTHER = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "megatron_config"),
    *("monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config"),
)
_MEND = "copy the folder again, or train the adapter again"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


# -- writing ---------------------------------------------------------------------------------------------------------


def save_adapter(model: LanguageModel, path: Path, card: str) -> None:
    """Write what trains of a model with adapters: a folder that `peft` opens on the base, which `model.base` names."""
    wrapped = adapters(model)
    if model.base is None:
        raise ModelError("the model has adapters, and its `base` does not say on what; merge them to save it whole")
    base, base_sha256 = model.base
    family = family_of(model.config, _heads(model))
    tensors, sizes = _to_peft(model, family)
    fresh = [name for name in trainable_state(model) if not name.endswith((".lora_a", ".lora_b", ".magnitude"))]
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    saved = set()
    for stored in layout(family, list(_plain_names(state))):
        if stored.holds[0] in fresh:
            tensors[_ROOT + stored.name] = state[stored.holds[0]].contiguous()
            saved.add(stored.name.rpartition(".")[0])
    first = next(iter(wrapped.values()))
    config = _lora_config(model, first)
    patterns = {name: size for name, size in sizes.items() if size != first.size}
    task = next(
        (_TASKS[head] for head in _heads(model) if head in _TASKS), "CAUSAL_LM" if model.config.causal else None
    )
    values = {
        **{"peft_type": "LORA", "task_type": task, "base_model_name_or_path": base, "inference_mode": True},
        **{"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": "none"},
        **{"use_rslora": config.rslora, "use_dora": config.dora, "fan_in_fan_out": family == "gpt2"},
        "target_modules": _shortest(list(sizes), _linear_names(model, family)),
        "rank_pattern": {name: size.rank for name, size in patterns.items()},
        "alpha_pattern": {name: size.alpha for name, size in patterns.items()},
        "modules_to_save": sorted({_module_to_save(name) for name in saved}) or None,
    }
    labels = getattr(model, "labels", None)
    ours = {
        **{"base": base, "base_sha256": base_sha256, "heads": list(_heads(model)), "lora": asdict(config)},
        "labels": {"names": list(labels.names), "problem": labels.problem} if labels else None,
    }
    with new_folder(Path(path), free_text=frozenset((CARD,))) as folder:
        for name, content in ((ADAPTER_CONFIG, values), (OURS, ours)):
            (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (folder / CARD).write_text(card, encoding="utf-8", newline="\n")


def _heads(model: LanguageModel) -> tuple[Head, ...]:
    return model.heads if isinstance(model, BERT) else ()


def _lora_config(model: nn.Module, one: LoRALinear) -> LoRAConfig:
    """The config that made these adapters, which are all alike but for their size."""
    return LoRAConfig(
        rank=one.size.rank,
        alpha=one.size.alpha,
        dropout=one.dropout,
        targets=sorted({name.rpartition(".")[2] for name in adapters(model)}),
        rslora=one.rslora,
        dora=one.magnitude is not None,
    )


def _plain_names(names: Mapping[str, Any]) -> Iterator[str]:
    """The names that weights would have without adapters."""
    for name in names:
        if not name.endswith((".lora_a", ".lora_b", ".magnitude")):
            yield name.replace(".base.", ".")


def _linear_names(model: LanguageModel, family: str) -> dict[str, tuple[str, ...]]:
    """The family's name of each linear layer of the blocks -> ours, which may be several stacked in one."""
    linears = (
        name.removesuffix(".base")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".blocks." in name
    )
    plan = layout(family, [f"{name}.weight" for name in linears])
    return {s.name.removesuffix(".weight"): tuple(one.removesuffix(".weight") for one in s.holds) for s in plan}


def _to_peft(model: LanguageModel, family: str) -> tuple[dict[str, Tensor], dict[str, AdapterSize]]:
    """The adapters' tensors as PEFT stores them, and each one's size.

    Where layers of ours are stacked in one, their ranks are added: A's lie one below the other, B's on the diagonal.
    """
    wrapped = adapters(model)
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, AdapterSize] = {}
    for theirs, ours in _linear_names(model, family).items():
        parts = [wrapped[name] for name in ours if name in wrapped]
        if not parts:
            continue
        n, one = len(parts), parts[0]
        sizes[theirs] = AdapterSize(one.size.rank * n, one.size.alpha * (n**0.5 if one.rslora else n))
        tensors[f"{_ROOT}{theirs}.lora_A.weight"] = torch.cat([part.lora_a.detach() for part in parts]).cpu()
        columns = torch.block_diag(*(part.lora_b.detach() for part in parts)).cpu()
        rows, filled = [], 0  # the stacked layers without an adapter get rows of zeros
        for name in ours:
            n_out = _linear(model, name).out_features
            filled += n_out if name in wrapped else 0
            rows.append(
                columns[filled - n_out : filled] if name in wrapped else columns.new_zeros(n_out, len(columns.T))
            )
        tensors[f"{_ROOT}{theirs}.lora_B.weight"] = torch.cat(rows)
        if one.magnitude is not None:
            lengths = [_lengths(model.get_submodule(name)) for name in ours]
            tensors[f"{_ROOT}{theirs}.lora_magnitude_vector"] = torch.cat(lengths).detach().cpu()
    return tensors, sizes


def _linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer of a name, whether wrapped or not."""
    layer = model.get_submodule(name)
    plain = layer.base if isinstance(layer, LoRALinear) else layer
    assert isinstance(plain, nn.Linear)
    return plain


def _lengths(layer: nn.Module) -> Tensor:
    """The trained lengths of a layer's rows, or those it has."""
    if isinstance(layer, LoRALinear):
        assert layer.magnitude is not None
        return layer.magnitude
    assert isinstance(layer, nn.Linear)
    lengths: Tensor = layer.weight.norm(dim=1)
    return lengths


def _shortest(wrapped: list[str], linears: Mapping[str, object]) -> list[str]:
    """Ends of module names that match all of the wrapped layers and no other, else their whole names."""
    ends = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in wrapped})
    matched = [name for name in linears if any(name == end or name.endswith(f".{end}") for end in ends)]
    return ends if sorted(matched) == sorted(wrapped) else wrapped


def _module_to_save(name: str) -> str:
    """The name by which PEFT finds a module that is saved whole: the head it belongs to."""
    return "pooler" if ".pooler." in name else name.partition(".")[0]


# -- reading ---------------------------------------------------------------------------------------------------------


def load_adapter(
    folder: Path, base: str | Path | None, load_base: Callable[[Path], LanguageModel], note: Callable[[str], None]
) -> LanguageModel:
    """The base model with the adapter of a folder in it; `load_base` gives the model of a folder, and sets its `base`.

    Raises ModelError if the base is another one than the adapter was trained on, or if any tensor is missing or unused.
    """
    verify_manifest(folder, ModelError, _MEND)
    asked = read_json_object(folder / ADAPTER_CONFIG, ModelError)
    ours = read_json_object(folder / OURS, ModelError) if (folder / OURS).is_file() else {}
    config = _read_lora(asked, ours, folder / ADAPTER_CONFIG)
    place = (
        Path(base) if base is not None else _find_base(folder, ours.get("base") or asked.get("base_model_name_or_path"))
    )
    model = load_base(place)
    assert model.base is not None
    if not ours:
        note(f"{folder}: written without nlpstack, so it is unproved that {place} is its base; only shapes are checked")
    elif model.base[1] != ours.get("base_sha256"):
        raise ModelError(
            f"{folder}: trained on another base than {place} (its weights differ); give the right one with --base DIR"
        )
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise ModelError(f"{file}: missing; {_MEND}")
    tensors = {name.removeprefix(_ROOT): tensor for name, tensor in read_tensors(file, ModelError).items()}
    return _assemble(model, config, asked, ours, tensors, file)


def _find_base(folder: Path, named: object) -> Path:
    """The base model's folder: as it is named, from here or from a folder above the adapter."""
    if not isinstance(named, str) or not named:
        raise ModelError(f"{folder}: names no base model; give it with --base DIR")
    for place in (Path(named), *(parent / named for parent in folder.resolve().parents)):
        if place.is_dir():
            return place
    raise ModelError(f"{folder}: its base {named} is not there; give it with --base DIR")


def _read_lora(asked: Mapping[str, Any], ours: Mapping[str, Any], source: Path) -> LoRAConfig:
    """The kind of adapters; raises ModelError for kinds that are not ours."""
    if asked.get("peft_type") != "LORA":
        raise ModelError(f"{source}: peft_type={asked.get('peft_type')!r} is not supported; LORA is")
    if asked.get("bias", "none") != "none":
        raise ModelError(f"{source}: bias={asked['bias']!r} is not supported; 'none' is")
    if other := [key for key in _OTHER if asked.get(key)]:
        raise ModelError(f"{source}: {other[0]}={asked[other[0]]!r} is not supported; plain LoRA, rsLoRA and DoRA are")
    values = ours.get("lora") or {
        **{"rank": asked.get("r"), "alpha": asked.get("lora_alpha"), "dropout": asked.get("lora_dropout", 0.0)},
        **{"rslora": asked.get("use_rslora", False), "dora": asked.get("use_dora", False)},
    }
    try:
        config = TypeAdapter(LoRAConfig).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ModelError(f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if config.rank < 1:
        raise ModelError(f"{source}: r={config.rank} must be at least 1")
    return config


def _assemble(
    base: LanguageModel,
    config: LoRAConfig,
    asked: Mapping[str, Any],
    ours: Mapping[str, Any],
    tensors: dict[str, Tensor],
    file: Path,
) -> LanguageModel:
    model = _with_heads(base, asked, ours, tensors, file)
    family = family_of(model.config, _heads(model))
    linears = _linear_names(model, family)
    grouped: dict[str, dict[str, Tensor]] = {}  # their module -> our names of its parts
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        end = next((end for end in _PARTS if name.endswith(f".{end}")), None)
        if end is None:
            rest[name] = tensor
        else:
            grouped.setdefault(name.removesuffix(f".{end}"), {})[_PARTS[end]] = tensor
    full = stored_names(family, [f"{name}.weight" for name in grouped])
    values: dict[str, Tensor] = {}
    sizes: dict[str, AdapterSize] = {}
    for whole, there in full.items():
        module = whole.removesuffix(".weight")
        if module not in linears:
            raise ModelError(f"{file}: adapts {module}, which is no linear layer of the base's blocks; {_MEND}")
        alpha = float(_pattern(asked.get("alpha_pattern"), module, asked.get("lora_alpha", config.alpha)))
        parts = grouped[there.removesuffix(".weight")]
        for name, size, one in _split(model, linears[module], parts, config, alpha, own=bool(ours), file=file):
            sizes[name] = size
            values |= {f"{name}.{part}": tensor for part, tensor in one.items()}
    if not sizes:
        raise ModelError(f"{file}: holds no adapter that fits the base; {_MEND}")
    add_lora(model, config, sizes=sizes)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    _check(values, wanted, file)
    model.load_state_dict(values, strict=False)
    model.base = base.base
    return model.eval()


def _pattern(patterns: Mapping[str, float] | None, module: str, usual: float) -> float:
    """What a PEFT pattern sets for a module: the first whose expression matches the end of its name."""
    return next((v for key, v in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module)), usual)


def _split(
    model: LanguageModel,
    names: tuple[str, ...],
    parts: dict[str, Tensor],
    config: LoRAConfig,
    alpha: float,
    *,
    own: bool,
    file: Path,
) -> Iterator[tuple[str, AdapterSize, dict[str, Tensor]]]:
    """The adapters of our layers that one of PEFT's holds: ours lie on its diagonal, another's share its A."""
    if missing := {"lora_a", "lora_b"} - parts.keys():
        raise ModelError(f"{file}: {names[0]} lacks its {' and '.join(sorted(missing))}; {_MEND}")
    a, b = parts["lora_a"], parts["lora_b"]
    n_rows = [_linear(model, name).out_features for name in names]
    if b.dim() != 2 or a.dim() != 2 or sum(n_rows) != len(b) or b.shape[1] != len(a):
        raise ModelError(f"{file}: {names[0]}: A {list(a.shape)} and B {list(b.shape)} do not fit the base; {_MEND}")
    adapted = [name for name in names if not own or name.rpartition(".")[2] in config.targets]
    diagonal = own and len(names) > 1
    rank = len(a) // len(adapted) if diagonal else len(a)
    share = len(adapted) ** (0.5 if config.rslora else 1) if diagonal else 1
    magnitude = parts.get("magnitude")
    start = 0
    for name, n in zip(names, n_rows, strict=True):
        if name in adapted:
            at = adapted.index(name) * rank if diagonal else 0
            one = {"lora_a": a[at : at + rank], "lora_b": b[start : start + n, at : at + rank]}
            if magnitude is not None:
                one["magnitude"] = magnitude[start : start + n]
            yield name, AdapterSize(rank, alpha / share), {part: t.contiguous().clone() for part, t in one.items()}
        start += n


def _with_heads(
    base: LanguageModel, asked: Mapping[str, Any], ours: Mapping[str, Any], tensors: dict[str, Tensor], file: Path
) -> LanguageModel:
    """The base with the heads that the adapter brings, taken out of `tensors`, in place of its own."""
    if isinstance(base, GPT):
        return base
    task = asked.get("task_type")
    named = {"SEQ_CLS": ("pooler", "sequence"), "TOKEN_CLS": ("tokens",)}.get(str(task), base.heads)
    heads = tuple(head for head in ALL_HEADS if head in (ours.get("heads") or named))
    labels = base.labels
    if {"sequence", "tokens"} & set(heads):
        given = ours.get("labels")
        if given:
            labels = Labels(tuple(given["names"]), given["problem"])
        else:
            size = next(
                (len(t) for name, t in tensors.items() if re.search(r"classifier\.(out_proj\.)?weight$", name)), 0
            )
            labels = labels or Labels(tuple(f"LABEL_{number}" for number in range(size)))
    try:
        with on_meta():
            model = BERT(base.config, base.tokenizer, heads=heads, labels=labels)
    except (AssertionError, RuntimeError) as error:
        raise ModelError(f"{file}: its heads {', '.join(heads)} do not fit the base") from error
    family = family_of(model.config, heads)
    state = {name: tensor for name, tensor in base.state_dict().items() if name in model.state_dict()}
    brought, device = {}, base.transformer.tokens.weight.device
    for stored in layout(family, list(model.state_dict())):
        theirs = next((name for name in tensors if name == stored.name), None)
        if theirs is not None:
            brought[stored.holds[0]] = tensors.pop(theirs).to(device)
    fresh = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in state or name in brought}
    _check(brought, fresh, file)
    model.load_state_dict({**state, **brought}, strict=True, assign=True)
    return model


def _check(found: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], file: Path) -> None:
    """Raise ModelError unless the tensors are exactly the wanted ones."""
    faults = [f"lacks {name}" for name in wanted if name not in found]
    faults += [f"holds {name}, which has no place" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name].shape)}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if faults:
        raise ModelError(f"{file}: {'; '.join(faults[:3])}; {_MEND}")
