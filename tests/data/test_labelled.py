"""Every labelled file gives its examples, and every fault its file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nlpstack.data.labelled import (
    PromptExample,
    TaggedExample,
    TextExample,
    read_labelled,
    read_prompts,
    read_tagged,
    read_texts,
)
from nlpstack.errors import DataError

READERS: dict[str, Callable[..., list[Any]]] = {
    "classification": read_texts,
    "ner": read_tagged,
    "generation": read_prompts,
}


def write(path: Path, text: str | list[Any]) -> Path:
    """The text, or a list's JSON lines, packed as the file's suffix says."""
    if isinstance(text, list):
        text = "".join(row + "\n" if isinstance(row, str) else json.dumps(row) + "\n" for row in text)
    data = text.encode("utf-8", "surrogatepass")
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


def refused(action: Callable[[], object], where: str, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{where}: "), message
    for part in parts:
        assert part in message, message


def labels(path: Path, **options: bool) -> list[Any]:
    return [example.label for example in read_texts(path, lambda _: None, **options)]


# -- classification --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.tsv", "a.TSV.gz", "a.tsv.zst"])
def test_a_quote_in_a_tsv_is_itself(tmp_path: Path, name: str, end: str) -> None:
    path = tmp_path / name.lower()
    write(path, end.join(["text\tid\tlabel", 'say "hi"\t1\tgreeting', '"\t2\tquote', "", "a, b \\ \u2028\t3\tother"]))
    assert read_texts(path, pytest.fail) == [
        TextExample(f"{path}:2", 'say "hi"', None, "greeting"),
        TextExample(f"{path}:3", '"', None, "quote"),
        TextExample(f"{path}:5", "a, b \\ \u2028", None, "other"),
    ]


def test_a_csv_is_quoted_and_a_row_is_where_it_begins(tmp_path: Path) -> None:
    rows = ["text_a,text_b,label", '"one,\r\ntwo","say ""hi""",yes', "", "b,c,no", '"d', 'd",e,"no"']
    path = write(tmp_path / "a.csv", "\r\n".join(rows) + "\r\n")
    assert read_texts(path, pytest.fail) == [
        TextExample(f"{path}:2", "one,\ntwo", 'say "hi"', "yes"),
        TextExample(f"{path}:5", "b", "c", "no"),
        TextExample(f"{path}:6", "d\nd", "e", "no"),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_hold_texts_or_pairs(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"text": "é", "label": "x", "more": [1]}, "", {"label": "y", "text": "\U0001f600"}])
    assert read_texts(path, pytest.fail) == [
        TextExample(f"{path}:1", "é", None, "x"),
        TextExample(f"{path}:3", "\U0001f600", None, "y"),
    ]
    path = write(tmp_path / name, [{"text_a": "a", "text_b": "b", "label": "x"}])
    assert read_texts(path, pytest.fail) == [TextExample(f"{path}:1", "a", "b", "x")]


@pytest.mark.parametrize(
    ("given_labels", "wanted"),
    [
        (["a", "b"], ["a", "b"]),
        ([1, 0], ["1", "0"]),
        ([True, False], ["true", "false"]),
        ([10**400, 2], None),
        ([1, 0.5], [1.0, 0.5]),
        ([["a", "b"], [], ["c"]], [("a", "b"), (), ("c",)]),
    ],
)
def test_the_kind_of_json_labels_is_that_of_all(
    tmp_path: Path, given_labels: list[Any], wanted: list[Any] | None
) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "t", "label": label} for label in given_labels])
    if wanted is None:
        refused(lambda: labels(path), f"{path}:1", "must be finite")
    else:
        found = labels(path)
        assert found == wanted
        assert [type(label) for label in found] == [type(label) for label in wanted]


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
@pytest.mark.parametrize(
    ("given_labels", "wanted"),
    [
        (["1", "0"], ["1", "0"]),
        (["1", "x", "1_0"], ["1", "x", "1_0"]),
        (["1", "-0.5", "+2.", ".5"], [1.0, -0.5, 2.0, 0.5]),
        (["1", "2e3", "3E-1"], [1.0, 2000.0, 0.3]),
        (["v1.0", "1.2.3"], ["v1.0", "1.2.3"]),
        (["٣", "1"], ["٣", "1"]),
    ],
)
def test_the_kind_of_a_tables_labels_is_that_of_all(
    tmp_path: Path, suffix: str, given_labels: list[str], wanted: list[Any]
) -> None:
    part = "\t" if suffix == ".tsv" else ","
    path = write(tmp_path / f"a{suffix}", "\n".join([f"text{part}label", *(f"t{part}{x}" for x in given_labels)]))
    found = labels(path)
    assert found == wanted
    assert [type(label) for label in found] == [type(label) for label in wanted]


