import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from studio.errors import StudioError, UsageError
from studio.home import NAME_LIMIT, Home, ensure_free, ensure_writable, resolve_inside, safe_name, write_atomic

BAD_NAMES = [
    *("", ".", "..", "../", "../milo", "a/b", "a\\b", "/etc/passwd", "C:milo", "~", "-rf", " milo", "milo "),
    *("mi\0lo", "mi\nlo", "CON", "con", "nul.txt", "COM1", "lpt9.log", "milo.", ".milo", "x" * 300),
    *("mіlo", "ｍｉｌｏ", "milo\u200b", "мило", "<milo>", "mi*lo", "mi:lo", "mi?lo", 'mi"lo'),  # noqa: RUF001
]


def test_the_home_is_the_option_then_the_variable_then_the_platforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "variable"))
    assert Home.resolve(tmp_path / "option").root == tmp_path / "option"
    assert Home.resolve().root == tmp_path / "variable"
    monkeypatch.delenv("STUDIO_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert "concept-studio" in Home.resolve().root.parts


@pytest.mark.parametrize("name", ["milo", "Milo-2", "a.b_c", "7", "x" * NAME_LIMIT, "console"])
def test_plain_names_stay_as_they_are(name: str):
    assert safe_name(name) == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names_are_refused(name: str):
    with pytest.raises(UsageError) as refused:
        safe_name(name, "concept name")
    assert "concept name" in refused.value.problem
    assert refused.value.remedy
    assert len(str(refused.value)) < 300


@given(st.text(max_size=80))
def test_a_name_that_passes_names_a_file_beside_its_siblings(name: str):
    try:
        safe_name(name)
    except UsageError:
        return
    assert Path("/root/folder", name).resolve().parent == Path("/root/folder").resolve()
    assert name.isascii()
    assert name.isprintable()


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/../../x"])
def test_nothing_resolves_outside_its_root(tmp_path: Path, name: str):
    with pytest.raises(UsageError):
        resolve_inside(tmp_path, name)


def test_a_link_that_leads_out_is_outside(tmp_path: Path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path)
    with pytest.raises(UsageError):
        resolve_inside(tmp_path / "root", "link")


def test_a_file_in_the_place_of_the_folder_is_not_writable(tmp_path: Path):
    (tmp_path / "home").touch()
    with pytest.raises(StudioError, match="Cannot write") as refused:
        ensure_writable(tmp_path / "home")
    assert "--home" in refused.value.remedy


def test_a_writable_folder_is_made_and_left_empty(tmp_path: Path):
    ensure_writable(tmp_path / "a/b")
    assert list((tmp_path / "a/b").iterdir()) == []


def test_too_little_disk_is_named_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(9, 9, 3 * 2**20))
    ensure_free(tmp_path, 2**20)
    with pytest.raises(StudioError, match="3 MiB free; 8 MiB are needed"):
        ensure_free(tmp_path, 8 * 2**20)


def test_a_file_is_written_whole(tmp_path: Path):
    path = tmp_path / "new/milo.txt"
    assert write_atomic(path, lambda file: file.write_text("whole")) == path
    assert path.read_text() == "whole"
    assert [one.name for one in path.parent.iterdir()] == ["milo.txt"]


DISK_ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
]


@pytest.mark.parametrize("raised", [*DISK_ERRORS, ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, raised: BaseException):
    path = tmp_path / "milo.txt"
    path.write_text("old")

    def write_half(file: Path) -> None:
        file.write_text("ha")
        raise raised

    with pytest.raises(StudioError if raised in DISK_ERRORS else type(raised)):
        write_atomic(path, write_half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_while_the_file_is_flushed_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StudioError, match="No space left"):
        write_atomic(tmp_path / "milo.txt", lambda file: file.write_text("x"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_parent_is_an_error_of_the_studio(tmp_path: Path):
    (tmp_path / "folder").touch()
    with pytest.raises(StudioError, match="Cannot write"):
        write_atomic(tmp_path / "folder/milo.txt", lambda file: file.write_text("x"))
