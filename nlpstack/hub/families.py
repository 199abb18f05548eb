"""A config.json and the tensors of a weights file in our words, and back, by the tables in families.toml."""

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from nlpstack.config import near, validated
from nlpstack.errors import ModelError, some
from nlpstack.model import LanguageModel, TransformerConfig
from nlpstack.model.heads import ALL_HEADS, Head, Labels

Json = dict[str, object]
Sizes = Mapping[str, list[int]]  # of tensors, by name


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family writes down what TransformerConfig and our tensor names say."""

    architectures: Mapping[str, str]  # heads, spaces between -> the class of transformers that opens it; a GPT has none
    keys: Mapping[str, str]  # of config.json -> our field; keys of one field must agree
    defaults: Mapping[str, object]  # values of keys that may be missing
    optional: Sequence[str] = ()  # keys that may be missing, where our field has its own default
    activations: Mapping[str, str]  # theirs -> ours; of several for one of ours, the first is written
    shape: Mapping[str, object]  # our fields that the family leaves no choice
    least: Mapping[str, int] = field(default_factory=dict)  # our fields that must not be smaller
    fixed: Json  # further keys, on which the core leaves no choice
    prefix: str  # before every tensor but the head's; a file of the bare core leaves it out
    modules: Mapping[str, str]  # theirs -> ours; several of ours, with spaces between, are stacked in one of theirs
    of_sequences: Mapping[str, str] = field(default_factory=dict)  # those of the head "sequence" instead
    transposed: Sequence[str] = ()  # last names of modules whose matrices are stored (in, out)
    twice: Mapping[str, str]  # second name of a tensor that is tied -> the first
    old_names: Mapping[str, str] = field(default_factory=dict)  # ends of tensor names in old files -> today's
    buffers: str  # pattern of stored tensors that are no weights
    gguf: Mapping[str, str] = field(default_factory=dict)  # what GGUF files call the sizes -> keys of config.json


_TABLES = tomllib.loads(Path(__file__).with_name("families.toml").read_text("utf-8"))
_INERT, _OFF = frozenset(_TABLES["any"]["inert"].split()), _TABLES["any"]["off"]
_ROPES: dict[str, list[str]] = _TABLES["any"]["ropes"]
FAMILIES = {name: Family(**table) for name, table in _TABLES.items() if name != "any"}
NOT_OF_PEFT = _TABLES["any"]["peft"].split()  # keys of an adapter's config that ask for what we do not have
OWN = "nlpstack"  # the model_type of shapes outside the families, and the key for what a family cannot carry

_OWN_TWICE = dict.fromkeys(("lm_head.weight", "mlm_head.decoder.weight"), "transformer.tokens.weight")
_HEAD_MODULES = dict(mlm="mlm_head", pooler="pooler", nsp="nsp_head", sequence="classifier", tokens="classifier")
_OF_TOKENS = "ForTokenClassification"  # how such an architecture ends
_PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification", "regression": "regression"}


def model_heads(model: LanguageModel) -> tuple[Head, ...]:
    """The heads of a BERT; a GPT has none."""
    return getattr(model, "heads", ())


def family_of(config: TransformerConfig, heads: tuple[Head, ...] = ()) -> str:
    """The published family that can express this shape and a BERT's heads (a key of FAMILIES), else `nlpstack`."""
    named = " ".join(heads)
    fitting = (name for name, family in FAMILIES.items() if named in family.architectures and _fits(family, config))
    return next(fitting, OWN)


def _fits(family: Family, config: TransformerConfig) -> bool:
    grouped = "num_key_value_heads" in family.keys or config.kv_heads == config.n_heads
    same = all(getattr(config, name) == value for name, value in family.shape.items())
    enough = all(getattr(config, name) >= least for name, least in family.least.items())
    pad = config.position_offset <= config.vocab_size
    return same and enough and grouped and pad and config.activation in family.activations.values()


def bare_prefix(config: TransformerConfig, heads: tuple[Head, ...]) -> str:
    """What files of BertModel and RobertaModel leave out of tensor names; nothing of a model with a head."""
    family = FAMILIES.get(family_of(config, heads))
    return family.prefix if family and not config.causal and set(heads) <= {"pooler"} else ""


