"""What the published families write in config.json and call their tensors: one table each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from nlpstack.model import TransformerConfig
from nlpstack.model.heads import Head

Json = dict[str, object]

# Keys that say nothing about what the model computes, whatever their value. The last lines are settings of generation,
# which older versions of transformers kept in a model's config.
_INERT_KEYS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _from_model_config _name_or_path architectures
    attn_implementation bos_token_id chunk_size_feed_forward classifier_dropout cls_token_id decoder_start_token_id
    dtype eos_token_id finetuning_task gradient_checkpointing id2label initializer_range is_decoder is_llama_config
    keys_to_ignore_at_inference label2id mask_token_id model_type n_ctx num_labels output_attentions
    output_hidden_states output_past pad_token_id pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers
    pooler_size_per_head prefix problem_type return_dict sep_token_id summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj task_specific_params tf_legacy_loss tokenizer_class
    torch_dtype torchscript transformers.js_config transformers_version unk_token_id use_bfloat16 use_cache
    bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p
"""
INERT = frozenset(_INERT_KEYS.split())
# Keys that would change it, with the value that asks for nothing. A null asks for nothing under any key.
OFF: Json = {
    "add_cross_attention": False,
    "directionality": "bidi",  # Google's BERTs carry this and the pooler_ keys; only one kind was ever made
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,
    "pooler_type": "first_token_transform",
    "pruned_heads": {},
    "rope_interleaved": False,
    "tie_encoder_decoder": False,
    "use_sliding_window": False,
}

REQUIRED = object()  # the default of a key that has to be there


