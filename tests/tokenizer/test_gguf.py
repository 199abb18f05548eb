"""Tokenizers of GGUF files give the ids of `transformers`, of SentencePiece and of those they came from."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece as spm
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nlpstack.errors import ModelError
from nlpstack.hub import load_model, save_model
from nlpstack.samples import sample
from nlpstack.tokenizer.published import PublishedTokenizer, gguf_files
from tests.gguf_files import VOCAB, Parts, byte_bpe, parts, random_model, save
from tests.tokenizer.test_published import TEXTS

CHAT = "{% for one in messages %}<|user|>{{ one.content }}{% endfor %}"
any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the sea, 1234'\n\u2581<s>\u00e9\u65e5"))
exhaustive = settings(deadline=None, derandomize=True, max_examples=100)


class Opened:
    """A tokenizer as we read it from metadata, and as transformers reads it from a file of nothing else."""

    def __init__(self, folder: Path, said: dict[str, Any], architecture: str = "llama") -> None:
        self.said = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
        self.said |= {"general.architecture": architecture}
        shape = {f"{architecture}.block_count": 1} | {key: value for key, value in self.said.items() if "ggml" in key}
        file = save(folder / "tokenizer.gguf", Parts(shape, {}), architecture)
        self.ours = PublishedTokenizer(file, gguf_files(self.said, file))
        self.theirs = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
        self.theirs.split_special_tokens = True

    def check(self, text: str) -> None:
        ids = self.theirs.encode(text, add_special_tokens=False)
        assert self.ours.encode(text) == ids, repr(text)
        assert self.ours.decode(ids) == self.theirs.decode(ids, clean_up_tokenization_spaces=False), repr(text)


def gpt2_pieces(folder: Path) -> tuple[dict[str, int], list[str]]:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    return vocabulary, (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]


def gpt2_said(vocabulary: dict[str, int], merges: list[str], n_merges: int) -> dict[str, Any]:
    """GPT-2's tokenizer without its last merges: each makes the next piece."""
    pieces, end = [*list(vocabulary)[: 256 + n_merges], "<|endoftext|>"], 256 + n_merges
    said = {"model": "gpt2", "pre": "gpt-2", "tokens": pieces, "merges": merges[:n_merges]}
    return said | {"token_type": [1] * end + [3], "bos_token_id": end, "eos_token_id": end}


@pytest.fixture(scope="module")
def whole(shared_data: Path) -> dict[str, Any]:
    vocabulary, merges = gpt2_pieces(shared_data / "tokenizers" / "gpt2")
    said = gpt2_said(vocabulary, merges, len(merges))
    return {f"tokenizer.ggml.{key}": value for key, value in said.items()} | {"general.architecture": "gpt2"}


@pytest.fixture(scope="module")
def cut(shared_data: Path) -> dict[str, Any]:
    """Little, since transformers takes long to read it."""
    return gpt2_said(*gpt2_pieces(shared_data / "tokenizers" / "gpt2"), 3000)


@pytest.fixture(scope="module")
def gpt2(cut: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("gpt2"), cut, "gpt2")


@pytest.fixture(scope="module")
def llama3(cut: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("llama3"), cut | {"pre": "llama-bpe"})


