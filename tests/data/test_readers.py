"""Every accepted file gives its text and its documents, and every fault its place."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nlpstack.data import readers
from nlpstack.data.readers import find_splits, read_documents
from nlpstack.errors import DataError, NlpstackError
from tests.tiny import nlpstack

QUICK = settings(max_examples=40, deadline=None)  # deadlines fail on a busy machine

TEXT = "First Citizen:\nBefore we proceed, hear me.\n\n日本語 café naïve\n"


def pack(path: Path, data: bytes) -> Path:
    """Write data as the file's suffix says."""
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def documents(path: Path, mode: str = "files", notes: list[str] | None = None) -> list[str]:
    """Each document's text, its pieces joined; every piece holds something, and the last one is marked."""
    found, held = [], ""
    open_document = False
    for text, last in read_documents([path], mode, (notes if notes is not None else []).append):
        assert text
        held, open_document = held + text, not last
        if last:
            found.append(held)
            held = ""
    assert not open_document
    return found


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        documents(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


@pytest.fixture
def piece_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda size: monkeypatch.setattr(readers, "PIECE_BYTES", size)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "A.TXT", "a.TXT.GZ"])
def test_a_text_file_is_one_document_however_it_is_packed(tmp_path: Path, name: str) -> None:
    data = TEXT.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data)) if name.endswith("GZ") else pack(path, data)
    assert documents(path) == [TEXT]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_each_json_line_is_a_document(tmp_path: Path, name: str) -> None:
    rows = [{"text": TEXT}, {"text": "two \ud83d\ude00", "id": 5}]
    lines = [json.dumps(rows[0]), "", "  ", json.dumps(rows[1], ensure_ascii=True)]
    assert documents(pack(tmp_path / name, "\n".join(lines).encode())) == [TEXT, "two 😀"]


def test_a_packed_file_of_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # which zstd leaves out
    frames = [zstandard.ZstdCompressor().compress(text) for text in (b"one\n", b"", b"two\n")]
    (tmp_path / "a.txt.zst").write_bytes(frames[0] + skippable + frames[1] + frames[2])
    assert documents(tmp_path / "a.txt.zst") == ["one\ntwo\n"]
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert documents(tmp_path / "a.txt.gz") == ["one\ntwo\n"]


def test_an_empty_file_holds_no_document(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.txt.gz", "a.txt.zst"):
        assert documents(pack(tmp_path / name, b"")) == []
    assert documents(pack(tmp_path / "a.txt", b" \n\n"), "paragraphs") == []


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.txt", b"one\r\ntwo\r\rthree\n")
    assert documents(path) == ["one\r\ntwo\r\rthree\n"]


def test_a_byte_order_mark_is_left_out_and_said(tmp_path: Path) -> None:
    notes: list[str] = []
    assert documents(pack(tmp_path / "a.txt", b"\xef\xbb\xbfone"), notes=notes) == ["one"]
    assert len(notes) == 1
    assert "byte-order mark" in notes[0]
    assert documents(pack(tmp_path / "b.txt", b"one\xef\xbb\xbf")) == ["one\ufeff"]
    assert documents(pack(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n')) == ["one"]


def test_empty_texts_are_left_out_and_said_once(tmp_path: Path) -> None:
    notes: list[str] = []
    path = pack(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": ""}\n{"text": "b"}\n')
    assert documents(path, notes=notes) == ["a", "b"]
    assert len(notes) == 1
    assert "line 2" in notes[0]


# -- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("at", [3, 70, 123])
def test_a_byte_that_is_not_utf8_is_an_error_with_its_place(
    tmp_path: Path, name: str, at: int, piece_bytes: Callable[[int], None]
) -> None:
    piece_bytes(16)  # so that the byte stands in a later block
    data = bytearray(('{"text": "aé"}\n' * 40).encode())
    data[at : at + 1] = b"\xff"
    with pytest.raises(UnicodeDecodeError) as caught:
        data.decode()
    refused(pack(tmp_path / name, bytes(data)), f"not UTF-8 at byte {caught.value.start}")


@QUICK
@given(st.binary(max_size=40), st.integers(0, 40), st.sampled_from(["é\n", "é", "😀", "日 "]), st.integers(4, 20))
@example(bad=b"\xef\xbb\xbfab\xff", at=0, filling="a", size=8)  # after a byte-order mark
@example(bad=b"aaa\xf0\x9f\x98\x80\x80", at=0, filling="", size=8)  # where a long line is cut
def test_the_place_of_a_bad_byte_is_that_in_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, bad: bytes, at: int, filling: str, size: int
) -> None:
    data = (filling * 30).encode()
    data = data[:at] + bad + data[at:]
    path = tmp_path_factory.mktemp("d") / "a.txt"
    path.write_bytes(data)
    try:
        wanted = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        place = error.start
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "PIECE_BYTES", size)
            refused(path, f"not UTF-8 at byte {place} (0x{data[place]:02x})")
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(readers, "PIECE_BYTES", size)
            assert documents(path) == [wanted]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.jsonl.zst"])
def test_a_packed_file_that_is_cut_short_or_altered_is_an_error(tmp_path: Path, name: str) -> None:
    lines = "".join(f'{{"text": "{number * 7919 % 10007} words"}}\n' for number in range(2000))
    path = pack(tmp_path / name, lines.encode())
    whole = path.read_bytes()
    assert len(documents(path)) in (1, 2000)
    for size in (3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "cannot be read")
    path.write_bytes(whole + b"garbage")
    refused(path, "cannot be read")
    path.write_bytes(b"no packed file at all")
    refused(path, "cannot be read")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'"text"', "expected an object with a string 'text'"),
        (b'{"txt": "a"}', "expected an object with a string 'text'"),
        (b'{"text": 3}', "expected an object with a string 'text'"),
        (b'{"text": null}', "expected an object with a string 'text'"),
        (b'{"text": "ab\\ud800"}', "lone surrogate at character 2"),
    ],
)
def test_a_bad_json_line_is_named_with_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = pack(tmp_path / "a.jsonl", b'{"text": "a"}\n\n' + line + b"\n")
    refused(path, f"{path}:3:", reason)


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    refused(tmp_path / "none.txt", "cannot be read", "No such file")