def test_a_score_is_a_number_in_place_of_a_label(tmp_path: Path) -> None:
    for path in (
        write(tmp_path / "a.jsonl", [{"text": "t", "score": 3}, {"text": "u", "score": 4}]),
        write(tmp_path / "a.tsv", "score\ttext\n3\tt\n4\tu\n"),
    ):
        notes: list[str] = []
        found = [example.label for example in read_texts(path, notes.append)]
        assert found == [3.0, 4.0]
        assert set(map(type, found)) == {float}
        assert notes == [f"{path}: has no 'label'; its 'score' is read as the label, a number"]
    path = write(tmp_path / "b.tsv", "text\tscore\tlabel\nt\t1\tx\n")
    assert labels(path) == ["x"]


def test_labels_may_be_missing_only_where_that_is_said(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.tsv", "text\nt\n"),
        write(tmp_path / "a.csv", "text,more\nt,\n"),
        write(tmp_path / "a.jsonl", [{"text": "t"}]),
    ]
    for path in paths:
        assert labels(path, labelled=False) == [None]
        refused(lambda path=path: labels(path), f"{path}:1", "needs one 'label', found 'text'")
    assert labels(write(tmp_path / "b.tsv", "text\tlabel\nt\tx\n"), labelled=False) == ["x"]
    path = write(tmp_path / "b.jsonl", [{"text": "t", "label": "x"}, {"text": "u"}])
    refused(lambda: labels(path, labelled=False), f"{path}:2", "'label' must be", "is missing")


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        (
            "txt\tlabel\na\tb\n",
            1,
            ["needs one 'text', found 'txt', 'label'; wanted: text (or text_a, text_b) and label"],
        ),
        ("text,label\na,b\n", 1, ["needs one 'text', found 'text,label'"]),
        ("text\ttext\tlabel\na\tb\tc\n", 1, ["needs one 'text'"]),
        ("text_a\tlabel\na\tb\n", 1, ["'text'"]),
        ("text\tlabel\na\n", 2, ["expected 2 columns, as in the header, found 1"]),
        ("text\tlabel\na\tb\tc\n", 2, ["expected 2 columns", "found 3"]),
        ("text\tlabel\na\tb\n \tb\n", 3, ["'text' must be a text", "found ' '"]),
        ("text_a\ttext_b\tlabel\na\t\tb\n", 2, ["'text_b' must be a text"]),
        ("text\tlabel\na\t\n", 2, ["'label' must be a class name", "found ''"]),
        ("text\tlabel\na\t1.5\nb\tnan\n", 3, ["'label' must be finite, found 'nan'"]),
        ("text\tlabel\na\t1\nb\tNaN\n", 3, ["must be finite"]),
        ("text\tlabel\na\t1\nb\t-inf\n", 3, ["must be finite"]),
        ("text\tlabel\na\t1e999\n", 2, ["must be finite"]),
        ("text\tlabel\na\t1.5\nb\t2\nc\tgood\n", 4, ["'label' must be a number, as before, found 'good'"]),
        ("text\tlabel\na\tgood\nb\t1.5\n", 3, ["'label' must be a string, as before, found '1.5'"]),
        ("text\tscore\na\t1\nb\tgood\n", 3, ["'score' must be a number, found 'good'"]),
    ],
)
def test_a_fault_in_a_table_is_named_with_its_line(tmp_path: Path, text: str, line: int, parts: list[str]) -> None:
    path = write(tmp_path / "a.tsv", text)
    refused(lambda: labels(path), f"{path}:{line}", *parts)


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ('text,label\n"a,b\nc,d\n', 2, "cannot be read as a row"),
        ('text,label\n"a\nb",x\n"c"d,y\n', 4, "cannot be read as a row"),
        ('text,label\n"a\nb",x\nc\n', 4, "found 1"),
    ],
)
def test_a_fault_in_a_csv_is_named_with_the_line_its_row_begins_in(
    tmp_path: Path, text: str, line: int, part: str
) -> None:
    path = write(tmp_path / "a.csv", text)
    refused(lambda: labels(path), f"{path}:{line}", part)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ('{"text": "b", "label": 1}', "'label' must be a string, as before, found 1"),
        ('{"text": "b", "label": ["x"]}', "'label' must be a string, as before"),
        ('{"text": "b", "label": true}', "'label' must be a string, as before"),
        ('{"text": "b", "label": null}', "'label' must be a class name, a number or a list of class names, found None"),
        ('{"text": "b", "label": [1]}', "'label' must be a class name"),
        ('{"text": "b", "label": {}}', "'label' must be a class name"),
        ('{"text": "b", "label": " "}', "'label' must be a class name"),
        ('{"text": "b", "label": NaN}', "'label' must be a string"),
        ('{"text": "b"}', "'label' must be a class name, a number or a list of class names, but is missing"),
        ('{"label": "b"}', "'text' must be a text, neither empty nor with lone surrogates, but is missing"),
        ('{"text": 3, "label": "b"}', "'text' must be a text"),
        ('{"text": "", "label": "b"}', "'text' must be a text"),
        ('{"text": "a\\ud800", "label": "b"}', "'text' must be a text"),
        ('{"text": "b", "label": "\\ud800"}', "'label' must be a class name"),
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_fault_in_json_lines_is_named_with_its_line(tmp_path: Path, row: str, part: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, "", row])
    refused(lambda: labels(path), f"{path}:3", part)


