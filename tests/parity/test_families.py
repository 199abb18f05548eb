"""GPT-2 and Llama on random weights: transformers' folders open here and ours there, with the same logits."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model
from nlpstack.hub.families import family_of, read_config, write_config
from nlpstack.model import GPT, TransformerConfig
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

TOKENS = torch.randint(0, 128, (3, 24), generator=torch.Generator().manual_seed(1))

GPT2 = dict(vocab_size=128, n_positions=32, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
LLAMA = dict(
    vocab_size=128,
    max_position_embeddings=32,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
)
THEIRS = {
    "gpt2": GPT2Config(**GPT2),
    "gpt2-untied": GPT2Config(**GPT2, tie_word_embeddings=False),
    "gpt2-odd": GPT2Config(
        **GPT2, n_inner=100, layer_norm_epsilon=1e-3, resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2
    ),
    "gpt2-gelu": GPT2Config(**GPT2, activation_function="gelu"),
    "gpt2-gelu-tanh": GPT2Config(**GPT2, activation_function="gelu_pytorch_tanh"),
    "gpt2-relu": GPT2Config(**GPT2, activation_function="relu"),
    "llama": LlamaConfig(**LLAMA),
    "llama-tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama-grouped": LlamaConfig(**LLAMA, num_key_value_heads=2),
    "llama-one-kv-head": LlamaConfig(**LLAMA, num_key_value_heads=1, tie_word_embeddings=True),
    "llama-linear": LlamaConfig(**LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}),
    "llama-3": LlamaConfig(
        **LLAMA,
        rope_parameters={
            **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "original_max_position_embeddings": 24},
            **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        },
    ),
    "llama-odd": LlamaConfig(
        **LLAMA, rms_norm_eps=1e-3, rope_parameters={"rope_type": "default", "rope_theta": 500.0}, head_dim=12
    ),
}
SMALL = TransformerConfig(vocab_size=128, max_seq_len=32, dim=48, n_layers=2, n_heads=4)
LLAMA_SHAPE = dict(positions="rotary", norm="rmsnorm", activation="swiglu", bias=False)
OURS = {
    "gpt2": replace(SMALL, activation="gelu_tanh", dropout=0.1),
    "gpt2-untied": replace(SMALL, tied=False, ffn_dim=100, norm_eps=1e-3),
    "gpt2-relu": replace(SMALL, activation="relu", n_kv_heads=4, ffn_dim=192, rope_theta=7.0),
    "llama": replace(SMALL, **LLAMA_SHAPE),
    "llama-untied": replace(SMALL, **LLAMA_SHAPE, tied=False, n_kv_heads=2, dropout=0.1, ffn_dim=100),
    "llama-odd": replace(SMALL, **LLAMA_SHAPE, n_kv_heads=4, norm_eps=1e-3, rope_theta=500.0),
    "llama-linear": replace(SMALL, **LLAMA_SHAPE, rope_stretch=(2.5,)),
    "llama-3": replace(SMALL, **LLAMA_SHAPE, rope_theta=5e5, rope_stretch=(8.0, 24.0, 1.0, 3.0)),
}
OUTSIDE = {
    "sinusoidal": replace(SMALL, positions="sinusoidal"),
    "post-norm": replace(SMALL, pre_norm=False, dropout=0.1),
    "bias-free": replace(SMALL, bias=False),
    "grouped-gpt2": replace(SMALL, n_kv_heads=2, tied=False),
    "rotary-relu": replace(SMALL, **LLAMA_SHAPE | {"activation": "relu"}),
    "rotary-bias": replace(SMALL, **LLAMA_SHAPE | {"bias": True}),
}


def shaken(model):
    """The model with random norms and biases too, so that none is mistaken for another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def ours(config: TransformerConfig, **given: object) -> GPT:
    return shaken(GPT.create(config, seed=0, **given))


def theirs(config):
    torch.manual_seed(0)
    return shaken((GPT2LMHeadModel if isinstance(config, GPT2Config) else LlamaForCausalLM)(config))


