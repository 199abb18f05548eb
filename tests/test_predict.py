"""Masks are filled as `transformers` fills them, each on its own; what cannot be filled is one line."""

import json
from pathlib import Path

import pytest
import torch

from nlpstack.errors import ConfigError, ModelError
from nlpstack.hub import load_model, save_model
from nlpstack.model import BERT, GPT, TransformerConfig
from nlpstack.predict import fill_mask
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from tests.tiny import nlpstack

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXT = "the cat sat on the mat, and the other cat sat beside the sea; the cats are sitting there"
WORDS = [
    *("the", "cat", "sat", "on", "mat", "and", "other", "beside", "sea", "are", "sit", "there"),
    *(",", ";", ".", "un", "##s", "##ting", "##ly"),
]
SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)


def shaken(model):
    """The model with weights so far apart that no two guesses are nearly equal."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What transformers saves of a BertForMaskedLM with a WordPiece vocabulary, and three ids more than that has."""
    folder = tmp_path_factory.mktemp("published") / "bert"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = transformers.BertConfig(vocab_size=len(pieces) + 3, max_position_embeddings=16, **SIZES)
    shaken(transformers.BertForMaskedLM(config)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a RobertaForMaskedLM, whose pieces begin with the space before a word."""
    folder = tmp_path_factory.mktemp("published") / "roberta"
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", tokenizers.AddedToken("<mask>", lstrip=True)]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        [TEXT] * 9,
        tokenizers.trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    library.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    config = transformers.RobertaConfig(vocab_size=330, max_position_embeddings=34, type_vocab_size=1, **SIZES)
    shaken(transformers.RobertaForMaskedLM(config)).save_pretrained(folder)
    library.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ours, as pretraining makes it."""
    folder = tmp_path_factory.mktemp("runs") / "bert"
    save_model(small_bert(kind="bpe", vocab_size=310), folder / "model")
    return folder


def small_bert(heads=("mlm", "pooler", "nsp"), **values) -> BERT:
    tokenizer = train_tokenizer([TEXT * 9], TokenizerConfig(**values))
    shape = TransformerConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=48, dim=32, n_layers=2, n_heads=2, causal=False, n_segments=2
    )
    return shaken(BERT.create(shape, seed=0, heads=heads, tokenizer=tokenizer))


@pytest.fixture(scope="module")
def gpt() -> GPT:
    tokenizer = train_tokenizer([TEXT], TokenizerConfig(kind="char"))
    shape = TransformerConfig(vocab_size=tokenizer.vocab_size, max_seq_len=48, dim=16, n_layers=1, n_heads=2)
    return GPT.create(shape, seed=0, tokenizer=tokenizer)


@torch.no_grad()
def of_transformers(folder: Path, text: str) -> torch.Tensor:
    """Softmax (M, V) at each mask, by transformers' own tokenizer and model."""
    if (folder / "tokenizer.json").is_file():
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        mask = theirs.convert_tokens_to_ids("<mask>")
    else:
        theirs = transformers.BertTokenizerFast.from_pretrained(folder)
        mask = theirs.mask_token_id
    ids = torch.tensor([theirs(text)["input_ids"]])
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    return model(ids).logits[ids == mask].softmax(dim=-1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bert", "The [MASK] sat on the mat."),
        ("bert", "[MASK] cat sat beside [MASK] [MASK] un[MASK]"),
        ("roberta", "the <mask> sat on the mat"),
        ("roberta", "<mask> cat  \t<mask> <mask>,and<mask> there "),
    ],
)
def test_guesses_are_those_of_transformers(name: str, text: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    wanted = of_transformers(folder, text)
    vocab_size = load_model(folder).tokenizer.vocab_size
    guesses = fill_mask(folder, text, top_k=7)
    assert [one.mask for one in guesses] == [mask for mask in range(len(wanted)) for _ in range(7)]
    for mask, row in enumerate(wanted):
        best, ids = row[:vocab_size].topk(7)
        own = [one for one in guesses if one.mask == mask]
        assert [one.id for one in own] == ids.tolist()
        torch.testing.assert_close(torch.tensor([one.probability for one in own]), best, atol=1e-5, rtol=1e-4)


def test_probabilities_are_shares_of_the_whole_vocabulary(bert: Path) -> None:
    model = load_model(bert)
    guesses = fill_mask(model, "the [MASK] sat", top_k=model.tokenizer.vocab_size)
    rounded_up = of_transformers(bert, "the [MASK] sat")[0, model.tokenizer.vocab_size :].sum()
    assert rounded_up > 1e-4
    assert sum(one.probability for one in guesses) == pytest.approx(1 - float(rounded_up), abs=1e-5)
    assert sorted(one.id for one in guesses) == list(range(model.tokenizer.vocab_size))


def test_each_mask_is_filled_with_the_others_still_hidden(own: Path) -> None:
    model = load_model(own)
    both = fill_mask(model, "the [MASK] sat on the [MASK] there", top_k=3)
    assert [one.mask for one in both] == [0, 0, 0, 1, 1, 1]
    assert both[0].text.endswith(" sat on the[MASK] there")
    assert both[3].text.startswith("the[MASK] sat on the")


def test_a_word_that_carries_its_space_is_hidden_with_it_and_shown_without(own: Path) -> None:
    model = load_model(own)
    assert fill_mask(model, "the  [MASK] sat") == fill_mask(model, "the[MASK] sat")
    every = {one.id: one for one in fill_mask(model, "the [MASK] sat", top_k=model.tokenizer.vocab_size)}
    spaced = [token for token in every if model.tokenizer.token_bytes(token) == b" cat"]
    bare = [token for token in every if model.tokenizer.token_bytes(token) == b"s"]
    assert [(every[token].token, every[token].text) for token in spaced] == [("cat", "the cat sat")]
    assert {(every[token].token, every[token].text) for token in bare} == {("s", "thes sat")}
    first = {one.id: one for one in fill_mask(model, "[MASK] sat", top_k=model.tokenizer.vocab_size)}
    assert first[spaced[0]].text == "cat sat"


def test_where_a_space_is_a_token_of_its_own_it_stays_before_a_mask() -> None:
    model = small_bert(kind="char")
    spaced, bare = (fill_mask(model, text) for text in ("the [MASK]at", "the[MASK]at"))
    assert [one.probability for one in spaced] != [one.probability for one in bare]
    assert all(one.text == f"the {one.token}at" for one in spaced if len(one.token) == 1 and one.token != " ")


def test_pieces_and_special_tokens_are_shown_as_the_tokenizer_spells_them(bert: Path) -> None:
    every = {one.token: one for one in fill_mask(bert, "the un [MASK] sat", top_k=24)}
    assert set(every) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS}
    assert every["cat"].text == "the un cat sat"
    assert every["##ly"].text == "the unly sat"
    assert every["[SEP]"].text == "the un [SEP] sat"