def test_numbers_must_be_finite(tmp_path: Path) -> None:
    for spelled in ("NaN", "Infinity", "1e999", "1" + "0" * 400):
        path = write(tmp_path / "a.jsonl", [{"text": "a", "label": 0.5}, f'{{"text": "b", "label": {spelled}}}'])
        refused(lambda path=path: labels(path), f"{path}:2", "must be finite")


# -- named entities --------------------------------------------------------------------------------------------------

CONLL = "-DOCSTART- -X- O\n\n\nEU NNP B-ORG\nrejects  VBZ   O \n\n#\tX\tI-LOC\n\n-DOCSTART-\n\na b\tX\tI-LOC"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.bio.gz", "a.iob", "a.iob2.zst"])
def test_the_sentences_of_a_conll_file_are_read(tmp_path: Path, name: str, end: str) -> None:
    path = write(tmp_path / name, CONLL.replace("B-ORG", "I-ORG").replace("\n", end))
    notes: list[str] = []
    assert read_tagged(path, notes.append) == [
        TaggedExample(f"{path}:4", ("EU", "rejects"), ("B-ORG", "O")),
        TaggedExample(f"{path}:7", ("#",), ("B-LOC",)),
        TaggedExample(f"{path}:11", ("a b",), ("B-LOC",)),
    ]
    assert notes == [
        f"{path}: 2 -DOCSTART- lines are skipped",
        f"{path}: its tags are IOB1; they are converted to IOB2",
    ]


def test_sentences_as_json_lines_are_read(tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["S-X", "O"]}, "", {"tokens": ["c", "d"], "tags": ["B-X", "E-X"], "id": 1}]
    path = write(tmp_path / "a.jsonl", rows)
    notes: list[str] = []
    assert read_tagged(path, notes.append) == [
        TaggedExample(f"{path}:1", ("a", "b"), ("B-X", "O")),
        TaggedExample(f"{path}:3", ("c", "d"), ("B-X", "I-X")),
    ]
    assert notes == [f"{path}: its tags are BIOES; they are converted to IOB2"]


