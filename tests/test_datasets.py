import errno
import stat
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from studio.datasets import MOST_FILES, Datasets
from studio.errors import UsageError
from studio.home import Home
from studio.images import find_pictures, mask_file


@pytest.fixture
def sets(tmp_path):
    return Datasets(Home(tmp_path / "home"))


@pytest.fixture
def given(tmp_path):
    """Files as a browser uploads them."""
    place = tmp_path / "upload"
    place.mkdir()

    def make(name, content=None):
        path = place / name
        if content is None:
            Image.new("RGB", (64, 48), "red").save(path)
        else:
            path.write_bytes(content)
        return path

    return make


def archive(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries.items():
            made.writestr(name, content)
    return path


def png():
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width, height):
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def left_behind(sets):
    return [one.name for one in sets.root.iterdir()] if sets.root.is_dir() else []


def test_pictures_keep_their_captions_under_safe_names(sets, given):
    name = sets.add([given("Mein Kätzchen.png"), given("Mein Kätzchen.txt", b"a cat on grass")])
    (picture,) = find_pictures(sets.folder(name))
    assert picture.caption == "a cat on grass"
    assert picture.path.name == "Mein-Katzchen.png"


def captions(sets, *files):
    """The caption of each picture, by the grey of the picture."""
    found = {}
    for one in find_pictures(sets.folder(sets.add(files))):
        with Image.open(one.path) as picture:
            found[picture.convert("L").getpixel((0, 0))] = one.caption
    return found


def grey(shade):
    buffer = BytesIO()
    Image.new("RGB", (8, 8), (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("files", "expected"),
    [({"кот.png": grey(1), "дом.png": grey(2), "дом.txt": b"a house"}, {1: None, 2: "a house"}),
     ({"Bär.png": grey(1), "Bar.png": grey(2), "Bar.txt": b"a bar", "Bär.txt": b"a bear"}, {1: "a bear", 2: "a bar"}),
     ({"Ba\u0308r.png": grey(1), "B\u00e4r.txt": b"a bear"}, {1: "a bear"}),
     ({"x.txt": b"one", "X.txt": b"two", "X.png": grey(2), "x.png": grey(1)}, {1: "one", 2: "two"})],
)  # fmt: skip
def test_a_caption_stays_with_its_picture_where_safe_names_are_alike(sets, given, files, expected):
    assert captions(sets, *(given(name, content) for name, content in files.items())) == expected


def test_a_caption_stays_with_the_picture_of_its_folder_and_archive(sets, tmp_path):
    one = archive(tmp_path / "1.zip", **{"a/1.png": grey(1), "b/1.png": grey(2), "b/1.txt": b"b"})
    two = archive(tmp_path / "2.zip", **{"b/1.txt": b"of another", "b/1.png": grey(3)})
    assert captions(sets, one, two) == {1: None, 2: "b", 3: "of another"}


def test_pictures_that_came_under_one_name_take_their_captions_in_turn(sets, given, tmp_path):
    again = tmp_path / "cat.png"
    again.write_bytes(grey(2))
    assert captions(sets, given("cat.png", grey(1)), again, given("cat.txt", b"first")) == {1: "first", 2: None}


def test_a_mask_stays_with_its_picture(sets, tmp_path):
    inside = archive(tmp_path / "x.zip", **{"a/1.png": grey(1), "b/1.mask.png": grey(255), "b/1.png": grey(2)})
    folder = sets.folder(sets.add([inside]))
    (masked,) = [file for file in folder.glob("*.png") if mask_file(file).is_file()]
    assert masked.read_bytes() == grey(2)


def test_names_that_would_collide_or_lead_elsewhere_do_not(sets, given, tmp_path):
    inside = archive(tmp_path / "x.zip", **{"../../evil.png": png(), "/etc/evil.png": png(), "a/evil.png": png()})
    folder = sets.folder(sets.add([inside]))
    assert sorted(one.name for one in folder.iterdir()) == ["evil-2.png", "evil-3.png", "evil.png"]
    assert not list(tmp_path.rglob("etc"))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["home", "upload", "x.zip"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("run.py", b"print()", "no picture"), ("cat.png", b"", "no picture that can be read"),
     ("cat.png", b"GIF89a junk", "no picture that can be read"), ("cat.png", bomb(40_000, 40_000), "40000|be read"),
     ("cat.png", bomb(9_000, 9_000), "9000 x 9000"), ("cat.txt", b"\xff\xfe\x00", "no text"),
     ("cat.txt", b"a" * 6000, "6000 characters"), ("only.txt", b"a cat", "no picture among")],
)  # fmt: skip
def test_one_bad_file_is_named_and_nothing_is_kept(sets, given, name, content, says):
    files = [given(name, content)] + ([given("good.png")] if "among" not in says else [])
    with pytest.raises(UsageError, match=says):
        sets.add(files)
    assert left_behind(sets) == []


