"""The command and its function: what is drawn is what the model weighs, and wrong input is one line."""

import base64
import json
import re
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure

from nlpstack import attention as module
from nlpstack import report
from nlpstack.attention import attention, attention_weights
from nlpstack.errors import NlpstackError
from nlpstack.hub import load_model, save_model
from nlpstack.model import GPT, TransformerConfig
from nlpstack.report import AttentionPattern, attention_page, attention_picture, token_label
from nlpstack.tokenizer import TokenizerConfig, train_tokenizer
from tests.tiny import nlpstack

TEXT = "to be\nor <b>not</b> $x$"
LABELS = [{" ": "·", "\n": "\\n"}.get(sign, sign) for sign in TEXT]
LAYERS, HEADS, CONTEXT = 3, 2, 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of characters whose heads have preferences."""
    folder = tmp_path_factory.mktemp("runs") / "gpt"
    tokenizer = train_tokenizer([TEXT], TokenizerConfig(kind="char"))
    shape = TransformerConfig(
        vocab_size=tokenizer.vocab_size, max_seq_len=CONTEXT, dim=32, n_layers=LAYERS, n_heads=HEADS, dropout=0.5
    )
    model = GPT.create(shape, seed=0, tokenizer=tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.dim() == 2 else 1)
    save_model(model, folder)
    return folder


@pytest.fixture
def model(run: Path) -> GPT:
    return load_model(run)


@pytest.fixture
def weights(model: GPT) -> np.ndarray:
    """(L, H, T, T) of TEXT."""
    return attention_weights(model.transformer, torch.tensor(model.tokenizer.encode(TEXT))).numpy()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are turned into PNGs."""
    figures: list[Figure] = []
    plain = report.png
    monkeypatch.setattr(report, "png", lambda figure, **given: (figures.append(figure), plain(figure, **given))[1])
    return figures


def page_data(page: Path) -> dict:
    """What an HTML page holds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def pattern(tokens: list[bytes], weights: np.ndarray | None = None, model: str = "m") -> AttentionPattern:
    n = len(tokens)
    weights = np.full((1, 1, n, n), 1 / n) if weights is None else weights
    return AttentionPattern(weights=weights, layers=[0], heads=[0], tokens=tokens, causal=False, model=model)


def texts(labels: list) -> list[str]:
    return [label.get_text() for label in labels]


# -- pages -----------------------------------------------------------------------------------------------------------


def test_a_page_holds_the_weights_of_every_layer_and_head(run: Path, weights: np.ndarray, tmp_path: Path) -> None:
    result = attention(run, TEXT, tmp_path / "a.html", layer=2, head=1)
    assert (result.layers, result.heads, result.tokens) == ([0, 1, 2], [0, 1], LABELS)
    data = page_data(tmp_path / "a.html")
    assert (data["layers"], data["heads"], data["chosen_layer"], data["chosen_head"]) == (LAYERS, HEADS, 2, 1)
    assert (data["texts"], data["labels"], data["model"]) == (list(TEXT), LABELS, str(run))
    packed = np.frombuffer(zlib.decompress(base64.b64decode(data["weights"])), np.uint8)
    assert np.abs(packed.reshape(weights.shape) / 255 - np.sqrt(weights)).max() <= 0.5 / 255 + 1e-6


def test_a_text_with_tags_cannot_leave_its_place_in_the_page(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!--<b>"
    good, bad = (attention_page(pattern([text.encode()], model=text), layer=0, head=0) for text in ("to be", hostile))
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    data = page_data(tmp_path / "bad.html")
    assert (data["texts"], data["model"]) == ([hostile], hostile)
    for tag in ("<script", "</script", "<!--", "<b>"):
        assert bad.count(tag) == good.count(tag)


def test_a_page_loads_nothing(run: Path, tmp_path: Path) -> None:
    attention(run, TEXT, tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text("utf-8")
    assert """content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">""" in page
    assert not re.search(r"https?:|\ssrc=|\shref=|@import|url\(|innerHTML", page)