class Key(NamedTuple):
    """Our field that a key of config.json tells, and the value where the key is missing (None: the field's own)."""

    field: str
    default: object = REQUIRED


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family writes down what TransformerConfig and our tensor names say."""

    architectures: Mapping[tuple[Head, ...], str]  # heads -> the class of transformers that opens it; a GPT has none
    keys: Mapping[str, Key]  # of config.json; keys of one field must agree
    activations: Mapping[str, str]  # theirs -> ours; of several for one of ours, the first is written
    shape: Mapping[str, object]  # our fields that the family leaves no choice
    least: Mapping[str, int] = field(default_factory=dict)  # our fields that must not be smaller
    fixed: Callable[[TransformerConfig], Json]  # further keys, on which the core leaves no choice
    prefix: str  # before every tensor but the head's; a file of the bare core leaves it out
    modules: Mapping[str, str]  # theirs -> ours; several of ours, with spaces between, are stacked in one of theirs
    of_sequences: Mapping[str, str] = field(default_factory=dict)  # those of the head "sequence" instead
    transposed: tuple[str, ...] = ()  # ends of modules whose matrices are stored (in, out)
    twice: Mapping[str, str]  # second name of a tensor that is tied -> the first
    old_names: Mapping[str, str] = field(default_factory=dict)  # ends of tensor names in old files -> today's
    buffers: str  # pattern of stored tensors that are no weights


_BLOCK = "transformer.blocks.N."
_GPT_SHAPE: Json = dict(causal=True, pre_norm=True, n_segments=0, position_offset=0)
_ENCODER_SHAPE: Json = dict(causal=False, positions="learned", norm="layernorm", pre_norm=False, bias=True)
_SIZES = {
    "vocab_size": Key("vocab_size"),
    "max_position_embeddings": Key("max_seq_len"),
    "hidden_size": Key("dim"),
    "num_hidden_layers": Key("n_layers"),
    "num_attention_heads": Key("n_heads"),
    "intermediate_size": Key("ffn_dim"),
}

_GPT2 = Family(
    architectures={(): "GPT2LMHeadModel"},
    keys={
        "vocab_size": Key("vocab_size"),
        "n_positions": Key("max_seq_len"),
        "n_embd": Key("dim"),
        "n_layer": Key("n_layers"),
        "n_head": Key("n_heads"),
        "n_inner": Key("ffn_dim", None),
        "activation_function": Key("activation", "gelu_new"),
        "layer_norm_epsilon": Key("norm_eps", 1e-5),
        "resid_pdrop": Key("dropout", 0.1),
        "embd_pdrop": Key("dropout", 0.1),
        "attn_pdrop": Key("dropout", 0.1),
        "tie_word_embeddings": Key("tied", True),
    },
    activations={"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"},
    shape={**_GPT_SHAPE, "positions": "learned", "norm": "layernorm", "bias": True},
    fixed=lambda config: {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    },
    prefix="transformer.",
    modules={
        "transformer.wte": "transformer.tokens",
        "transformer.wpe": "transformer.positions",
        "transformer.h.N.ln_1": f"{_BLOCK}attention_norm",
        "transformer.h.N.attn.c_attn": f"{_BLOCK}attention.q_proj {_BLOCK}attention.k_proj {_BLOCK}attention.v_proj",
        "transformer.h.N.attn.c_proj": f"{_BLOCK}attention.out_proj",
        "transformer.h.N.ln_2": f"{_BLOCK}ffn_norm",
        "transformer.h.N.mlp.c_fc": f"{_BLOCK}ffn.up_proj",
        "transformer.h.N.mlp.c_proj": f"{_BLOCK}ffn.down_proj",
        "transformer.ln_f": "transformer.norm",
        "lm_head": "lm_head",
    },
    transposed=("c_attn", "c_proj", "c_fc"),
    twice={"lm_head.weight": "transformer.wte.weight"},
    buffers=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
)

_LLAMA = Family(
    architectures={(): "LlamaForCausalLM"},
    keys={
        **_SIZES,
        "num_key_value_heads": Key("n_kv_heads", None),
        "hidden_act": Key("activation", "silu"),
        "rms_norm_eps": Key("norm_eps", 1e-6),
        "rope_theta": Key("rope_theta", 10000.0),
        "tie_word_embeddings": Key("tied", False),
    },
    activations={"silu": "swiglu"},
    shape={**_GPT_SHAPE, "positions": "rotary", "norm": "rmsnorm", "bias": False},
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
        "model.embed_tokens": "transformer.tokens",
        "model.layers.N.input_layernorm": f"{_BLOCK}attention_norm",
        **{f"model.layers.N.self_attn.{name}_proj": f"{_BLOCK}attention.{name}_proj" for name in ("q", "k", "v")},
        "model.layers.N.self_attn.o_proj": f"{_BLOCK}attention.out_proj",
        "model.layers.N.post_attention_layernorm": f"{_BLOCK}ffn_norm",
        **{f"model.layers.N.mlp.{name}_proj": f"{_BLOCK}ffn.{name}_proj" for name in ("gate", "up", "down")},
        "model.norm": "transformer.norm",
        "lm_head": "lm_head",
    },
    twice={"lm_head.weight": "model.embed_tokens.weight"},
    buffers=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)

_ENCODER_MODULES = {  # after the prefix
    "embeddings.word_embeddings": "transformer.tokens",
    "embeddings.position_embeddings": "transformer.positions",
    "embeddings.token_type_embeddings": "transformer.segments",
    "embeddings.LayerNorm": "transformer.norm",
    "encoder.layer.N.attention.self.query": f"{_BLOCK}attention.q_proj",
    "encoder.layer.N.attention.self.key": f"{_BLOCK}attention.k_proj",
    "encoder.layer.N.attention.self.value": f"{_BLOCK}attention.v_proj",
    "encoder.layer.N.attention.output.dense": f"{_BLOCK}attention.out_proj",
    "encoder.layer.N.attention.output.LayerNorm": f"{_BLOCK}attention_norm",
    "encoder.layer.N.intermediate.dense": f"{_BLOCK}ffn.up_proj",
    "encoder.layer.N.output.dense": f"{_BLOCK}ffn.down_proj",
    "encoder.layer.N.output.LayerNorm": f"{_BLOCK}ffn_norm",
    "pooler.dense": "pooler.dense",
}

_BERT = Family(
    architectures={
        ("mlm", "pooler", "nsp"): "BertForPreTraining",
        # No class has just these two. This one opens the folder and leaves the pooler, which BertModel takes.
        ("mlm", "pooler"): "BertForMaskedLM",
        ("mlm",): "BertForMaskedLM",
        ("pooler", "nsp"): "BertForNextSentencePrediction",
        ("pooler",): "BertModel",
        ("pooler", "sequence"): "BertForSequenceClassification",
        ("tokens",): "BertForTokenClassification",
        ("pooler", "tokens"): "BertForTokenClassification",  # as older versions wrote it
        (): "BertModel",
    },
    keys={
        **_SIZES,
        "type_vocab_size": Key("n_segments", 2),
        "hidden_act": Key("activation", "gelu"),
        "layer_norm_eps": Key("norm_eps", 1e-12),
        "hidden_dropout_prob": Key("dropout", 0.1),
        "attention_probs_dropout_prob": Key("dropout", 0.1),
        "tie_word_embeddings": Key("tied", True),
    },
    activations={"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"},
    shape={**_ENCODER_SHAPE, "position_offset": 0},
    least={"n_segments": 1},
    # In a GPT's config is_decoder says nothing; here it would make the attention causal.
    fixed=lambda config: {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    prefix="bert.",
    modules={
        **{f"bert.{theirs}": ours for theirs, ours in _ENCODER_MODULES.items()},
        "cls.predictions": "mlm_head",
        "cls.predictions.transform.dense": "mlm_head.dense",
        "cls.predictions.transform.LayerNorm": "mlm_head.norm",
        "cls.predictions.decoder": "mlm_head.decoder",
        "cls.seq_relationship": "nsp_head",
        "classifier": "classifier",
    },
    twice={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    old_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    buffers=r"bert\.embeddings\.(position_ids|token_type_ids)",
)

# No class of RoBERTa's tells the next sentence: a model that does is written in our own format.
_ROBERTA = replace(
    _BERT,
    architectures={
        ("mlm", "pooler"): "RobertaForMaskedLM",  # as roberta-base itself is published
        ("mlm",): "RobertaForMaskedLM",
        ("pooler",): "RobertaModel",
        ("pooler", "sequence"): "RobertaForSequenceClassification",
        ("tokens",): "RobertaForTokenClassification",
        (): "RobertaModel",
    },
    keys={**_BERT.keys, "pad_token_id": Key("position_offset", 1)},  # positions are counted from it on
    activations={"gelu": "gelu"},  # of the blocks; the head of masked tokens knows no other
    shape=_ENCODER_SHAPE,
    prefix="roberta.",
    modules={
        **{f"roberta.{theirs}": ours for theirs, ours in _ENCODER_MODULES.items()},
        "lm_head": "mlm_head",
        "lm_head.dense": "mlm_head.dense",
        "lm_head.layer_norm": "mlm_head.norm",
        "lm_head.decoder": "mlm_head.decoder",
        "classifier": "classifier",
    },
    of_sequences={"classifier.dense": "pooler.dense", "classifier.out_proj": "classifier"},
    twice={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    buffers=r"roberta\.embeddings\.(position_ids|token_type_ids)",
)

FAMILIES = {"gpt2": _GPT2, "llama": _LLAMA, "bert": _BERT, "roberta": _ROBERTA}
