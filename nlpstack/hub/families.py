"""Published model families: what their config.json and tensor names say, in our words and back."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from nlpstack.errors import ModelError
from nlpstack.model import TransformerConfig

Json = dict[str, object]

OWN = "nlpstack"  # the model_type of shapes outside the families, and the key for what a family cannot carry

# Keys that say nothing about what the model computes, whatever their value. The last lines are settings of generation,
# which older versions of transformers kept in a model's config.
_INERT_KEYS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path architectures
    attn_implementation bos_token_id chunk_size_feed_forward cls_token_id decoder_start_token_id dtype eos_token_id
    finetuning_task gradient_checkpointing id2label initializer_range is_decoder is_llama_config
    keys_to_ignore_at_inference label2id mask_token_id model_type n_ctx num_labels output_attentions
    output_hidden_states output_past pad_token_id prefix problem_type return_dict sep_token_id summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj task_specific_params tf_legacy_loss
    tokenizer_class torch_dtype torchscript transformers.js_config transformers_version unk_token_id use_bfloat16
    use_cache
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
_INERT = frozenset(_INERT_KEYS.split())
# Keys that would change it, with the value that asks for nothing. A null asks for nothing under any key.
_OFF: Json = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "rope_interleaved": False,
    "tie_encoder_decoder": False,
    "use_sliding_window": False,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family writes down what TransformerConfig and our tensor names say."""

    architecture: str  # the class of transformers that opens it
    keys: Mapping[str, str]  # key of config.json -> our field; keys of one field must agree
    defaults: Mapping[str, object]  # of keys that may be missing; None: the field's own default
    activations: Mapping[str, str]  # theirs -> ours; of several for one of ours, the first is written
    shape: Mapping[str, object]  # our fields that the family leaves no choice
    fixed: Callable[[TransformerConfig], Json]  # further keys, on which the core leaves no choice
    prefix: str  # before every tensor but the head's; a file of the bare core leaves it out
    modules: Mapping[str, tuple[str, ...]]  # theirs -> ours; several of ours are stacked in one of theirs
    transposed: frozenset[str] = field(default=frozenset())  # modules whose matrices are stored (in, out)
    buffers: str  # pattern of stored tensors that are no weights


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        keys={
            "vocab_size": "vocab_size",
            "n_positions": "max_seq_len",
            "n_embd": "dim",
            "n_layer": "n_layers",
            "n_head": "n_heads",
            "n_inner": "ffn_dim",
            "activation_function": "activation",
            "layer_norm_epsilon": "norm_eps",
            "resid_pdrop": "dropout",
            "embd_pdrop": "dropout",
            "attn_pdrop": "dropout",
            "tie_word_embeddings": "tied",
        },
        defaults={
            "n_inner": None,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "resid_pdrop": 0.1,
            "embd_pdrop": 0.1,
            "attn_pdrop": 0.1,
            "tie_word_embeddings": True,
        },
        activations={"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"},
        shape={"causal": True, "positions": "learned", "norm": "layernorm", "pre_norm": True, "bias": True},
        fixed=lambda config: {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
        },
        prefix="transformer.",
        modules={
            "transformer.wte": ("transformer.tokens",),
            "transformer.wpe": ("transformer.positions",),
            "transformer.h.N.ln_1": ("transformer.blocks.N.attention_norm",),
            "transformer.h.N.attn.c_attn": (
                "transformer.blocks.N.attention.q_proj",
                "transformer.blocks.N.attention.k_proj",
                "transformer.blocks.N.attention.v_proj",
            ),
            "transformer.h.N.attn.c_proj": ("transformer.blocks.N.attention.out_proj",),
            "transformer.h.N.ln_2": ("transformer.blocks.N.ffn_norm",),
            "transformer.h.N.mlp.c_fc": ("transformer.blocks.N.ffn.up_proj",),
            "transformer.h.N.mlp.c_proj": ("transformer.blocks.N.ffn.down_proj",),
            "transformer.ln_f": ("transformer.norm",),
            "lm_head": ("lm_head",),
        },
        transposed=frozenset(
            f"transformer.h.N.{module}" for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        ),
        buffers=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        keys={
            "vocab_size": "vocab_size",
            "max_position_embeddings": "max_seq_len",
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "num_key_value_heads": "n_kv_heads",
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation",
            "rms_norm_eps": "norm_eps",
            "rope_theta": "rope_theta",
            "tie_word_embeddings": "tied",
        },
        defaults={
            "num_key_value_heads": None,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
        activations={"silu": "swiglu"},
        shape={"causal": True, "positions": "rotary", "norm": "rmsnorm", "pre_norm": True, "bias": False},
        fixed=lambda config: {
            "head_dim": config.head_dim,
            "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "pretraining_tp": 1,
        },
        prefix="model.",
        modules={
            "model.embed_tokens": ("transformer.tokens",),
            "model.layers.N.input_layernorm": ("transformer.blocks.N.attention_norm",),
            "model.layers.N.self_attn.q_proj": ("transformer.blocks.N.attention.q_proj",),
            "model.layers.N.self_attn.k_proj": ("transformer.blocks.N.attention.k_proj",),
            "model.layers.N.self_attn.v_proj": ("transformer.blocks.N.attention.v_proj",),
            "model.layers.N.self_attn.o_proj": ("transformer.blocks.N.attention.out_proj",),
            "model.layers.N.post_attention_layernorm": ("transformer.blocks.N.ffn_norm",),
            "model.layers.N.mlp.gate_proj": ("transformer.blocks.N.ffn.gate_proj",),
            "model.layers.N.mlp.up_proj": ("transformer.blocks.N.ffn.up_proj",),
            "model.layers.N.mlp.down_proj": ("transformer.blocks.N.ffn.down_proj",),
            "model.norm": ("transformer.norm",),
            "lm_head": ("lm_head",),
        },
        buffers=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    ),
}


