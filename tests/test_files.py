"""What is written is whole or not there, and what is read back is what was written."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from nlpstack import files
from nlpstack.errors import CheckpointError, ModelError
from nlpstack.files import (
    ASIDE_SUFFIX,
    MANIFEST,
    files_below,
    new_folder,
    publish,
    remove_leftovers,
    sha256_file,
    standing,
    verify_manifest,
    write_file,
)


class Interrupted(Exception):
    """What stops a writer in the tests."""


def write(target: Path, **contents: str) -> Path:
    with new_folder(target) as folder:
        for name, text in contents.items():
            (folder / name).write_text(text)
    return target


def content(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def change_manifest(folder: Path, entries: object) -> None:
    (folder / MANIFEST).write_text(json.dumps({"files": entries}))


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        verify_manifest(folder, CheckpointError, "use another")
    message = str(caught.value)
    assert "\n" not in message
    for part in (*parts, "use another"):
        assert part in message, message


@pytest.fixture(params=["exchanged in one step", "moved aside"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which a folder takes another's place."""
    if request.param == "moved aside":
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("exchange")
def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = write(tmp_path / "deep" / "model", a="1", b="2")
    write(target, b="3")
    assert content(target) == {"b": "3"}
    assert os.listdir(target.parent) == ["model"]
    assert verify_manifest(target, ModelError, "")


@pytest.mark.usefixtures("exchange")
def test_an_error_while_writing_leaves_the_old_folder(tmp_path: Path) -> None:
    target = write(tmp_path / "model", a="1")

    def fail() -> None:
        with new_folder(target) as folder:
            (folder / "a").write_text("2")
            raise Interrupted

    with pytest.raises(Interrupted):
        fail()
    assert content(target) == {"a": "1"}
    assert os.listdir(tmp_path) == ["model"]


def test_an_error_while_writing_for_the_first_time_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "model"):
            raise Interrupted

    with pytest.raises(Interrupted):
        fail()
    assert os.listdir(tmp_path) == []


def test_a_link_stays_a_link_to_the_new_folder(tmp_path: Path) -> None:
    write(tmp_path / "real", a="1")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", a="2")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"a": "2"}


def test_a_link_to_nothing_gets_its_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", a="2")
    assert content(tmp_path / "real") == content(tmp_path / "link") == {"a": "2"}


def test_what_a_killed_writer_left_does_not_enter_the_new_folder(tmp_path: Path) -> None:
    half = tmp_path / f".model.tmp-{os.getpid()}"
    half.mkdir()
    (half / "stale").write_text("x")
    assert content(write(tmp_path / "model", a="1")) == {"a": "1"}


@pytest.mark.usefixtures("exchange")
def test_files_of_the_old_folder_stay_readable_to_who_has_them_open(tmp_path: Path) -> None:
    target = write(tmp_path / "model", a="old")
    with open(target / "a") as file:
        write(target, a="new")
        assert file.read() == "old"


def test_a_folder_is_never_missing_while_it_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(tmp_path / "model", a="old")
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    rename, seen = os.rename, []

    def watched(source: Path, to: Path) -> None:
        rename(source, to)
        seen.append((target.exists(), content(standing(target))))

    monkeypatch.setattr(os, "rename", watched)
    write(target, a="new")
    assert seen == [(False, {"a": "old"}), (True, {"a": "new"})]


def test_a_writer_killed_between_the_renames_leaves_the_old_folder_to_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write(tmp_path / "model", a="old")
    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    rename = os.rename

    def killed(source: Path, to: Path) -> None:
        if to == target and not target.exists():
            raise Interrupted
        rename(source, to)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(Interrupted):
        write(target, a="new")
    monkeypatch.setattr(os, "rename", rename)
    assert not target.exists()
    assert content(standing(target)) == {"a": "old"}
    write(target, a="newest")
    assert content(standing(target)) == {"a": "newest"}
    assert os.listdir(tmp_path) == ["model"]  # the one moved aside is gone, and can never stand in again


