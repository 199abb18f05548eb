"""Every row of docs/models.md: weights that transformers drew, read here and written here, are theirs to the bit."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers.utils import logging

from nlpstack.hub import load_model, save_model, weights_hash
from nlpstack.model import BERT, GPT
from nlpstack.model.heads import Labels
from nlpstack.model.lora import LoRAConfig, add_lora

logging.set_verbosity_error()
logging.disable_progress_bar()

spec = importlib.util.spec_from_file_location(
    "generate_models", Path(__file__).resolve().parents[2] / "docs" / "generate_models.py"
)
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)

SIZES = {
    **{"vocab_size": 120, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4},
    "max_position_embeddings": 40,
}
CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=120, n_positions=40, n_embd=48, n_layer=2, n_head=4),
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "bert": lambda: transformers.BertConfig(**SIZES, num_labels=3),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, num_labels=3, type_vocab_size=1, layer_norm_eps=1e-5),
}
TOKENS = torch.randint(6, 120, (3, 24), generator=torch.Generator().manual_seed(1))
UNSAID = {  # by one side: who wrote the file, ids of a tokenizer that is not there, a key of old with its only value
    *("transformers_version", "nlpstack", "torch_dtype", "dtype", "_name_or_path", "position_embedding_type"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "problem_type"),
}
ROWS = made.rows()


def meaning(config: Any, row: Any) -> dict[str, Any]:
    """What a config says of the model: a size that is spelled out is the one that null stands for."""
    values = {key: value for key, value in config.to_dict().items() if key not in UNSAID}
    if not {"sequence", "tokens"} & set(row.heads):  # no classifier, so its labels are of nothing
        values = {key: value for key, value in values.items() if key not in ("id2label", "label2id")}
    if "n_inner" in values:
        values["n_inner"] = values["n_inner"] or 4 * values["n_embd"]
    return values


def theirs_of(row: Any) -> torch.nn.Module:
    """A model of transformers with weights of all sizes."""
    torch.manual_seed(0)
    extra = {} if row.heads or row.causal else {"add_pooling_layer": False}
    model = getattr(transformers, row.architecture)(CONFIGS[row.family](), **extra).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@torch.no_grad()
def outputs(model: Any) -> list[torch.Tensor]:
    """Whatever a model says of the tokens."""
    if isinstance(model, GPT):
        return [model(TOKENS)]
    if not isinstance(model, BERT):
        said = model(TOKENS)
        names = ("prediction_logits", "seq_relationship_logits", "logits", "last_hidden_state", "pooler_output")
        return [said[name] for name in names if said.get(name) is not None]
    hidden = model(TOKENS)
    found = {"mlm": model.mlm_logits, "nsp": model.nsp_logits, "sequence": model.label_logits}
    found["tokens"] = model.label_logits
    told = [found[head](hidden) for head in model.heads if head in found]
    return told or [hidden, *([model.pooler(hidden)] if model.pooler is not None else [])]


def close(one: list[torch.Tensor], other: list[torch.Tensor], within: float = 1e-4) -> None:
    assert len(one) == len(other) > 0
    for mine, its in zip(one, other, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=within)


def test_the_table_has_every_family() -> None:
    assert {row.family for row in ROWS} == CONFIGS.keys()
    assert len(ROWS) > 15
    page = made.fill_models(f"before\n{made.TABLE}\nafter")
    assert page.count("\n| `") == len(ROWS)
    assert all(f"`{row.architecture}`" in page for row in ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.of_theirs], ids=str)
def test_what_they_wrote_comes_back_to_the_bit(row: Any, tmp_path: Path) -> None:
    theirs = theirs_of(row)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert set(getattr(ours, "heads", ())) == set(row.heads)
    close(outputs(ours), outputs(theirs))
    save_model(ours, tmp_path / "ours")
    given, written = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) for name in given)
    kind = getattr(transformers, row.architecture)
    extra = {} if row.heads or row.causal else {"add_pooling_layer": False}
    again = kind.from_pretrained(tmp_path / "ours", **extra).eval()
    assert all(map(torch.equal, again.state_dict().values(), theirs.state_dict().values()))
    close(outputs(again), outputs(theirs), within=0)
    then, now = (meaning(type(theirs.config).from_pretrained(tmp_path / name), row) for name in ("theirs", "ours"))
    assert now == then


def ours_of(row: Any, folder: Path) -> Any:
    """A model of ours with the row's heads, in the family's shape."""
    theirs_of(next(one for one in ROWS if one.of_theirs and one.family == row.family)).save_pretrained(folder)
    model: Any = load_model(folder)
    if row.causal:
        return model
    labels = Labels(("x", "y", "z")) if {"sequence", "tokens"} & set(row.heads) else None
    return BERT.create(model.config, seed=3, heads=row.heads, labels=labels).eval()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_we_write_their_class_opens(row: Any, tmp_path: Path) -> None:
    ours = ours_of(row, tmp_path / "any")
    save_model(ours, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [row.architecture]
    extra = {} if row.heads or row.causal else {"add_pooling_layer": False}
    theirs = getattr(transformers, row.architecture).from_pretrained(tmp_path / "ours", **extra).eval()
    close(outputs(ours), outputs(theirs))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_adapter_opens_in_peft_and_here(row: Any, tmp_path: Path) -> None:
    save_model(ours_of(row, tmp_path / "any"), tmp_path / "base")
    ours = load_model(tmp_path / "base")
    before = outputs(ours)
    add_lora(ours, LoRAConfig(rank=3, alpha=6.0, targets=["q_proj", "down_proj"]), seed=2)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "lora_b" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    ours.base = str(tmp_path / "base"), weights_hash(tmp_path / "base")
    save_model(ours, tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["task_type"] or "") == row.adapter
    assert not torch.allclose(outputs(ours)[0], before[0], atol=1e-3)
    close(outputs(load_model(tmp_path / "adapter")), outputs(ours), within=1e-6)
    kind = getattr(transformers, row.architecture)
    extra = {} if row.heads or row.causal else {"add_pooling_layer": False}
    base = kind.from_pretrained(tmp_path / "base", **extra).eval()
    close(outputs(ours), outputs(PeftModel.from_pretrained(base, tmp_path / "adapter").eval().base_model.model))
