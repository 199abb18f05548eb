"""Folders of BERT and RoBERTa: heads are whole or not there, old names are read, second copies are copies."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model, weights_hash
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from nlpstack.tokenizer.published import PublishedTokenizer

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
SHAPE = dict(vocab_size=64, max_seq_len=16, dim=32, n_layers=1, n_heads=4, causal=False)
POST = dict(**SHAPE, pre_norm=False)
CONFIGS = {
    "bert": TransformerConfig(**POST, n_segments=2),
    "bert-untied": TransformerConfig(**POST, n_segments=2, tied=False),
    "roberta": TransformerConfig(**POST, n_segments=1, position_offset=2),
    "own": TransformerConfig(**SHAPE, positions="rotary", norm="rmsnorm", activation="swiglu", bias=False),
}
HEADS = {"bert": ("mlm", "pooler", "nsp"), "roberta": ("mlm", "pooler"), "own": ("mlm", "pooler", "nsp")}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    def save(name: str) -> Path:
        save_model(BERT.create(CONFIGS[name], seed=0, heads=HEADS[name.partition("-")[0]]), tmp_path / name)
        (tmp_path / name / MANIFEST).unlink()  # from now on the folder is checked by structure alone
        return tmp_path / name

    return save


def change(folder: Path, edit: Callable[[Tensors], object]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / WEIGHTS}: ")
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("bert", "cls.predictions.bias"),
        ("bert", "cls.predictions.transform.dense.weight"),
        ("bert", "cls.predictions.transform.LayerNorm.bias"),
        ("bert", "bert.pooler.dense.bias"),
        ("bert", "cls.seq_relationship.weight"),
        ("bert", "bert.embeddings.token_type_embeddings.weight"),
        ("bert-untied", "cls.predictions.decoder.weight"),
        ("roberta", "lm_head.bias"),
        ("roberta", "lm_head.layer_norm.weight"),
        ("roberta", "roberta.pooler.dense.weight"),
        ("roberta", "roberta.embeddings.position_embeddings.weight"),
        ("own", "mlm_head.norm.weight"),
        ("own", "pooler.dense.weight"),
    ],
)
def test_half_a_head_is_refused(name: str, lost: str, saved: Callable[[str], Path]) -> None:
    edit = lambda tensors: tensors.pop(lost)  # noqa: E731
    if name == "own" and lost.startswith("pooler"):
        refused(change(saved(name), edit), "holds a next-sentence head, but lacks the pooler that it stands on")
    else:
        refused(change(saved(name), edit), f"lacks {lost};")


@pytest.mark.parametrize(("name", "pooler"), [("bert", "bert.pooler."), ("own", "pooler.")])
def test_a_next_sentence_head_without_a_pooler_is_refused(name: str, pooler: str, saved: Callable[[str], Path]) -> None:
    def edit(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(pooler)]:
            del tensors[key]

    refused(change(saved(name), edit), "holds a next-sentence head, but lacks the pooler that it stands on")


@pytest.mark.parametrize(
    ("name", "heads", "parts"),
    [
        ("bert", ("mlm", "pooler"), ["cls.seq_relationship."]),
        ("bert", ("mlm",), ["cls.seq_relationship.", "bert.pooler."]),
        ("bert", ("pooler",), ["cls."]),
        ("bert", (), ["cls.", "bert.pooler."]),
        ("roberta", (), ["lm_head.", "roberta.pooler."]),
        ("own", ("mlm",), ["nsp_head.", "pooler."]),
    ],
)
def test_the_heads_are_those_whose_tensors_are_there(
    name: str, heads: tuple, parts: list[str], saved: Callable[[str], Path]
) -> None:
    def edit(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.startswith(tuple(parts))]:
            del tensors[key]

    assert load_model(change(saved(name), edit)).heads == heads


@pytest.mark.parametrize(
    ("name", "foreign"),
    [("bert", "qa_outputs.weight"), ("roberta", "cls.seq_relationship.bias"), ("roberta", "nsp_head.bias")],
)
def test_a_foreign_head_is_refused(name: str, foreign: str, saved: Callable[[str], Path]) -> None:
    folder = change(saved(name), lambda tensors: tensors.update({foreign: torch.ones(2)}))
    refused(folder, f"holds what the model has no place for: {foreign};")


def test_gamma_and_beta_are_old_names_of_weight_and_bias(saved: Callable[[str], Path]) -> None:
    norm = "bert.embeddings.LayerNorm."
    folder = saved("bert")
    model = load_model(folder)
    change(folder, lambda tensors: tensors.update({f"{norm}gamma": tensors.pop(f"{norm}weight") + 1}))
    change(folder, lambda tensors: tensors.update({f"{norm}beta": tensors.pop(f"{norm}bias") + 2}))
    loaded = load_model(folder)
    assert torch.equal(loaded.transformer.norm.weight, model.transformer.norm.weight + 1)
    assert torch.equal(loaded.transformer.norm.bias, model.transformer.norm.bias + 2)
    change(folder, lambda tensors: tensors.update({f"{norm}weight": tensors[f"{norm}gamma"].clone()}))
    refused(folder, f"holds what the model has no place for: {norm}gamma;")


@pytest.mark.parametrize(
    ("name", "second", "first"),
    [
        ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("roberta", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("roberta", "lm_head.decoder.bias", "lm_head.bias"),
        ("own", "mlm_head.decoder.weight", "transformer.tokens.weight"),
    ],
)
def test_second_copies_are_copies(name: str, second: str, first: str, saved: Callable[[str], Path]) -> None:
    folder = saved(name)
    before = load_model(folder).state_dict()
    change(folder, lambda tensors: tensors.update({second: tensors[first].clone()}))
    after = load_model(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    for other in (torch.ones_like, torch.Tensor.double, lambda tensor: tensor[1:].clone()):
        change(folder, lambda tensors, other=other: tensors.update({second: other(tensors[first])}))
        refused(folder, f"{second} is not {first}, though config.json ties them")
    change(folder, lambda tensors: tensors.update({second: tensors.pop(first)}))  # the one name is as good
    assert all(torch.equal(before[key], value) for key, value in load_model(folder).state_dict().items())


def test_of_two_untied_biases_the_one_that_transformers_uses_counts(saved: Callable[[str], Path]) -> None:
    folder = saved("bert-untied")
    assert torch.equal(*(load_file(folder / WEIGHTS)[f"cls.predictions.{name}bias"] for name in ("", "decoder.")))
    change(folder, lambda tensors: tensors["cls.predictions.decoder.bias"].fill_(3))
    assert load_model(folder).mlm_head.bias.eq(3).all()
    change(folder, lambda tensors: tensors.pop("cls.predictions.decoder.bias"))
    assert load_model(folder).mlm_head.bias.eq(0).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_models_give_equal_bytes_and_come_back(name: str, saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved(name)
    loaded = load_model(folder)
    assert loaded.config == CONFIGS[name]
    assert loaded.heads == HEADS[name.partition("-")[0]]
    save_model(loaded, tmp_path / "again")
    assert weights_hash(folder) == weights_hash(tmp_path / "again")
    assert (folder / CONFIG).read_bytes() == (tmp_path / "again" / CONFIG).read_bytes()
    assert "fill-mask" in (folder / "README.md").read_text()


def test_a_bert_cannot_be_told_to_be_causal(saved: Callable[[str], Path]) -> None:
    for name, message in (("own", "holds what the model has no place for: mlm_head"), ("bert", "contradicts")):
        folder = saved(name)
        values = json.loads((folder / CONFIG).read_text())
        values |= {"causal": True} if name == "own" else {"nlpstack": {"causal": True}}
        (folder / CONFIG).write_text(json.dumps(values))
        with pytest.raises(ModelError, match=message):
            load_model(folder)


@pytest.mark.parametrize("kind", [GPT, BERT])
def test_a_published_tokenizer_is_attached_and_saved_again(kind: type, tmp_path: Path) -> None:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", "##b", "##c"]
    config = TransformerConfig(**SHAPE | {"causal": kind is GPT})
    save_model(kind.create(config, seed=0), tmp_path / "vocab")
    (tmp_path / "vocab" / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    loaded = load_model(tmp_path / "vocab")
    assert isinstance(loaded.tokenizer, PublishedTokenizer)
    assert loaded.tokenizer.encode("abc a") == [5, 8, 9, 5]
    save_model(loaded, tmp_path / "again")
    assert load_model(tmp_path / "again").tokenizer.hash == loaded.tokenizer.hash
    values = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert (values["pad_token_id"], values["bos_token_id"]) == (0, loaded.tokenizer.bos_id)
    train_tokenizer(["abc"], TokenizerConfig(kind="char")).save(tmp_path / "vocab")  # ours counts before others
    with pytest.raises(ModelError, match="the tokenizer has"):
        load_model(tmp_path / "vocab")