def write_config(config: TransformerConfig, heads: tuple[Head, ...] = (), labels: Labels | None = None) -> Json:
    """What config.json says of the shape and labels, model_type and architectures included; read_config reads it."""
    name = family_of(config, heads)
    said: Json = {}
    if labels:
        said["id2label"] = {str(number): label for number, label in enumerate(labels.names)}
        said["label2id"] = {label: number for number, label in enumerate(labels.names)}
    if labels and "sequence" in heads:
        said["problem_type"] = _PROBLEMS[labels.problem]
    if name == OWN:
        architecture = "GPT" if config.causal else "BERT" + _OF_TOKENS * ("tokens" in heads)
        return {"model_type": OWN, "architectures": [architecture], **said, **asdict(config)}
    family = FAMILIES[name]
    values = {"model_type": name, "architectures": [family.architectures[" ".join(heads)]], **said}
    values |= _family_values(family, config)
    plain = _family_config(family, values, Path("config.json"))
    rest = {key: value for key, value in asdict(config).items() if value != getattr(plain, key)}
    return {**values, OWN: rest} if rest else values


def _family_values(family: Family, config: TransformerConfig) -> Json:
    fields = asdict(config) | {"n_kv_heads": config.kv_heads, "ffn_dim": config.hidden_dim}
    fields["activation"] = next(theirs for theirs, ours in family.activations.items() if ours == config.activation)
    if "pad_token_id" in family.keys:  # positions are counted from its row on
        fields["max_seq_len"] = config.max_seq_len + config.position_offset
        fields["position_offset"] = config.position_offset - 1
    values = {name: fields[ours] for name, ours in family.keys.items()} | family.fixed
    if "rope_theta" in family.keys:
        kind = next(kind for kind, keys in _ROPES.items() if len(keys) == len(config.rope_stretch))
        rope: Json = dict(zip(_ROPES[kind], config.rope_stretch, strict=True))
        rope |= {key: int(config.rope_stretch[1]) for key in rope if key.startswith("original")}  # tokens
        rope |= {"rope_theta": config.rope_theta, "rope_type": kind}
        values |= {"head_dim": config.head_dim, "rope_parameters": rope}
    return values


def read_config(values: Mapping[str, object], source: Path) -> TransformerConfig:
    """The shape that a config.json asks for; raises ModelError where the core cannot be that."""
    name = values.get("model_type")
    if name == OWN:
        return _validated({key: value for key, value in values.items() if key not in _INERT}, {}, source)
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(f"{source}: model_type {name!r} is not supported; there are {', '.join([*FAMILIES, OWN])}")
    family = FAMILIES[name]
    config = _family_config(family, values, source)
    extra = values.get(OWN, {})
    if not isinstance(extra, dict):
        raise ModelError(f"{source}: {OWN}={extra!r} is not an object")
    full = _validated(asdict(config) | extra, {}, source)
    if not _fits(family, full) or _family_values(family, full) != _family_values(family, config):
        raise ModelError(f"{source}: what stands under '{OWN}' contradicts the rest of the file; save the model again")
    return full


def _family_config(family: Family, values: Mapping[str, object], source: Path) -> TransformerConfig:
    """The shape that the family's keys alone ask for."""
    given = {key: value for key, value in values.items() if value is not None and key != OWN}
    given, rope = _rope(given, source) if "rope_theta" in family.keys else (given, {})
    given = {name: family.defaults.get(name) for name in family.keys} | given
    if missing := [name for name, value in given.items() if value is None and name not in family.optional]:
        raise ModelError(f"{source}: {', '.join(missing)} missing; copy the file again")
    fields = {**family.shape, **rope, **(_after_pad(given, source) if "pad_token_id" in family.keys else {})}
    names: dict[str, str] = {}  # our field -> the first of their keys for it
    for name, ours in family.keys.items():
        if given[name] is not None:
            fields.setdefault(ours, given[name])
            names.setdefault(ours, name)
    activation = fields["activation"]
    if not isinstance(activation, str) or activation not in family.activations:
        there = ", ".join(family.activations)
        raise ModelError(f"{source}: {names['activation']}={activation!r} is not supported; there are {there}")
    fields["activation"] = family.activations[activation]
    config = _validated(fields, names, source)
    for name, least in family.least.items():
        if getattr(config, name) < least:
            raise ModelError(f"{source}: {names[name]}={given[names[name]]!r} is not supported; at least {least} is")
    _refuse_rest(family, given, config, source)
    # A size that only spells out what 0 stands for is 0, so that equal shapes are equal configs.
    return replace(
        config,
        n_kv_heads=0 if config.kv_heads == config.n_heads else config.n_kv_heads,
        ffn_dim=0 if config.hidden_dim == 4 * config.dim else config.ffn_dim,
    )