@torch.no_grad()
def assert_same_logits(our_model: GPT, their_model) -> None:
    torch.testing.assert_close(our_model(TOKENS), their_model(TOKENS).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", THEIRS)
def test_their_folder_opens_here_with_the_same_logits_and_goes_back(name: str, tmp_path: Path) -> None:
    model = theirs(THEIRS[name])
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert not loaded.training
    assert loaded.tokenizer is None
    assert_same_logits(loaded, model)
    assert family_of(loaded.config) == model.config.model_type
    save_model(loaded, tmp_path / "ours")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").config.to_dict()
    said = model.config.to_dict() | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    differing = {key for key in said if again[key] != said[key]} - {"architectures", "_name_or_path"}
    assert differing <= {"n_inner", "activation_function", "dtype"}


@pytest.mark.parametrize("name", OURS)
def test_our_folder_opens_there_with_the_same_logits(name: str, tmp_path: Path) -> None:
    model = ours(OURS[name])
    save_model(model, tmp_path / "model")
    opened, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(opened) is (GPT2LMHeadModel if name.startswith("gpt2") else LlamaForCausalLM)
    assert not any(report.values())
    assert opened.dtype == torch.float32
    assert_same_logits(model, opened.eval())


@pytest.mark.parametrize("name", [*OURS, *(f"outside-{name}" for name in OUTSIDE)])
def test_what_we_write_we_read_back_equal(name: str, tmp_path: Path) -> None:
    config = OURS.get(name) or OUTSIDE[name.removeprefix("outside-")]
    model = ours(config)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.config == config
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) and again[key].is_contiguous() for key in state)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert family_of(config) == ("nlpstack" if name.startswith("outside-") else name.partition("-")[0])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == family_of(config)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_tokenizer_and_special_ids_open_there_too(name: str, tmp_path: Path) -> None:
    text = "to be, or not to be:\nthat is the question. "
    tokenizer = train_tokenizer([text], TokenizerConfig(kind="char"))
    model = ours(replace(OURS[name], vocab_size=tokenizer.vocab_size), tokenizer=tokenizer)
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.tokenizer.hash == tokenizer.hash
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = loaded.tokenizer.encode(text)
    assert their_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for kept in (opened.config, opened.generation_config):
        assert (kept.bos_token_id, kept.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
        assert kept.pad_token_id == tokenizer.pad_id
    made = opened.generate(torch.tensor([ids[:4]]), max_new_tokens=3, do_sample=False)
    assert made.shape[1] <= 7


@pytest.mark.parametrize("tied", [True, False])
def test_a_file_without_the_prefix_and_with_mask_buffers_opens(tied: bool, tmp_path: Path) -> None:
    """GPT-2 as OpenAI published it: names of the bare core, and the causal masks among the weights."""
    model = theirs(GPT2Config(**GPT2, tie_word_embeddings=tied))
    model.save_pretrained(tmp_path)
    tensors = {
        key.removeprefix("transformer."): value for key, value in load_file(tmp_path / "model.safetensors").items()
    }
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if tied:
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_logits(load_model(tmp_path), model)
    if tied:
        tensors["lm_head.weight"] += 1
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=r"lm_head.weight is not transformer.wte.weight"):
            load_model(tmp_path)


def test_old_llama_files_open(tmp_path: Path) -> None:
    """rope_theta in its old place, no head_dim, inverse frequencies among the weights."""
    model = theirs(THEIRS["llama-odd"])
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["rope_parameters"], values["head_dim"], values["dtype"]
    values |= {"rope_theta": 500, "rope_scaling": None, "torch_dtype": "float32", "top_k": 50}
    (tmp_path / "config.json").write_text(json.dumps(values))
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same_logits(load_model(tmp_path), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_dtypes_load_as_fp32_or_wider(dtype: torch.dtype, tmp_path: Path) -> None:
    model = theirs(THEIRS["gpt2"]).to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    wide = torch.promote_types(dtype, torch.float32)
    assert {parameter.dtype for parameter in loaded.parameters()} == {wide}
    assert torch.equal(loaded.transformer.tokens.weight, model.transformer.wte.weight.to(wide))
    as_stored = load_model(tmp_path / "theirs", dtype=dtype)
    save_model(as_stored, tmp_path / "ours")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").dtype == dtype
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("config", [GPT2Config(**GPT2), LlamaConfig(**LLAMA, num_key_value_heads=2)])
def test_a_config_with_every_key_spelled_out_is_read(config, tmp_path: Path) -> None:
    full = json.loads(config.to_json_string(use_diff=False))
    assert read_config(full, tmp_path) == read_config(json.loads(config.to_json_string()), tmp_path)


def test_only_what_the_family_cannot_say_stands_beside_it() -> None:
    assert "nlpstack" not in write_config(OURS["gpt2"]) | write_config(OURS["llama"])
    assert write_config(OURS["gpt2-relu"])["nlpstack"] == {"n_kv_heads": 4, "ffn_dim": 192, "rope_theta": 7.0}
    assert write_config(OURS["llama-untied"])["nlpstack"] == {"dropout": 0.1}