def test_a_link_in_an_archive_is_refused(sets, tmp_path):
    path = tmp_path / "links.zip"
    with zipfile.ZipFile(path, "w") as made:
        entry = zipfile.ZipInfo("cat.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(entry, "/etc/passwd")
    with pytest.raises(UsageError, match="link"):
        sets.add([path])
    assert left_behind(sets) == []


def test_an_archive_that_grows_beyond_measure_is_refused_before_it_is_unpacked(sets, tmp_path):
    with pytest.raises(UsageError, match="grows"):
        sets.add([archive(tmp_path / "bomb.zip", **{"cat.png": b"\0" * 50_000_000})])
    assert left_behind(sets) == []


def changed(path, at, value):
    """The archive with other bytes at an offset into each header of its one file: its own and the directory's."""
    data = bytearray(path.read_bytes())
    for header, more in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = data.index(header) + at + more
        data[place : place + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [(6, b"\1\0", "is encrypted"), (8, b"\x09\0", ".* compression"), (14, b"\0\0\0\0", ".* CRC"),
     (8, b"\x0c\0", ".* Invalid data"), (8, b"\x0e\0", "cannot be unpacked")],
)  # fmt: skip
def test_an_archive_that_cannot_be_unpacked_is_named(sets, tmp_path, at, value, says):
    file = changed(archive(tmp_path / "cats.zip", **{"cat.png": png()}), at, value)
    with pytest.raises(UsageError, match=f"'cat.png' in cats.zip {says}"):
        sets.add([file])
    assert left_behind(sets) == []


def test_an_archive_without_its_directory_is_named(sets, tmp_path):
    file = archive(tmp_path / "cats.zip", **{"cat.png": png()})
    file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x09\x09"))
    with pytest.raises(UsageError, match=r"cats\.zip cannot be unpacked: "):
        sets.add([file])
    assert left_behind(sets) == []


def test_a_disk_that_refuses_is_not_taken_for_a_damaged_archive(sets, tmp_path, monkeypatch):
    def full(path, mode):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = archive(tmp_path / "cats.zip", **{"cat.png": png()})
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        sets.add([file])


def test_an_archive_of_too_many_files_is_refused(sets, tmp_path):
    many = {f"{n}.txt": b"x" for n in range(MOST_FILES + 1)}
    with pytest.raises(UsageError, match=str(MOST_FILES)):
        sets.add([archive(tmp_path / "many.zip", **many)])


@pytest.mark.parametrize("name", ["", "..", "../library", "0123456789ab/..", "/etc", "a" * 300, "0123456789aB", "x\0"])
def test_only_names_that_the_studio_made_lead_anywhere(sets, name):
    with pytest.raises(UsageError, match="no set"):
        sets.folder(name)


def test_hidden_files_of_an_archive_are_left_out(sets, tmp_path):
    entries = {"__MACOSX/._cat.png": b"junk", ".DS_Store": b"junk", "cat.png": png()}
    assert [one.name for one in sets.folder(sets.add([archive(tmp_path / "m.zip", **entries)])).iterdir()] == [
        "cat.png"
    ]


def test_no_files_are_no_set(sets):
    with pytest.raises(UsageError, match="no files"):
        sets.add([])
    assert left_behind(sets) == []