def _after_pad(given: Json, source: Path) -> Json:
    """The positions of a family that counts them from the pad id on, and counts the rows before them too."""
    pad, rows, n_tokens = (given[key] for key in ("pad_token_id", "max_position_embeddings", "vocab_size"))
    if type(pad) is not int or (type(n_tokens) is int and not 0 <= pad < n_tokens):
        raise ModelError(f"{source}: pad_token_id={pad!r} is not an id of the vocabulary (vocab_size={n_tokens!r})")
    if type(rows) is not int or rows < pad + 2:
        first = f"the first token's is pad_token_id + 1 = {pad + 1}"
        raise ModelError(f"{source}: max_position_embeddings={rows!r} leaves no position; {first}")
    return {"max_seq_len": rows - pad - 1, "position_offset": pad + 1}


def _refuse_rest(family: Family, given: Json, config: TransformerConfig, source: Path) -> None:
    written = _family_values(family, config)
    activation = {name for name, ours in family.keys.items() if ours == "activation"}  # has several spellings
    told = _OFF | written
    for name, value in given.items():
        if value is None or name in (_INERT - written.keys()) | activation or value == told.get(name):
            continue
        if name not in told:
            raise ModelError(f"{source}: nlpstack does not know {name}={value!r}; take it out if it changes nothing")
        cure = f"with the other values it has to be {told[name]!r}"
        raise ModelError(f"{source}: {name}={value!r} is not supported; {cure}")


def _rope(given: Json, source: Path) -> tuple[Json, Json]:
    """The keys with rope_theta in its old place, wherever it stood, and our fields for how wavelengths stretch."""
    given, fields = dict(given), dict[str, object]()
    for place in ("rope_parameters", "rope_scaling"):
        asked = given.pop(place, {})
        if not isinstance(asked, dict):
            raise ModelError(f"{source}: {place}={asked!r} is not an object")
        kinds = {key: asked[key] for key in ("type", "rope_type") if asked.get(key) is not None}
        kind = next(iter(kinds.values()), "default")
        if wrong := [key for key, value in kinds.items() if value != kind or value not in [*_ROPES]]:
            there = f"there are {', '.join(_ROPES)}"
            raise ModelError(f"{source}: {place}.{wrong[0]}={kinds[wrong[0]]!r} is not supported; {there}")
        for key, value in asked.items():
            if key == "rope_theta":
                if given.setdefault(key, value) != value:
                    raise ModelError(f"{source}: {place}.rope_theta={value!r}, but rope_theta={given[key]!r}")
            elif key not in {*_ROPES[kind], *kinds} and value not in (_OFF.get(key), None):
                raise ModelError(f"{source}: {place}.{key}={value!r} is not supported with the type {kind!r}")
        if missing := [key for key in _ROPES[kind] if asked.get(key) is None]:
            raise ModelError(f"{source}: {place} of the type {kind!r} lacks {', '.join(missing)}; copy the file again")
        if _ROPES[kind]:
            fields["rope_stretch"] = [asked[key] for key in _ROPES[kind]]
    return given, fields


def _validated(fields: Mapping[str, object], names: Mapping[str, str], source: Path) -> TransformerConfig:
    """The config of our fields; errors speak of the file's keys, which `names` gives by field."""
    known = TransformerConfig.__dataclass_fields__
    if unknown := [key for key in fields if key not in known]:
        raise ModelError(f"{source}: unknown key '{unknown[0]}'{near(unknown[0], known)}")
    config = validated(TransformerConfig, fields, lambda key: f"{source}: {names.get(key, key)}".rstrip(), ModelError)
    if config.vocab_size < 1:
        raise ModelError(f"{source}: {names.get('vocab_size', 'vocab_size')}={config.vocab_size} must be at least 1")
    return config


class Stored(NamedTuple):
    """A tensor of a weights file: which of ours it holds, one below the other, and whether it lies transposed."""

    name: str
    holds: tuple[str, ...]
    transposed: bool = False