def test_tags_may_be_missing_only_where_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "a\nb\n\nc\n")
    wanted = [TaggedExample(f"{path}:1", ("a", "b"), None), TaggedExample(f"{path}:4", ("c",), None)]
    assert read_tagged(path, pytest.fail, labelled=False) == wanted
    refused(lambda: read_tagged(path, pytest.fail), f"{path}:1", "expected 'word<TAB>tag', got 'a'")
    path = write(tmp_path / "a.jsonl", [{"tokens": ["a"]}])
    assert read_tagged(path, pytest.fail, labelled=False) == [TaggedExample(f"{path}:1", ("a",), None)]
    refused(lambda: read_tagged(path, pytest.fail), f"{path}:1", "'tags' must be a list of texts", "is missing")
    path = write(tmp_path / "b.conll", "a\tO\n")
    assert read_tagged(path, pytest.fail, labelled=False)[0].tags == ("O",)


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a\tO\n\nb\n", 3, "expected 'word<TAB>tag', got 'b'"),
        ("a\tO\n# b\n", 2, "tag 'b'"),
        ("a\tO\n#\n", 2, "expected 'word<TAB>tag', got '#'"),
        ("a\tO\n\tO\n", 2, "expected 'word<TAB>tag'"),
        ("a X O\nb O\n", 2, "expected 'word<TAB>tag' in 3 columns, got 'b', 'O'"),
        ("a\tO\n\nb\tO\nc\tQ-per\n", 4, "malformed tag 'Q-per'"),
        ("a\tB\n", 1, "malformed tag 'B'"),
        ("a\t\n", 1, "malformed tag ''"),
        ("a\tB-X\n\n-DOCSTART- O\n\nb\tO\nc\tI-X\nd\tO", 6, "'I-X' after 'O' in a sentence fits no scheme"),
    ],
)
def test_a_fault_in_a_conll_file_is_named_with_its_line(tmp_path: Path, text: str, line: int, part: str) -> None:
    path = write(tmp_path / "a.conll.gz", text)
    refused(lambda: read_tagged(path, lambda _: None), f"{path}:{line}", part)


def test_a_file_without_tags_holds_no_line_with_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "a\nb\tO\n")
    refused(lambda: read_tagged(path, pytest.fail, labelled=False), f"{path}:2", "expected one word, got 'b', 'O'")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"tokens": ["a"], "tags": ["O", "O"]}, "1 tokens, but 2 tags"),
        ({"tokens": [], "tags": []}, "'tokens' must be a list of texts"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "'tokens' must be a list of texts, none of them empty"),
        ({"tokens": "ab", "tags": ["O", "O"]}, "'tokens' must be a list of texts"),
        ({"tokens": ["a"], "tags": [0]}, "'tags' must be a list of texts"),
        ({"tokens": ["a"], "tags": ["X"]}, "malformed tag 'X'"),
        ({"tokens": ["a"]}, "'tags' must be"),
    ],
)
def test_a_fault_in_a_row_of_tokens_is_named_with_its_line(tmp_path: Path, row: object, part: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, row])
    for labelled in (True, False):
        refused(lambda labelled=labelled: read_tagged(path, pytest.fail, labelled=labelled), f"{path}:2", part)


# -- generation ------------------------------------------------------------------------------------------------------