def family_of(config: TransformerConfig) -> str:
    """The published family that can express this shape (a key of FAMILIES), else `nlpstack`."""
    return next((name for name, family in FAMILIES.items() if _fits(family, config)), OWN)


def _fits(family: Family, config: TransformerConfig) -> bool:
    grouped = "n_kv_heads" in family.keys.values() or config.kv_heads == config.n_heads
    same = all(getattr(config, name) == value for name, value in family.shape.items())
    return same and grouped and not config.n_segments and config.activation in family.activations.values()


def write_config(config: TransformerConfig) -> Json:
    """What config.json says of the shape, model_type and architectures included; read_config gives it back."""
    name = family_of(config)
    if name == OWN:
        return {"model_type": OWN, "architectures": ["GPT"], **asdict(config)}
    family = FAMILIES[name]
    values = {"model_type": name, "architectures": [family.architecture], **_family_values(family, config)}
    plain = _family_config(family, values, Path("config.json"))
    rest = {key: value for key, value in _fields(config).items() if value != getattr(plain, key)}
    return {**values, OWN: rest} if rest else values


def _family_values(family: Family, config: TransformerConfig) -> Json:
    """The family's own keys."""
    fields = _fields(config) | {"n_kv_heads": config.kv_heads, "ffn_dim": config.hidden_dim}
    fields["activation"] = next(theirs for theirs, ours in family.activations.items() if ours == config.activation)
    return {key: fields[name] for key, name in family.keys.items()} | family.fixed(config)


def read_config(values: Mapping[str, object], source: Path) -> TransformerConfig:
    """The shape that a config.json asks for; raises ModelError where the core cannot be that."""
    name = values.get("model_type")
    if name == OWN:
        return _own_config(values, source)
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(f"{source}: model_type {name!r} is not supported; there are {', '.join([*FAMILIES, OWN])}")
    family = FAMILIES[name]
    config = _family_config(family, values, source)
    extra = values.get(OWN, {})
    if not isinstance(extra, dict):
        raise ModelError(f"{source}: {OWN}={extra!r} is not an object")
    if not extra:
        return config
    full = _validated(_fields(config) | extra, {}, source)
    if not _fits(family, full) or _family_values(family, full) != _family_values(family, config):
        raise ModelError(f"{source}: what stands under '{OWN}' contradicts the rest of the file; save the model again")
    return full


def _own_config(values: Mapping[str, object], source: Path) -> TransformerConfig:
    return _validated({key: value for key, value in values.items() if key not in _INERT}, {}, source)