def layout(family_name: str, names: list[str]) -> list[Stored]:
    """The tensors of a weights file that hold ours of these names."""
    if family_name == OWN:
        return [Stored(name, (name,)) for name in names]
    family = FAMILIES[family_name]
    modules = dict(family.modules)
    if {"classifier.weight", "pooler.dense.weight"} <= set(names):
        modules |= family.of_sequences
    places = {ours.split()[0]: (theirs, ours.split()) for theirs, ours in modules.items()}
    found = []
    for name in names:
        number = "".join(re.findall(r"\.(\d+)\.", name))  # of the block
        module, _, parameter = re.sub(r"\.\d+\.", ".N.", name).rpartition(".")
        if module not in places:
            continue  # stacked below the first of its group
        place, ours = places[module]
        theirs, *holds = (f"{one}.{parameter}".replace(".N.", f".{number}.") for one in (place, *ours))
        transposed = parameter == "weight" and place.rpartition(".")[2] in family.transposed
        found.append(Stored(theirs, tuple(holds), transposed))
    assert {ours for stored in found for ours in stored.holds} == set(names)
    return found


def stored_names(family_name: str, present: list[str]) -> dict[str, str]:
    """The family's full name of each tensor in a file -> its name there; buffers that are no weights left out."""
    if family_name == OWN:
        return {name: name for name in present}
    family = FAMILIES[family_name]
    bare = not any(name.startswith(family.prefix) for name in present)
    heads = tuple(f"{m}." for m in (*family.modules, *family.of_sequences) if not m.startswith(family.prefix))
    full = {}
    for there in present:
        name = there
        for old, new in family.old_names.items():
            if there.endswith(old) and there.removesuffix(old) + new not in present:
                name = there.removesuffix(old) + new
        full[name if not bare or name.startswith(heads) else family.prefix + name] = there
    return {name: there for name, there in full.items() if not re.fullmatch(family.buffers, name)}


def heads_of(values: Mapping[str, object], names: Iterable[str]) -> tuple[Head, ...]:
    """The heads of which any tensor is among those of these full names; config.json says what a classifier reads."""
    modules = [name.rpartition(".")[0] for name in names]
    if values["model_type"] != OWN:
        family = FAMILIES[str(values["model_type"])]
        ours = {**family.modules, **family.of_sequences}
        modules = [ours.get(module, "") for module in modules]
    roots = {module.partition(".")[0] for module in modules}
    architectures = values.get("architectures")
    of_tokens = isinstance(architectures, list) and any(str(name).endswith(_OF_TOKENS) for name in architectures)
    other = "sequence" if of_tokens else "tokens"
    return tuple(head for head in ALL_HEADS if _HEAD_MODULES[head] in roots and head != other)


def read_labels(values: Mapping[str, object], size: int, source: Path) -> Labels:
    """The labels of a classifier of so many outputs; where none are named, as transformers calls them."""
    wanted = [str(number) for number in range(size)]
    given = values.get("id2label") or {number: f"LABEL_{number}" for number in wanted}
    if not isinstance(given, dict) or sorted(given) != sorted(wanted) or len(set(map(str, given.values()))) < size:
        raise ModelError(f"{source}: id2label={given!r} does not name the {size} outputs of the classifier, each once")
    problem = values.get("problem_type") or _PROBLEMS["regression" if size == 1 else "single"]
    known = {theirs: ours for ours, theirs in _PROBLEMS.items()}
    if problem not in known:
        raise ModelError(f"{source}: problem_type={problem!r} is not supported; there are {', '.join(known)}")
    return Labels(tuple(str(given[number]) for number in wanted), known[problem])  # type: ignore[arg-type]


def second_names(family_name: str, planned: Collection[str], *, tied: bool) -> dict[str, str]:
    """Names under which a file may hold planned tensors once more -> their first names.

    Untied, a head's matrix is planned itself; its bias still has two names: transformers loads both, uses the second.
    """
    twice = _OWN_TWICE if family_name == OWN else FAMILIES[family_name].twice
    return {
        second: first
        for second, first in twice.items()
        if second not in planned and first in planned and (tied or f"{second.rpartition('.')[0]}.weight" in planned)
    }


def check_tensors(file: Path, sizes: Sizes, wanted: Sizes, what: str, mend: str) -> None:
    """Raise ModelError unless a file holds exactly the tensors of the wanted sizes, which `what` asks for."""
    faults = {
        "lacks": [name for name in wanted if name not in sizes],
        "holds what the model has no place for:": [name for name in sizes if name not in wanted],
        f"does not fit {what}:": [
            f"{name} {sizes[name]} instead of {size}" for name, size in wanted.items() if sizes.get(name, size) != size
        ],
    }
    if found := [f"{fault} {some(names, 3)}" for fault, names in faults.items() if names]:
        raise ModelError(f"{file}: {'; '.join(found)}; {mend}")