def test_json_is_one_list_and_plain_output_a_line_a_guess(bert: Path) -> None:
    words = ["fill-mask", "--model", bert, "the [MASK] sat [MASK]", "--top-k", 3]
    guesses = fill_mask(bert, "the [MASK] sat [MASK]", top_k=3)
    done = nlpstack(*words, "--json")
    assert done.json == [
        {"mask": one.mask, "token": one.token, "probability": one.probability, "id": one.id} for one in guesses
    ]
    assert len(done.json) == 6
    lines = nlpstack(*words).out.split("\n")
    assert (lines[3], lines[7:]) == ("", [""]), "the masks are set apart"
    for line, one in zip(lines[:3] + lines[4:7], guesses, strict=True):
        probability, token, text = line.split(maxsplit=2)
        assert (float(probability), token, text) == (round(one.probability, 4), one.token, one.text)
    default = nlpstack("fill-mask", "--model", bert, "the [MASK] sat", "--json").json
    assert len(default) == 5


def test_a_model_of_the_caller_gives_the_same_and_stays_as_it_is(own: Path) -> None:
    model = load_model(own).train()
    assert fill_mask(model, "the [MASK] sat") == fill_mask(own, "the [MASK] sat")
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("bert", "the cat", "the text has no mask: write [MASK] where a token is to be guessed"),
        ("bert", "the <mask>", "is to be guessed; this model's mask is [MASK], not <mask>"),
        ("bert", "the [mask]", "is to be guessed; this model's mask is [MASK], not [mask]"),
        (
            "roberta",
            "the [MASK]",
            "write <mask> where a token is to be guessed; this model's mask is <mask>, not [MASK",
        ),
        (
            "bert",
            "the [MASK]" + " cat" * 13,
            "the text has 17 tokens with the special ones around it, the model's cont",
        ),
        ("bert", "\udce4 [MASK]", "U+DCE4, a lone surrogate"),
    ],
)
def test_a_text_that_cannot_be_filled_is_one_line(
    name: str, text: str, message: str, request: pytest.FixtureRequest
) -> None:
    done = nlpstack("fill-mask", "--model", request.getfixturevalue(name), text)
    assert message in done.fault
    assert done.err.count("\n") == 1
    if "not" not in message:
        assert "this model's mask" not in done.fault


def test_a_text_that_fills_the_context_is_taken(bert: Path) -> None:
    assert len(fill_mask(bert, "the [MASK]" + " cat" * 12)) == 5


def test_a_model_that_cannot_guess_is_refused(bert: Path, gpt: GPT, tmp_path: Path) -> None:
    save_model(gpt, tmp_path / "gpt")
    fault = nlpstack("fill-mask", "--model", tmp_path / "gpt", "the [MASK]").fault
    assert f"{tmp_path / 'gpt'}: a GPT, which sees only what stands before a token; fill-mask takes a BERT" in fault
    with pytest.raises(ModelError, match="the model: has no masked-token head"):
        fill_mask(small_bert(heads=("pooler",), kind="char"), "the [MASK]")
    model = load_model(bert)
    with pytest.raises(ConfigError, match="device and dtype are for a model that is read from a folder"):
        fill_mask(model, "the [MASK]", device="cpu")
    for top_k in (0, model.tokenizer.vocab_size + 1):
        with pytest.raises(ConfigError, match=f"top_k={top_k}: must be at least 1, and at most 24"):
            fill_mask(model, "the [MASK]", top_k=top_k)
    model.tokenizer.mask_id = None
    with pytest.raises(ModelError, match="the model: its tokenizer has no mask token"):
        fill_mask(model, "the [MASK]")
    model.tokenizer = None
    with pytest.raises(ModelError, match="the model: has no tokenizer"):
        fill_mask(model, "the [MASK]")
    broken = load_model(bert)
    with torch.no_grad():
        broken.mlm_head.dense.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="the model: its logits are not finite"):
        fill_mask(broken, "the [MASK]")


def test_with_quiet_and_json_only_the_value_is_written(own: Path) -> None:
    out = nlpstack("fill-mask", "--model", own, "the [MASK]", "--json", "--top-k", 3, "--quiet")
    assert [set(one) for one in json.loads(out.out)] == [{"mask", "token", "probability", "id"}] * 3
    assert out.err == ""
