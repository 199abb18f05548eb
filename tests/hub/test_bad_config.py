"""What a config.json asks that the core cannot do is one line that names the key, never ignored."""

from dataclasses import replace
from pathlib import Path

import pytest

from nlpstack.errors import ModelError
from nlpstack.hub.families import FAMILIES, Family, read_config, write_config
from nlpstack.model import TransformerConfig

SOURCE = Path("m/config.json")
SMALL = TransformerConfig(vocab_size=64, max_seq_len=16, dim=32, n_layers=1, n_heads=4, activation="gelu_tanh")
ENCODER = replace(SMALL, activation="gelu", causal=False, pre_norm=False, n_segments=1)
CONFIGS = {
    "bert": write_config(replace(ENCODER, n_segments=2), ("mlm", "pooler", "nsp")),
    "roberta": write_config(replace(ENCODER, position_offset=2), ("mlm",)),
    "gpt2": write_config(SMALL),
    "llama": {
        **dict(model_type="llama", vocab_size=64, max_position_embeddings=16, hidden_size=32, intermediate_size=48),
        **dict(num_hidden_layers=1, num_attention_heads=4),
    },
    "nlpstack": write_config(TransformerConfig(vocab_size=64, max_seq_len=16, positions="sinusoidal")),
}

ROPE = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 8,
}


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True is not supported"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt2", {"pruned_heads": {"0": [1]}}, r"pruned_heads={'0': \[1\]} is not supported"),
        ("gpt2", {"activation_function": "silu"}, "activation_function='silu' is not supported; there are gelu_new, "),
        ("gpt2", {"activation_function": []}, r"activation_function=\[\] is not supported"),
        ("gpt2", {"attn_pdrop": 0.5}, "attn_pdrop=0.5 is not supported; with the other values it has to be 0.0"),
        ("gpt2", {"resid_pdrop": None}, "embd_pdrop=0.0 is not supported; with the other values it has to be 0.1"),
        ("gpt2", {"n_embd": None}, "n_embd missing"),
        ("gpt2", {"n_embd": 30}, "dim=30 must be a multiple of n_heads=4"),
        ("gpt2", {"n_embd": "32"}, "n_embd='32': input should be a valid integer"),
        ("gpt2", {"n_layer": True}, "n_layer=True: input should be a valid integer"),
        ("gpt2", {"n_inner": 0}, "n_inner=0 is not supported"),
        ("gpt2", {"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ("gpt2", {"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon=nan must be finite"),
        ("gpt2", {"quantization_config": {"bits": 4}}, "does not know quantization_config={'bits': 4}"),
        ("gpt2", {"nlpstack": {"norm_eps": 1.0}}, "under 'nlpstack' contradicts"),
        ("gpt2", {"nlpstack": {"pre_norm": False}}, "under 'nlpstack' contradicts"),
        ("gpt2", {"nlpstack": {"dropuot": 0.1}}, "unknown key 'dropuot'; did you mean 'dropout'?"),
        ("gpt2", {"nlpstack": 3}, "nlpstack=3 is not an object"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; there are silu"),
        ("llama", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp=2 is not supported"),
        ("llama", {"head_dim": 16}, "head_dim=16 is not supported; with the other values it has to be 8"),
        ("llama", {"sliding_window": 4096}, "does not know sliding_window=4096"),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.type='yarn' is not supported"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling of the type 'linear' lacks factor"),
        ("llama", {"rope_scaling": {"type": "linear", "rope_type": "llama3"}}, "rope_type='llama3' is not supported"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0.0}}, r"rope_stretch=\[0.0\] must be"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": "2"}},
            r"rope_stretch=\['2'\]: input should be a",
        ),
        ("llama", {"rope_parameters": {"rope_type": ["llama3"]}}, r"rope_parameters.rope_type=\['llama3'\] is not"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "lacks original_max_position_embeddings",
        ),
        (
            "llama",
            {"rope_parameters": {**ROPE, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
            "and low below high",
        ),
        ("llama", {"rope_parameters": {**ROPE, "attention_factor": 2.0}}, "attention_factor=2.0 is not supported with"),
        ("llama", {"rope_parameters": {"factor": 8.0}}, "rope_parameters.factor=8.0 is not supported"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5 is not supported"),
        ("llama", {"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, "rope_theta=5.0, but rope_theta=6.0"),
        ("llama", {"rope_scaling": 2.0}, "rope_scaling=2.0 is not an object"),
        ("llama", {"num_key_value_heads": 3}, "n_heads=4 must be a multiple of n_kv_heads=3"),
        ("llama", {"rope_theta": "big"}, "rope_theta='big': input should be a valid number"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved=True is not supported"),
        (
            "bert",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type='relative_key' is not supported",
        ),
        ("bert", {"is_decoder": True}, "is_decoder=True is not supported; with the other values it has to be False"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("bert", {"hidden_act": "silu"}, "hidden_act='silu' is not supported; there are gelu, gelu_new, "),
        ("bert", {"attention_probs_dropout_prob": 0.5}, "attention_probs_dropout_prob=0.5 is not supported"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size=0 is not supported; at least 1 is"),
        ("bert", {"type_vocab_size": "2"}, "type_vocab_size='2': input should be a valid integer"),
        ("bert", {"max_position_embeddings": None}, "max_position_embeddings missing"),
        ("bert", {"layer_norm_eps": 0.0}, "layer_norm_eps=0.0: input should be greater than 0"),
        ("bert", {"embedding_size": 16}, "does not know embedding_size=16"),
        (
            "bert",
            {"directionality": "uni"},
            "directionality='uni' is not supported; with the other values it has to be",
        ),
        ("bert", {"pooler_type": "mean"}, "pooler_type='mean' is not supported"),
        ("bert", {"pruned_heads": {"0": [1]}}, r"pruned_heads={'0': \[1\]} is not supported"),
        ("bert", {"nlpstack": {"causal": True}}, "under 'nlpstack' contradicts"),
        ("bert", {"nlpstack": {"position_offset": 2}}, "under 'nlpstack' contradicts"),
        ("roberta", {"position_embedding_type": "relative_key_query"}, "'relative_key_query' is not supported"),
        ("roberta", {"is_decoder": True}, "is_decoder=True is not supported"),
        ("roberta", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("roberta", {"hidden_act": "gelu_new"}, "hidden_act='gelu_new' is not supported; there are gelu$"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ("roberta", {"type_vocab_size": 0}, "type_vocab_size=0 is not supported"),
        ("roberta", {"pad_token_id": -1}, r"pad_token_id=-1 is not an id of the vocabulary \(vocab_size=64\)"),
        ("roberta", {"pad_token_id": 64}, "pad_token_id=64 is not an id of the vocabulary"),
        ("roberta", {"pad_token_id": "1"}, "pad_token_id='1' is not an id of the vocabulary"),
        (
            "roberta",
            {"max_position_embeddings": 2},
            "max_position_embeddings=2 leaves no position; the first token's is",
        ),
        ("roberta", {"max_position_embeddings": "18"}, "max_position_embeddings='18' leaves no position"),
        ("roberta", {"vocab_size": "64"}, "vocab_size='64': input should be a valid integer"),
        ("roberta", {"nlpstack": {"position_offset": 3}}, "under 'nlpstack' contradicts"),
        ("nlpstack", {"dimm": 8}, "unknown key 'dimm'; did you mean 'dim'?"),
        ("nlpstack", {"positions": "alibi"}, "positions='alibi': input should be 'learned', 'sinusoidal' or 'rotary'"),
        (
            "nlpstack",
            {"model_type": "mamba"},
            "model_type 'mamba' is not supported; there are gpt2, llama, bert, roberta, nlpstack",
        ),
        (
            "nlpstack",
            {"model_type": None},
            "model_type None is not supported; there are gpt2, llama, bert, roberta, nlpstack",
        ),
        ("nlpstack", {"model_type": []}, r"model_type \[\] is not supported"),
    ],
)
def test_what_the_core_cannot_do_is_refused_by_name(family: str, change: dict[str, object], message: str) -> None:
    read_config(CONFIGS[family], SOURCE)
    with pytest.raises(ModelError, match=message) as caught:
        read_config(CONFIGS[family] | change, SOURCE)
    assert str(caught.value).startswith("m/config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["transformers_version", "use_cache", "task_specific_params", "summary_type", "top_k"])
def test_what_changes_nothing_is_let_pass(key: str) -> None:
    for values in CONFIGS.values():
        assert read_config(values | {key: "x"}, SOURCE) == read_config(values, SOURCE)


def test_a_null_asks_for_nothing_in_a_published_config() -> None:
    values = CONFIGS["llama"] | {"sliding_window": None, "rope_scaling": None, "num_key_value_heads": None}
    assert read_config(values, SOURCE) == read_config(CONFIGS["llama"], SOURCE)


def test_a_roberta_counts_its_positions_from_the_pad_id_on() -> None:
    values = CONFIGS["roberta"]
    assert (values["max_position_embeddings"], values["pad_token_id"]) == (18, 1)
    without = {key: value for key, value in values.items() if key != "pad_token_id"}
    assert read_config(without, SOURCE) == read_config(values, SOURCE)
    config = read_config(values | {"pad_token_id": 0}, SOURCE)
    assert (config.max_seq_len, config.position_offset) == (17, 1)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_gpt_is_causal_whatever_is_decoder_says(family: str) -> None:
    assert read_config(CONFIGS[family] | {"is_decoder": True}, SOURCE) == read_config(CONFIGS[family], SOURCE)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_table_speaks_of_fields_and_keys_that_are_there(family: Family) -> None:
    fields = set(TransformerConfig.__dataclass_fields__)
    untold = fields - {*family.keys.values(), *family.shape}
    assert untold <= {"rope_theta", "rope_stretch", "n_kv_heads", "dropout"}  # what the family knows nothing of
    assert {*family.keys.values(), *family.shape, *family.least} <= fields
    assert {*family.defaults, *family.optional} < family.keys.keys()
    assert not family.defaults.keys() & set(family.optional)
    assert not family.fixed.keys() & family.keys.keys()