def test_a_page_needs_no_matplotlib(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert nlpstack("attention", "--model", run, TEXT, "--out", tmp_path / "a.html").code == 0
    fault = nlpstack("attention", "--model", run, TEXT, "--out", tmp_path / "a.png").fault
    assert fault.endswith(
        "a.png: a .png is drawn by matplotlib: pip install 'nlpstack[report]'; an .html page needs nothing"
    )


# -- pictures --------------------------------------------------------------------------------------------------------


def maps_of(figure: Figure, names: list[str], n_tokens: int) -> list[np.ma.MaskedArray]:
    """The maps (T, T) of a picture, each found below its name."""
    (axes,), (image,) = figure.axes[:1], figure.axes[0].images
    assert texts(axes.texts) == names
    corners = [np.round(np.array(label.xy) + 0.5).astype(int) for label in axes.texts]
    return [image.get_array()[top : top + n_tokens, left : left + n_tokens] for left, top in corners]


def check_maps(figure: Figure, expected: dict[str, np.ndarray]) -> None:
    found = maps_of(figure, list(expected), len(LABELS))
    for shown, wanted in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(shown.filled(0), wanted, atol=1e-6)
        assert np.array_equal(np.ma.getmaskarray(shown), np.triu(np.ones_like(wanted), k=1)), "the future is blank"


def test_one_head_is_one_map_with_its_tokens(
    run: Path, weights: np.ndarray, tmp_path: Path, drawn: list[Figure]
) -> None:
    result = attention(run, TEXT, tmp_path / "a.png", layer=1, head=0)
    assert (result.layers, result.heads) == ([1], [0])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    check_maps(drawn[0], {"layer 1, head 0": weights[1, 0]})
    axes = drawn[0].axes[0]
    assert texts(axes.get_yticklabels()) == texts(axes.get_xticklabels()) == LABELS
    assert not any(label.get_parse_math() for label in axes.get_xticklabels()), "$x$ is no formula"
    assert axes.get_title() == str(run)


@pytest.mark.parametrize(
    ("given", "rows", "columns"), [({"layer": 2}, 1, 2), ({"head": 1}, 2, 2), ({}, 3, 2)], ids=["layer", "head", "all"]
)
def test_several_heads_are_maps_side_by_side_each_with_its_name_and_tokens(
    given: dict, rows: int, columns: int, run: Path, weights: np.ndarray, tmp_path: Path, drawn: list[Figure]
) -> None:
    attention(run, TEXT, tmp_path / "a.png", **given)
    layers, heads = ([given[name]] if name in given else range(n) for name, n in (("layer", 3), ("head", HEADS)))
    check_maps(drawn[0], {f"layer {i}, head {j}": weights[i, j] for i in layers for j in heads})
    axes = drawn[0].axes[0]
    named = LABELS[::2]  # what can be read at three inches a map
    assert texts(axes.get_xticklabels()) == named * columns
    assert texts(axes.get_yticklabels()) == named * rows
    assert axes.get_xlabel() == "token looked at (one in 2 is named)"
    for place, label in enumerate(axes.texts):  # the first token's tick stands at the map's first row and column
        row, column = divmod(place, columns)
        assert axes.get_xticks()[column * len(named)] == label.xy[0] + 0.5
        assert axes.get_yticks()[row * len(named)] == label.xy[1] + 0.5


def test_of_many_tokens_as_many_are_named_as_can_be_read(drawn: list[Figure]) -> None:
    weights = np.zeros((1, 1, 2000, 2000), np.float32)
    weights[0, 0, 1234, 16:18] = 0.75, 0.25
    attention_picture(pattern([b" %d" % number for number in range(2000)], weights))
    axes = drawn[0].axes[0]
    labels = texts(axes.get_yticklabels())
    assert 40 < len(labels) < 100
    assert labels[:2] == ["·0", "·24"]
    assert axes.get_xlabel() == "token looked at (one in 24 is named)"
    shown = axes.images[0].get_array()
    assert shown.shape[0] <= 1800
    assert shown.max() == 0.75, "one large weight among millions is not averaged away"


def test_a_sign_comes_from_whatever_font_has_it_else_it_stands_as_its_code_point(
    drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = [font for font in font_manager.fontManager.ttflist if font.name.startswith("DejaVu Sans")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", bundled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each sign that it draws as a box
        attention_picture(pattern(["a⌒".encode(), "b中".encode()]))
    labels = drawn[0].axes[0].get_yticklabels()
    assert texts(labels) == ["a⌒", "bU+4E2D"]
    assert labels[0].get_fontfamily() == ["DejaVu Sans", "DejaVu Sans Mono"]


@pytest.mark.parametrize(
    ("token", "label"),
    [
        (" the", "·the"),
        ("\n", "\\n"),
        ("\t\x1b", "\\t\\x1b"),
        ("\u200b", "\\u200b"),
        ("ä€<&>中", "ä€<&>中"),
        (b"\xe2\x82", "<0xE2><0x82>"),
        (b"", ""),
    ],
)
def test_tokens_are_written_as_they_are(token: str | bytes, label: str) -> None:
    assert token_label(token.encode() if isinstance(token, str) else token) == label


# -- calls -----------------------------------------------------------------------------------------------------------


def test_a_model_of_the_caller_gives_the_same_and_stays_as_it_is(run: Path, model: GPT, tmp_path: Path) -> None:
    model.train()
    attention(model, TEXT, tmp_path / "a.html")
    attention(run, TEXT, tmp_path / "b.html")
    a, b = (page_data(tmp_path / name) for name in ("a.html", "b.html"))
    assert (a["weights"], a["model"]) == (b["weights"], "the model")
    assert all(part.training for part in model.modules())


def test_dtype_is_that_of_the_weights(run: Path, tmp_path: Path) -> None:
    for name in ("fp32", "bf16"):
        assert (
            nlpstack("attention", "--model", run, TEXT, "--out", tmp_path / f"{name}.html", "--dtype", name).code == 0
        )
    low = attention_weights(
        load_model(run, dtype=torch.bfloat16).transformer, torch.tensor(load_model(run).tokenizer.encode(TEXT))
    )
    packed = base64.b64decode(page_data(tmp_path / "bf16.html")["weights"])
    assert zlib.decompress(packed) == np.rint(np.sqrt(low.numpy()) * 255).astype(np.uint8).tobytes()
    assert packed != base64.b64decode(page_data(tmp_path / "fp32.html")["weights"])


def test_the_command_says_what_it_drew_and_replaces_the_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.PNG"
    out.write_text("old")
    words = ["attention", "--model", run, TEXT, "--out", out]
    done = nlpstack(*words, "--layer", 1, "--json")
    assert done.json == {"out": str(out), "layers": [1], "heads": [0, 1], "tokens": LABELS}
    assert done.err == ""
    assert out.read_bytes().startswith(b"\x89PNG")
    assert nlpstack(*words).out == f"{out}: layers 0 to 2, heads 0 to 1, {len(TEXT)} tokens\n"
    assert nlpstack(*words, "--head", 1, "--layer", 0).out == f"{out}: layer 0, head 1, {len(TEXT)} tokens\n"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.pdf"], "a.pdf: the name must end in .html (a page) or .png (a picture)"),
        (["--out", "no/a.png"], "no/a.png: there is no folder {here}/no; make it first"),
        (["--out", "folder.png"], "folder.png: is a folder; give the name of a file"),
        (["--layer", "3"], "layer 3: {run} has 3 layers, counted from 0 to 2"),
        (["--head", "-1"], "head -1: {run} has 2 heads, counted from 0 to 1"),
        ([TEXT * 2], "the text has 46 tokens, the model's context holds 40 (max_seq_len); shorten it: 'to be"),
        ([""], "the text is empty"),
        (["a\udce4"], "U+DCE4, a lone surrogate"),
        (["--model", "none"], "none: no such file or folder"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words: list[str], message: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    given = dict(zip(words[::2], words[1::2], strict=True)) if len(words) == 2 else {}
    out = tmp_path / given.pop("--out", "a.html")
    text = words[0] if len(words) == 1 else TEXT
    options = [word for pair in ({"--model": str(run)} | given).items() for word in pair]
    done = nlpstack("attention", *options, "--out", out, "--", text)
    assert message.format(run=run, here=tmp_path) in done.fault
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.png"]


def test_a_missing_text_is_a_usage_error(run: Path) -> None:
    assert "Missing argument 'TEXT'" in nlpstack("attention", "--model", run, "--out", "a.html").fault


def test_a_model_that_cannot_be_looked_into_is_refused(
    run: Path, model: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.html"
    with pytest.raises(NlpstackError, match="dtype 'fp8' is unknown; give one of fp32, bf16, fp16"):
        attention(run, TEXT, out, dtype="fp8")
    for given in ({"dtype": "bf16"}, {"device": "cpu"}):
        with pytest.raises(NlpstackError, match="device and dtype are for a model that is read from a folder"):
            attention(model, TEXT, out, **given)
    with torch.no_grad():
        model.transformer.blocks[1].attention.q_proj.weight.fill_(torch.nan)
    with pytest.raises(NlpstackError, match="the model: its attention weights are not finite"):
        attention(model, TEXT, out)
    monkeypatch.setattr(module, "MAX_WEIGHTS", {".html": LAYERS * HEADS * len(TEXT) ** 2 - 1})
    with pytest.raises(NlpstackError, match=r"23 tokens in 3 x 2 heads make 3,174 weights, and a \.html takes 3,173"):
        attention(run, TEXT, out)
    model.tokenizer = None
    with pytest.raises(NlpstackError, match="the model: has no tokenizer"):
        attention(model, TEXT, out)
    assert list(tmp_path.iterdir()) == []