def test_publishing_takes_the_folder_itself(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    publish(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]


@pytest.mark.usefixtures("exchange")
def test_of_two_who_publish_at_one_moment_neither_is_refused(tmp_path: Path) -> None:
    both = Barrier(2)

    def publish_after_the_other_is_there(folder: Path) -> None:
        both.wait()
        publish(folder, folder.with_name("target"))

    with ThreadPoolExecutor(2) as pool:
        for number in range(200):
            folders = [tmp_path / str(number) / name for name in "ab"]
            for folder in folders:
                folder.mkdir(parents=True)
                (folder / "name").write_text(folder.name)
            list(pool.map(publish_after_the_other_is_there, folders))
            assert os.listdir(tmp_path / str(number)) == ["target"]
            assert content(tmp_path / str(number) / "target") in ({"name": "a"}, {"name": "b"})


def test_files_below_a_folder_are_those_that_pathlib_finds(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a.txt", "a/d/e", "z/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "z" / "round").symlink_to(tmp_path)
    (tmp_path / "z" / "file").symlink_to(tmp_path / "b")
    (tmp_path / "z" / "nothing").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    found = list(files_below(tmp_path))
    assert found == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/c", "a/d/e", "a.txt", "b", "z/file", "z/x"]


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(folder: Path, iterdir: Any = Path.iterdir) -> Iterator[Path]:
        if folder.name == "inner":
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", listed)

    def write_two() -> None:
        with new_folder(tmp_path / "model") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "a").touch()

    with pytest.raises(PermissionError):
        write_two()
    assert os.listdir(tmp_path) == []


def test_a_text_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_file(path, "old é\n")
    assert path.read_bytes() == "old é\n".encode()

    def fail(source: Path, to: Path) -> None:
        raise Interrupted

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(Interrupted):
        write_file(path, "new")
    assert path.read_bytes() == "old é\n".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".model.tmp-12").mkdir()
    (tmp_path / ".model.tmp-12" / "x").touch()
    (tmp_path / ".config.toml.tmp-34").touch()
    for name in (".lock", "model", "a.tmp-5"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "a.tmp-5", "model"]


# -- reading ---------------------------------------------------------------------------------------------------------


def test_a_folder_stands_for_itself_unless_only_its_old_self_is_there(tmp_path: Path) -> None:
    folder, aside = tmp_path / "model", tmp_path / ("model" + ASIDE_SUFFIX)
    assert standing(folder) == folder
    aside.mkdir()
    assert standing(folder) == aside
    folder.mkdir()
    assert standing(folder) == folder
    assert standing(Path(".")) == Path(".")
    assert standing(Path("/")) == Path("/")


def test_the_manifest_lists_every_file_but_free_text(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model", free_text=frozenset(("README.md",))) as folder:
        (folder / "README.md").write_text("as you like")
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(b"\0" * 10)
    weights = tmp_path / "model" / "sub" / "weights"
    listed = json.loads((tmp_path / "model" / MANIFEST).read_text())["files"]
    assert listed == {"sub/weights": {"size": 10, "sha256": sha256_file(weights)}}
    (tmp_path / "model" / "README.md").write_text("changed")
    assert verify_manifest(tmp_path / "model", ModelError, "")


def test_a_folder_without_a_manifest_is_not_verified(tmp_path: Path) -> None:
    assert verify_manifest(tmp_path, ModelError, "") is False


def test_a_missing_truncated_or_altered_file_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", a="1234", b="5678")
    (folder / "a").write_text("1235")
    refused(folder, str(folder / "a"), "altered")
    (folder / "a").write_text("123")
    refused(folder, str(folder / "a"), "3 bytes", "says 4")
    (folder / "a").unlink()
    refused(folder, str(folder / "a"), "missing")
    (folder / "a").write_text("1234")
    assert verify_manifest(folder, CheckpointError, "")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "link"])
def test_a_manifest_that_names_what_is_outside_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "model", a="1")
    secret = tmp_path / "secret"
    secret.write_text("s")
    (folder / "link").symlink_to(secret)
    change_manifest(folder, {name: {"size": 1, "sha256": sha256_file(secret)}})
    refused(folder, f"'{name}'", "outside the folder")


@pytest.mark.parametrize("entries", [None, [], "x", {"a": None}, {"a": {}}, {"a": {"size": 1}}, {"": {"size": 1}}])
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, entries: object) -> None:
    folder = write(tmp_path / "model", a="1")
    change_manifest(folder, entries)
    refused(folder)


def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", a="1")
    for text in ("{", "[]", "[" * 100_000):
        (folder / MANIFEST).write_text(text)
        with pytest.raises(CheckpointError, match=MANIFEST):
            verify_manifest(folder, CheckpointError, "")


def test_files_of_a_new_folder_may_be_read_by_whom_the_umask_lets(tmp_path):
    old = os.umask(0o022)
    try:
        with new_folder(tmp_path / "a") as folder:
            (folder / "private").write_text("x")
            (folder / "private").chmod(0o600)
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "private").stat().st_mode & 0o777 == 0o644
