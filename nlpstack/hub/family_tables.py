"""What the published families write in config.json and call their tensors: one table each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family writes down what TransformerConfig and our tensor names say."""

    architectures: Mapping[tuple[Head, ...], str]  # heads -> the class of transformers that opens it; a GPT has none
    core: str = ""  # of these classes the one whose files leave the prefix out
    keys: Mapping[str, str]  # key of config.json -> our field; keys of one field must agree
    defaults: Mapping[str, object]  # of keys that may be missing; None: the field's own default
    activations: Mapping[str, str]  # theirs -> ours; of several for one of ours, the first is written
    shape: Mapping[str, object]  # our fields that the family leaves no choice
    least: Mapping[str, int] = field(default_factory=dict)  # our fields that must not be smaller
    after_pad: bool = False  # position_offset is written as pad_token_id, and its rows are counted as positions
    fixed: Callable[[TransformerConfig], Json]  # further keys, on which the core leaves no choice
    prefix: str  # before every tensor but the head's; a file of the bare core leaves it out
    modules: Mapping[str, tuple[str, ...]]  # theirs -> ours; several of ours are stacked in one of theirs
    of_sequences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # those of the head "sequence" instead
    transposed: frozenset[str] = field(default=frozenset())  # modules whose matrices are stored (in, out)
    twice: Mapping[str, str]  # second name of a tensor that is tied -> the first
    old_names: Mapping[str, str] = field(default_factory=dict)  # ends of tensor names in old files -> today's
    buffers: str  # pattern of stored tensors that are no weights


_ENCODER_KEYS = {
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_seq_len",
    "type_vocab_size": "n_segments",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "dropout",
    "tie_word_embeddings": "tied",
}
_ENCODER_DEFAULTS: Json = {
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "tie_word_embeddings": True,
}
_ENCODER_SHAPE: Json = dict(causal=False, positions="learned", norm="layernorm", pre_norm=False, bias=True)


def _encoder_fixed(config: TransformerConfig) -> Json:
    # In a GPT's config is_decoder says nothing; here it would make the attention causal.
    return {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def _encoder_modules(prefix: str) -> dict[str, tuple[str, ...]]:
    """BERT's core and pooler, which RoBERTa has too."""
    layer, block = f"{prefix}encoder.layer.N.", "transformer.blocks.N."
    return {
        f"{prefix}embeddings.word_embeddings": ("transformer.tokens",),
        f"{prefix}embeddings.position_embeddings": ("transformer.positions",),
        f"{prefix}embeddings.token_type_embeddings": ("transformer.segments",),
        f"{prefix}embeddings.LayerNorm": ("transformer.norm",),
        f"{layer}attention.self.query": (f"{block}attention.q_proj",),
        f"{layer}attention.self.key": (f"{block}attention.k_proj",),
        f"{layer}attention.self.value": (f"{block}attention.v_proj",),
        f"{layer}attention.output.dense": (f"{block}attention.out_proj",),
        f"{layer}attention.output.LayerNorm": (f"{block}attention_norm",),
        f"{layer}intermediate.dense": (f"{block}ffn.up_proj",),
        f"{layer}output.dense": (f"{block}ffn.down_proj",),
        f"{layer}output.LayerNorm": (f"{block}ffn_norm",),
        f"{prefix}pooler.dense": ("pooler.dense",),
    }


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        architectures={(): "GPT2LMHeadModel"},
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
        shape={
            **{"causal": True, "positions": "learned", "norm": "layernorm", "pre_norm": True, "bias": True},
            **{"n_segments": 0, "position_offset": 0},
        },
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
        twice={"lm_head.weight": "transformer.wte.weight"},
        buffers=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
    ),
    "llama": Family(
        architectures={(): "LlamaForCausalLM"},
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
        shape={
            **{"causal": True, "positions": "rotary", "norm": "rmsnorm", "pre_norm": True, "bias": False},
            **{"n_segments": 0, "position_offset": 0},
        },
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
        twice={"lm_head.weight": "model.embed_tokens.weight"},
        buffers=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    ),
    "bert": Family(
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
        core="BertModel",
        keys=_ENCODER_KEYS,
        defaults=_ENCODER_DEFAULTS,
        activations={"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"},
        shape={**_ENCODER_SHAPE, "position_offset": 0},
        least={"n_segments": 1},
        fixed=_encoder_fixed,
        prefix="bert.",
        modules={
            **_encoder_modules("bert."),
            "cls.predictions": ("mlm_head",),
            "cls.predictions.transform.dense": ("mlm_head.dense",),
            "cls.predictions.transform.LayerNorm": ("mlm_head.norm",),
            "cls.predictions.decoder": ("mlm_head.decoder",),
            "cls.seq_relationship": ("nsp_head",),
            "classifier": ("classifier",),
        },
        twice={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        old_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        buffers=r"bert\.embeddings\.(position_ids|token_type_ids)",
    ),
    # No class of RoBERTa's tells the next sentence: a model that does is written in our own format.
    "roberta": Family(
        architectures={
            ("mlm", "pooler"): "RobertaForMaskedLM",  # as roberta-base itself is published
            ("mlm",): "RobertaForMaskedLM",
            ("pooler",): "RobertaModel",
            ("pooler", "sequence"): "RobertaForSequenceClassification",
            ("tokens",): "RobertaForTokenClassification",
            (): "RobertaModel",
        },
        core="RobertaModel",
        keys={**_ENCODER_KEYS, "pad_token_id": "position_offset"},
        defaults={**_ENCODER_DEFAULTS, "pad_token_id": 1},
        activations={"gelu": "gelu"},  # of the blocks; the head of masked tokens knows no other
        shape=_ENCODER_SHAPE,
        least={"n_segments": 1, "position_offset": 1},
        after_pad=True,
        fixed=_encoder_fixed,
        prefix="roberta.",
        modules={
            **_encoder_modules("roberta."),
            "lm_head": ("mlm_head",),
            "lm_head.dense": ("mlm_head.dense",),
            "lm_head.layer_norm": ("mlm_head.norm",),
            "lm_head.decoder": ("mlm_head.decoder",),
            "classifier": ("classifier",),
        },
        of_sequences={"classifier.dense": ("pooler.dense",), "classifier.out_proj": ("classifier",)},
        twice={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        old_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        buffers=r"roberta\.embeddings\.(position_ids|token_type_ids)",
    ),
}
