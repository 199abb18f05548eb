"""GGUF files of models of transformers, written with llama.cpp's own `gguf` as its converter does."""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from nlpstack.tokenizer.published import _BYTE_OF

Type = gguf.GGMLQuantizationType
ENDS = "<|endoftext|>"
PIECES = [*_BYTE_OF, "th", "the", "\u0120the", "an", "12", "\u0120\u0120", ENDS]
VOCAB = len(PIECES)
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# What no function of `gguf` quantises to is drawn: bytes a block, and where in it fp16 scales stand.
DRAWN = {Type.Q6_K: (208,), Type.Q4_K: (0, 2), Type.Q2_K: (80, 82), Type.IQ4_NL: (0,)}


class Parts(NamedTuple):
    """What a file says and holds; tests change it before it is written."""

    values: dict[str, Any]
    tensors: dict[str, tuple[np.ndarray, Type]]


def random_model(name: str, *, tied: bool, dim: int = 64, n_layers: int = 2) -> PreTrainedModel:
    torch.manual_seed(0)
    common = {"vocab_size": VOCAB, "tie_word_embeddings": tied, "bos_token_id": VOCAB - 1, "eos_token_id": VOCAB - 1}
    if name == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=dim, n_layer=n_layers, n_head=4, **common))
    else:
        shape = {"hidden_size": dim, "intermediate_size": 2 * dim, "max_position_embeddings": 32, "rms_norm_eps": 1e-5}
        heads = {"num_hidden_layers": n_layers, "num_attention_heads": 4, "num_key_value_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, rope_theta=5e5, **common))
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def metadata(config: Any) -> dict[str, Any]:
    """What the converter writes of a shape."""
    theirs = {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
    }
    if config.model_type == "llama":
        theirs |= {"feed_forward_length": "intermediate_size", "attention.head_count_kv": "num_key_value_heads"}
        theirs |= {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.dimension_count": "head_dim"}
        theirs |= {"vocab_size": "vocab_size"}
    else:
        theirs |= {"attention.layer_norm_epsilon": "layer_norm_epsilon"}
    values = {ours: getattr(config, key) for ours, key in theirs.items()}
    values |= {"rope.freq_base": 5e5} if config.model_type == "llama" else {"feed_forward_length": 4 * config.n_embd}
    return {f"{config.model_type}.{key}": value for key, value in values.items()}


def byte_bpe() -> dict[str, Any]:
    """A tokenizer of every byte and a few merges, as GPT-2's."""
    said = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": PIECES,
        "token_type": [1] * (VOCAB - 1) + [3],
        "merges": ["t h", "th e", "\u0120 the", "a n", "1 2", "\u0120 \u0120"],
        "bos_token_id": VOCAB - 1,
        "eos_token_id": VOCAB - 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in said.items()}


def quantised(array: np.ndarray, kind: Type) -> np.ndarray:
    if kind not in DRAWN:
        return gguf.quants.quantize(array, kind)
    values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    n_blocks = array.shape[-1] // values
    random = np.random.default_rng(array.view(np.uint32).ravel()[:4])  # another tensor, other bytes
    rows = random.integers(0, 256, (*array.shape[:-1], n_blocks, n_bytes), dtype=np.uint8)
    for at in DRAWN[kind]:
        rows[..., at : at + 2] = np.full(1, 2e-4, np.float16).view(np.uint8)
    return rows.reshape(*array.shape[:-1], -1)


def parts(theirs: PreTrainedModel, kind: Type = Type.F32, *, repeated: bool = False) -> Parts:
    """What the converter writes of a model; of one that is tied, the embedding again if `repeated`."""
    config = theirs.config
    name = config.model_type
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name.upper()], config.num_hidden_layers)
    tensors = {}
    for place, tensor in theirs.state_dict().items():
        array, (module, _, part) = tensor.numpy(), place.rpartition(".")
        if place == "lm_head.weight" and config.tie_word_embeddings and not repeated:
            continue
        if name == "gpt2" and place.endswith(TRANSPOSED):
            array = np.ascontiguousarray(array.T)
        if name == "llama" and module.endswith(("q_proj", "k_proj")):
            n_heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            array = array.reshape(n_heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        own = kind if array.ndim > 1 and module != "transformer.wpe" else Type.F32  # as the converter keeps them
        tensors[f"{known.get_name(module)}.{part}"] = quantised(np.ascontiguousarray(array), own), own
    return Parts(metadata(config) | byte_bpe(), tensors)


def save(file: Path, made: Parts, architecture: str | None = None, **options: Any) -> Path:
    """Write a file; its name tells the architecture if nothing else does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, architecture or next(iter(made.values)).partition(".")[0], **options)
    if type(alignment := made.values.get("general.alignment")) is int and alignment:
        writer.data_alignment = alignment
    for key, value in made.values.items():
        kind = gguf.GGUFValueType.UINT32 if type(value) is int else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    for name, (array, kind) in made.tensors.items():
        writer.add_tensor(name, array, raw_dtype=None if kind in (Type.F32, Type.F16) else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