# -- pieces ----------------------------------------------------------------------------------------------------------

LINES = st.lists(st.sampled_from(["a", "word", " ", "\t", "é", "日本", "😀", "\n", "\n\n", "\r\n", "x" * 9, "\x0b"]))


@QUICK
@given(LINES, st.integers(4, 12), st.sampled_from(["a.txt", "a.jsonl"]))
def test_pieces_joined_are_the_text(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], size: int, name: str
) -> None:
    text = "".join(parts)
    path = tmp_path_factory.mktemp("d") / name
    path.write_bytes(text.encode() if name == "a.txt" else json.dumps({"text": text}).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_BYTES", size)
        assert documents(path) == ([text] if text else [])
        pieces = [piece.text for piece in read_documents([path], "files", lambda _: None)]
    assert all(len(piece.encode()) <= 4 * size for piece in pieces)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_pieces_end_with_lines_where_lines_are_short(
    tmp_path: Path, name: str, piece_bytes: Callable[[int], None]
) -> None:
    piece_bytes(8)
    text = "ab\nc d\n" * 9
    path = pack(tmp_path / name, text.encode() if name == "a.txt" else json.dumps({"text": text}).encode())
    pieces = [piece.text for piece in read_documents([path], "files", lambda _: None)]
    assert len(pieces) > 5
    assert all(piece.endswith("\n") for piece in pieces)


def test_a_long_line_is_cut_before_a_space_where_there_is_one(
    tmp_path: Path, piece_bytes: Callable[[int], None]
) -> None:
    piece_bytes(8)
    notes: list[str] = []
    path = pack(tmp_path / "a.txt", b"aaa bbb ccc ddd eee fff")
    pieces = [piece.text for piece in read_documents([path], "files", notes.append)]
    assert len(pieces) > 1
    assert all(piece.startswith(" ") for piece in pieces[1:])
    assert any("over 8 bytes" in note for note in notes)


def paragraphs_of(text: str) -> list[str]:
    """The rule once more, in the plainest way: runs of lines that hold more than white space."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1].append(line)
        else:
            found.append([])
    return ["\n".join(lines).rstrip("\r") for lines in found if lines]


@QUICK
@given(LINES, st.integers(4, 12), st.sampled_from(["a.txt", "a.txt.gz"]))
def test_paragraphs_are_the_runs_of_lines_between_blank_ones(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], size: int, name: str
) -> None:
    path = pack(tmp_path_factory.mktemp("d") / name, "".join(parts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "PIECE_BYTES", size)
        assert documents(path, "paragraphs") == paragraphs_of("".join(parts))


def test_a_paragraph_longer_than_a_piece_comes_in_several(tmp_path: Path, piece_bytes: Callable[[int], None]) -> None:
    piece_bytes(8)
    path = pack(tmp_path / "a.txt", b"one two\nthree\nfour\nfive\n\nsix\n")
    pieces = list(read_documents([path], "paragraphs", lambda _: None))
    assert [last for _, last in pieces] == [False, False, True, True]
    assert "".join(text for text, _ in pieces[:3]) == "one two\nthree\nfour\nfive"


def test_paragraphs_of_json_lines_are_documents_as_they_are(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.jsonl", b'{"text": "a\\n\\nb"}\n')
    assert documents(path, "paragraphs") == ["a\n\nb"]


# -- finding files ---------------------------------------------------------------------------------------------------


def names(splits: dict[str, list[Path]]) -> dict[str, list[str]]:
    return {split: [file.name for file in files] for split, files in splits.items()}


@pytest.mark.parametrize("val", ["val.txt", "valid.txt", "dev.jsonl.gz", "validation.txt", "VALID.TXT.zst"])
def test_a_data_folder_holds_its_splits(tmp_path: Path, val: str) -> None:
    for name in ("train.txt", "train.more.jsonl", val, "test.txt", "README.md", "notes.txt", "trainer.txt"):
        (tmp_path / name).touch()
    wanted = {"train": ["train.more.jsonl", "train.txt"], "val": [val], "test": ["test.txt"]}
    assert names(find_splits([str(tmp_path)])) == wanted


def test_a_folder_without_splits_stands_for_all_corpus_files_below_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.jsonl", "sub/c.txt.gz", "image.png"):
        (tmp_path / name).touch()
    assert names(find_splits([str(tmp_path)])) == {"all": ["a.jsonl", "b.txt", "c.txt.gz"]}


def test_a_folder_below_that_cannot_be_listed_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/b.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")

    def listed(folder: Path, iterdir: Any = Path.iterdir) -> Any:
        if folder.name == "a":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", listed)
    done = nlpstack("data", "tokenize", "--data", tmp_path, "--tokenizer", tmp_path, "--out", tmp_path / "out")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"{tmp_path / 'a'}: Permission denied" in done.err


def test_a_glob_stands_for_the_files_it_matches_in_order(tmp_path: Path) -> None:
    for name in ("b2.txt", "b1.txt", "c.txt"):
        (tmp_path / name).touch()
    assert names(find_splits([str(tmp_path / "b*.txt")])) == {"all": ["b1.txt", "b2.txt"]}
    (tmp_path / "b[1].txt").touch()  # a file of that name is itself
    assert names(find_splits([str(tmp_path / "b[1].txt")])) == {"all": ["b[1].txt"]}


def test_files_beside_a_data_folder_join_its_training_part(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("set/train.txt", "set/val.txt", "more.txt"):
        (tmp_path / name).touch()
    found = names(find_splits([str(tmp_path / "more.txt"), str(tmp_path / "set")]))
    assert found == {"train": ["train.txt", "more.txt"], "val": ["val.txt"]}


def test_a_bundled_sample_is_found_by_name() -> None:
    (path,) = find_splits(["sample:shakespeare"])["all"]
    with path.open("rb") as file:
        assert file.readline() == b"First Citizen:\n"


def test_what_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").touch()
    for path, part in (
        ("none.txt", "no such file or folder"),
        ("none*.txt", "no file matches"),
        ("empty", "no corpus files in this folder"),
        ("a.png", "accepted: .txt, .jsonl"),
        ("*.png", "accepted: .txt, .jsonl"),
    ):
        with pytest.raises(DataError, match=part):
            find_splits([str(tmp_path / path)])
    with pytest.raises(DataError, match="no data given"):
        find_splits([])
    with pytest.raises(NlpstackError, match="did you mean 'shakespeare'"):
        find_splits(["sample:shakespear"])


@pytest.mark.parametrize(("folder", "split"), [("wikitext2", "val"), ("tinyshakespeare", None)])
def test_the_shared_corpora_are_read(shared_data: Path, folder: str, split: str | None) -> None:
    if not (shared_data / folder).is_dir():
        pytest.skip(f"no {folder} among the shared data")
    splits = find_splits([str(shared_data / folder)])
    files = splits[split] if split else next(iter(splits.values()))
    n_chars = sum(len(piece.text) for piece in read_documents(files, "files", lambda _: None))
    assert n_chars == sum(len(file.read_bytes().decode()) for file in files)