@pytest.fixture(scope="module")
def library(whole: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer itself."""
    vocabulary = {piece: number for number, piece in enumerate(whole["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in whole["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


def read(said: dict[str, Any]) -> PublishedTokenizer:
    return PublishedTokenizer(Path("x.gguf"), gguf_files(said, Path("x.gguf")))


@pytest.fixture(scope="module")
def processor() -> spm.SentencePieceProcessor:
    """A SentencePiece model as Llama's: merges, bytes for what has no piece, a space before the text."""
    text, model = sample("shakespeare").read_text(encoding="utf-8")[:60_000], io.BytesIO()
    spm.SentencePieceTrainer.Train(
        sentence_iterator=iter(text.split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["<think>"],
        minloglevel=2,
    )
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


def llama_said(processor: spm.SentencePieceProcessor) -> dict[str, Any]:
    kinds = [1] * processor.GetPieceSize()
    for kind, test in ((2, "IsUnknown"), (3, "IsControl"), (5, "IsUnused"), (6, "IsByte")):
        for token in range(len(kinds)):
            kinds[token] = kind if getattr(processor, test)(token) else kinds[token]
    kinds[processor.PieceToId("<think>")] = 4
    ids = range(len(kinds))
    return {
        **{"model": "llama", "pre": "default", "tokens": [processor.IdToPiece(token) for token in ids]},
        **{"scores": [float(processor.GetScore(token)) for token in ids], "token_type": kinds},
        **{"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    }


@pytest.fixture(scope="module")
def llama(processor: spm.SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("llama"), llama_said(processor))


@pytest.mark.parametrize("text", TEXTS)
def test_tricky_texts_get_the_ids_of_transformers(gpt2: Opened, llama: Opened, text: str) -> None:
    gpt2.check(text)
    llama.check(text)


@given(text=any_text)
@exhaustive
def test_any_text_gets_the_ids_of_transformers(gpt2: Opened, llama3: Opened, llama: Opened, text: str) -> None:
    """Transformers does not ignore merges where a word is a piece, as Llama 3 does; GPT-2's pieces all come of some."""
    for opened in (gpt2, llama3, llama):
        opened.check(text)


def test_any_text_gets_the_ids_of_the_tokenizer_it_came_from(
    whole: dict[str, Any], library: tokenizers.Tokenizer
) -> None:
    steps = tokenizers.pre_tokenizers
    gpt2, smollm = read(whole), read(whole | {"tokenizer.ggml.pre": "smollm", "general.architecture": "llama"})
    digits = tokenizers.Tokenizer(library.model)
    digits.pre_tokenizer = steps.Sequence([steps.Digits(individual_digits=True), steps.ByteLevel(False)])

    @given(text=any_text)
    @exhaustive
    def check(text: str) -> None:
        assert gpt2.encode(text) == library.encode(text).ids
        assert smollm.encode(text) == digits.encode(text).ids
        assert gpt2.decode(gpt2.encode(text)) == smollm.decode(smollm.encode(text)) == text

    check()
    assert read({**whole, "tokenizer.ggml.pre": "gpt-2"}).encode("In 1984") != smollm.encode("In 1984")


@given(text=st.text(st.sampled_from("the sea ROMEO:\n,.'aeiou12\u00e9\u65e5"), min_size=1))
@exhaustive
def test_plain_text_gets_the_ids_of_sentencepiece(
    llama: Opened, processor: spm.SentencePieceProcessor, text: str
) -> None:
    """Before a text that begins with a space SentencePiece puts one more; transformers' Llama does not."""
    text = text.lstrip(" ")
    assert llama.ours.encode(text) == processor.Encode(text), repr(text)
    assert llama.ours.decode(llama.ours.encode(text)) == text


def test_whole_lines_get_the_ids_of_sentencepiece(llama: Opened, processor: spm.SentencePieceProcessor) -> None:
    for line in sample("shakespeare").read_text(encoding="utf-8")[60_000:90_000].split("\n"):
        line = line.lstrip(" ")
        assert llama.ours.encode(line) == processor.Encode(line), line


def test_no_space_comes_before_the_text_if_the_file_says_so(processor: spm.SentencePieceProcessor) -> None:
    said = {f"tokenizer.ggml.{key}": value for key, value in llama_said(processor).items()}
    usual, bare = read(said), read(said | {"tokenizer.ggml.add_space_prefix": False})
    for text in ("the sea", " the sea", "", "\u65e5"):
        assert bare.decode(bare.encode(text)) == text
    assert bare.encode(" the sea") == usual.encode("the sea") != bare.encode("the sea")


def with_words(pre: str, **more: Any) -> PublishedTokenizer:
    said = byte_bpe() | {"tokenizer.ggml.pre": pre} | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return read(said)


def spelled(tokenizer: PublishedTokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def test_smollm_takes_digits_one_by_one() -> None:
    assert spelled(with_words("gpt-2"), "the 12") == ["the", " ", "12"]
    assert spelled(with_words("smollm"), "the 12") == ["the", " ", "1", "2"]


def test_roles_and_kinds_of_tokens(gpt2: Opened, llama: Opened) -> None:
    ours = gpt2.ours
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.unk_id, ours.vocab_size) == (3256, 3256, None, None, 3257)
    assert ours.special_ids == {3256}
    assert ours.decode([3256, 383]) == " The"
    ours = llama.ours
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (0, 1, 2, None, 600)
    assert ours.special_ids == {0, 1, 2}
    thought = llama.said["tokenizer.ggml.tokens"].index("<think>")
    assert thought in ours.encode("so <think>it is")
    assert not {1, 2} & set(ours.encode("a <s>b</s> <unk>"))
    padded = with_words("gpt-2", padding_token_id=3, unknown_token_id=VOCAB - 1)
    assert (padded.pad_id, padded.unk_id) == (3, VOCAB - 1)
    odd = with_words("gpt-2", bos_token_id=2**32 - 1, eos_token_id=-1, padding_token_id="x")
    assert (odd.bos_id, odd.eos_id, odd.pad_id) == (VOCAB - 1, VOCAB - 1, None)


def test_a_piece_that_could_be_made_in_too_many_ways_is_refused(processor: spm.SentencePieceProcessor) -> None:
    said = {f"tokenizer.ggml.{key}": value for key, value in llama_said(processor).items()}
    said["tokenizer.ggml.tokens"][-1] = "x" * 129
    with pytest.raises(ModelError, match=r"x\.gguf: a piece of 129 characters is not supported; at most 128 are"):
        read(said)


def test_an_unknown_piece_is_found_by_its_kind(processor: spm.SentencePieceProcessor) -> None:
    said = {f"tokenizer.ggml.{key}": value for key, value in llama_said(processor).items()}
    said = {key: value for key, value in said.items() if not key.endswith("_id")}
    ours = read(said)
    assert (ours.unk_id, ours.bos_id, ours.eos_id) == (0, 1, 2)


@pytest.mark.parametrize("name", ["gpt2", "llama", "smollm"])
def test_the_folder_that_is_saved_gives_the_same_ids(
    name: str, processor: spm.SentencePieceProcessor, tmp_path: Path
) -> None:
    theirs = random_model("gpt2" if name == "gpt2" else "llama", tied=True)
    made = parts(theirs)
    if name == "smollm":
        made.values["tokenizer.ggml.pre"] = "smollm"
    if name == "llama":
        bare = {key: value for key, value in made.values.items() if "tokenizer" not in key}
        said = {f"tokenizer.ggml.{key}": value for key, value in llama_said(processor).items()}
        rows = np.resize(made.tensors["token_embd.weight"][0], (600, 64))
        made = Parts(bare | said | {"llama.vocab_size": 600}, made.tensors)
        made.tensors["token_embd.weight"] = rows, made.tensors["token_embd.weight"][1]
    made.values["tokenizer.chat_template"] = CHAT
    if name == "smollm":
        made.values["tokenizer.ggml.add_bos_token"] = True
    model = load_model(save(tmp_path / "model.gguf", made))
    save_model(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    opened = AutoTokenizer.from_pretrained(tmp_path / "saved")
    ids = [opened.bos_token_id, opened.eos_token_id, opened.pad_token_id]
    assert ids == [model.tokenizer.bos_id, model.tokenizer.eos_id, model.tokenizer.pad_id]
    assert opened.encode("the")[:-1] == ([] if name == "gpt2" else [model.tokenizer.bos_id])
    assert model.tokenizer.chat_template == again.tokenizer.chat_template == opened.chat_template == CHAT
    assert opened.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "<|user|>x"
    opened.split_special_tokens = True
    for text in [*TEXTS, "the 12 hands 345"]:
        ids = model.tokenizer.encode(text)
        assert again.tokenizer.encode(text) == ids
        assert opened.encode(text, add_special_tokens=False) == ids, text
        assert opened.decode(ids) == model.tokenizer.decode(ids)
    save_model(again, tmp_path / "twice")
    names = [path.name for path in (tmp_path / "saved").iterdir()]
    assert all((tmp_path / "twice" / one).read_bytes() == (tmp_path / "saved" / one).read_bytes() for one in names)