def test_prompts_come_with_completions_references_or_both(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "c", "more": 1},
        {"source": "p", "target": "c"},
        {"prompt": "p", "references": ["r", "s"]},
        {"prompt": "p", "completion": "c", "references": ["r"], "source": 5},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello?"},
                {"role": "assistant", "content": "Hi."},
            ]
        },
    ]
    path = write(tmp_path / "a.jsonl.gz", rows)
    talk = (("system", "Be brief."), ("user", "Hello?"), ("assistant", "Hi."))
    assert read_prompts(path, pytest.fail) == [
        PromptExample(f"{path}:1", "p", "c", ("c",)),
        PromptExample(f"{path}:2", "p", "c", ("c",)),
        PromptExample(f"{path}:3", "p", None, ("r", "s")),
        PromptExample(f"{path}:4", "p", "c", ("r",)),
        PromptExample(f"{path}:5", "system: Be brief.\nuser: Hello?\nassistant:", "Hi.", ("Hi.",), talk),
    ]


def test_a_prompt_may_stand_alone_only_where_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p"}, {"messages": [{"role": "user", "content": "Hello?"}]}])
    assert read_prompts(path, pytest.fail, labelled=False) == [
        PromptExample(f"{path}:1", "p", None, ()),
        PromptExample(f"{path}:2", "user: Hello?\nassistant:", None, (), (("user", "Hello?"),)),
    ]
    wanted = "needs 'completion' (or 'target'), 'references' or 'messages'"
    refused(lambda: read_prompts(path, pytest.fail), f"{path}:1", wanted)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"completion": "c"}, "'prompt' must be a text, neither empty nor with lone surrogates, but is missing"),
        ({"prompt": "p", "completion": ""}, "'completion' must be a text"),
        ({"source": "p", "target": None}, "'target' must be a text"),
        ({"prompt": "p", "references": []}, "'references' must be a list of texts"),
        ({"prompt": "p", "references": "r"}, "'references' must be a list of texts"),
        ({"messages": [{"role": "user", "content": "a"}]}, "'messages' must be"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "'messages' must be"),
        ({"messages": "a"}, "'messages' must be a list of objects, the last the assistant's, others before it"),
        ({"messages": ["a"]}, "'messages' must be"),
        ({"messages": []}, "'messages' must be"),
        ({"messages": [{"role": "user"}]}, "'content' must be a text"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, "'content' must be"),
    ],
)
def test_a_fault_in_a_row_of_prompts_is_named_with_its_line(tmp_path: Path, row: object, part: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c"}, row])
    refused(lambda: read_prompts(path, pytest.fail), f"{path}:2", part)


# -- every kind of file ----------------------------------------------------------------------------------------------

SMALL = {
    "a.tsv": ("classification", "text\tlabel\nä\tx\n"),
    "a.csv": ("classification", "text,label\nä,x\n"),
    "a.jsonl": ("classification", '{"text": "ä", "label": "x"}\n'),
    "a.conll": ("ner", "ä\tO\n"),
    "b.jsonl": ("generation", '{"prompt": "ä", "completion": "x"}\n'),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_byte_order_mark_is_left_out_and_said(tmp_path: Path, name: str) -> None:
    task, text = SMALL[name]
    plain = READERS[task](write(tmp_path / name, text), pytest.fail)
    notes: list[str] = []
    assert READERS[task](write(tmp_path / name, "\ufeff" + text), notes.append) == plain
    assert notes == [f"{tmp_path / name}: begins with a byte-order mark, which is left out"]


@pytest.mark.parametrize("name", SMALL)
def test_a_byte_that_is_not_utf8_is_an_error_with_its_line(tmp_path: Path, name: str) -> None:
    task, text = SMALL[name]
    data = (text * 3).encode()
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(data + b"\xff\n"))
    line = (text * 3).count("\n") + 1
    refused(lambda: READERS[task](path, pytest.fail), f"{path}:{line}", f"not UTF-8 at byte {len(data)} ")


@pytest.mark.parametrize("name", SMALL)
def test_a_file_without_examples_is_refused(tmp_path: Path, name: str) -> None:
    task, text = SMALL[name]
    header = text.splitlines()[0] if name in ("a.tsv", "a.csv") else ""
    for content in ("", "\n", header):
        path = write(tmp_path / name, content)
        refused(lambda path=path: read_labelled({"all": [path]}, task, pytest.fail), str(path), "holds no examples")