def _family_config(family: Family, values: Mapping[str, object], source: Path) -> TransformerConfig:
    """The shape that the family's keys alone ask for."""
    given = {key: value for key, value in values.items() if value is not None and key != OWN}
    if "rope_theta" in family.keys:
        given = _plain_rope(given, source)
    given = {**family.defaults, **given}
    if missing := [key for key in family.keys if key not in given]:
        raise ModelError(f"{source}: {', '.join(missing)} missing; copy the file again")
    fields = dict(family.shape)
    names: dict[str, str] = {}  # our field -> the first of their keys for it
    for key, name in family.keys.items():
        if given[key] is not None:
            fields.setdefault(name, given[key])
            names.setdefault(name, key)
    activation = fields["activation"]
    if not isinstance(activation, str) or activation not in family.activations:
        there = ", ".join(family.activations)
        raise ModelError(f"{source}: {names['activation']}={activation!r} is not supported; there are {there}")
    fields["activation"] = family.activations[activation]
    config = _validated(fields, names, source)
    _refuse_rest(family, given, config, source)
    # A size that only spells out what 0 stands for is 0, so that equal shapes are equal configs.
    return replace(
        config,
        n_kv_heads=0 if config.kv_heads == config.n_heads else config.n_kv_heads,
        ffn_dim=0 if config.hidden_dim == 4 * config.dim else config.ffn_dim,
    )


def _refuse_rest(family: Family, given: Json, config: TransformerConfig, source: Path) -> None:
    """Raise ModelError if a key says anything else than the family's config of this shape would."""
    written = _family_values(family, config)
    for key, value in given.items():
        if key in written:
            wanted = written[key]
            fine = value is None or value == wanted or (key in family.keys and family.keys[key] == "activation")
        else:
            wanted = _OFF.get(key)
            fine = key in _INERT or value == wanted
        if fine:
            continue
        if wanted is None:
            raise ModelError(
                f"{source}: nlpstack does not know {key}={value!r}; if it changes nothing in the model, take it out"
            )
        raise ModelError(f"{source}: {key}={value!r} is not supported; with the other values it has to be {wanted!r}")


def _plain_rope(given: Json, source: Path) -> Json:
    """The keys with rope_theta in its old place, whether it stood there or in rope_parameters or rope_scaling."""
    given = dict(given)
    for place in ("rope_parameters", "rope_scaling"):
        asked = given.pop(place, {})
        if not isinstance(asked, dict):
            raise ModelError(f"{source}: {place}={asked!r} is not an object")
        for key, value in asked.items():
            if key == "rope_theta":
                if given.setdefault(key, value) != value:
                    raise ModelError(f"{source}: {place}.rope_theta={value!r}, but rope_theta={given[key]!r}")
            elif value not in ({"rope_type": "default", "type": "default"}.get(key, _OFF.get(key)), None):
                raise ModelError(f"{source}: {place}.{key}={value!r} is not supported; plain rotary positions are")
    return given


def _fields(config: TransformerConfig) -> Json:
    values: Json = asdict(config)
    return values


def _validated(fields: Mapping[str, object], names: Mapping[str, str], source: Path) -> TransformerConfig:
    """The config of our fields; errors speak of the file's keys, which `names` gives by field."""
    known = TransformerConfig.__dataclass_fields__
    for key, value in fields.items():
        if key not in known:
            close = get_close_matches(key, known, n=1)
            raise ModelError(f"{source}: unknown key '{key}'" + (f"; did you mean '{close[0]}'?" if close else ""))
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{source}: {names.get(key, key)}={value} is not a finite number")
    try:
        config = TypeAdapter(TransformerConfig).validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        at = f"{names.get(place, place)}={fields.get(place)!r}: " if place else ""
        raise ModelError(f"{source}: {at}{first['msg']}") from error
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
    theirs = {ours[0]: name for name, ours in family.modules.items()}
    stacked = {ours[0]: ours for ours in family.modules.values()}
    found = []
    for name in names:
        module, _, parameter = name.rpartition(".")
        number = next(iter(re.findall(r"\.(\d+)\.", module)), "")
        template = re.sub(r"\.\d+\.", ".N.", module)
        if template not in theirs:
            continue  # stacked below the first of its group
        holds = tuple(f"{ours.replace('.N.', f'.{number}.')}.{parameter}" for ours in stacked[template])
        place = theirs[template]
        transposed = place in family.transposed and parameter == "weight"
        found.append(Stored(f"{place.replace('.N.', f'.{number}.')}.{parameter}", holds, transposed))
    assert {ours for stored in found for ours in stored.holds} == set(names)
    return found


def stored_names(family_name: str, present: list[str]) -> dict[str, str]:
    """The family's full name of each tensor in a file -> its name there; buffers that are no weights left out."""
    if family_name == OWN:
        return {name: name for name in present}
    family = FAMILIES[family_name]
    bare = not any(name.startswith(family.prefix) for name in present)
    heads = tuple(f"{name}." for name in family.modules if not name.startswith(family.prefix))
    full = {name if not bare or name.startswith(heads) else family.prefix + name: name for name in present}
    return {name: there for name, there in full.items() if not re.fullmatch(family.buffers, name)}
