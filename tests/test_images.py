import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studio.errors import UsageError
from studio.images import check_decodable, dataset_notices, find_pictures, load_rgb


def save(folder: Path, name: str, colour: object = "red", size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Path:
    Image.new(mode, size, colour).save(folder / name)  # type: ignore[arg-type]
    return folder / name


def giant_png(path: Path, side: int) -> Path:
    """A PNG of `side` x `side` one-bit zeros, written without ever holding it."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def test_pictures_come_in_order_of_name_with_size_and_caption(tmp_path: Path) -> None:
    save(tmp_path, "b.png")
    save(tmp_path, "a.JPG", size=(10, 20))
    (tmp_path / "a.txt").write_text("a cat\n on grass\n", encoding="utf-8")
    first, second = find_pictures(tmp_path)
    assert (first.path.name, first.width, first.height, first.caption) == ("a.JPG", 10, 20, "a cat on grass")
    assert (second.path.name, second.caption) == ("b.png", None)


def test_a_single_file_is_a_set_of_one(tmp_path: Path) -> None:
    picture = save(tmp_path, "one.png")
    assert [found.path for found in find_pictures(picture)] == [picture]


def test_one_picture_only_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, "one.png")
    assert "one picture only" in dataset_notices(tmp_path, find_pictures(tmp_path))[0]


def test_orphaned_captions_and_other_files_are_noticed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path, name)
    for name in ("a.txt", "lost.txt", "song.mp3", ".hidden"):
        (tmp_path / name).write_text("words", encoding="utf-8")
    notices = " ".join(dataset_notices(tmp_path, find_pictures(tmp_path)))
    assert "lost.txt" in notices
    assert "song.mp3" in notices
    assert "1 of 2 pictures have captions" in notices
    assert ".hidden" not in notices


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        find_pictures(tmp_path / "nowhere")


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no pictures"):
        find_pictures(tmp_path)


def test_every_unusable_file_is_named_with_its_reason(tmp_path: Path) -> None:
    save(tmp_path, "good.png")
    (tmp_path / "words.jpg").write_text("not a picture", encoding="utf-8")
    (tmp_path / "void.png").touch()
    with pytest.raises(UsageError) as refusal:
        find_pictures(tmp_path)
    said = refusal.value.problem
    assert "2 of 3" in said
    assert "words.jpg: this is not a picture" in said
    assert "void.png: the file is empty" in said
    assert "good.png" not in said


@pytest.mark.parametrize("side", [8_000, 20_000])
def test_too_many_pixels_are_refused_by_the_header_in_little_memory(tmp_path: Path, side: int) -> None:
    giant_png(tmp_path / "giant.png", side)
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"giant\.png: it has more than the 50 million pixels"):
        find_pictures(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg"])
def test_truncated_pictures_are_found_before_training(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=f"{name}: the picture is cut short"):
        check_decodable(find_pictures(tmp_path))


def test_a_caption_that_is_not_text_is_named(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00caf\xe9")
    with pytest.raises(UsageError, match=r"a\.png: its caption a\.txt is not UTF-8"):
        find_pictures(tmp_path)


def test_exif_rotation_is_applied_to_size_and_pixels(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))  # left half; turned by orientation 6 it is the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    picture = find_pictures(tmp_path)[0]
    upright = load_rgb(picture.path)
    assert (picture.width, picture.height) == upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 0, 0)
    assert upright.getpixel((10, 35)) == (0, 0, 255)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    path = save(tmp_path, "clear.png", (255, 0, 0, 0), mode="RGBA")
    assert load_rgb(path).getpixel((0, 0)) == (255, 255, 255)


def test_palette_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.save(tmp_path / "p.png", transparency=0)
    assert load_rgb(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path, "print.jpg", (0, 255, 255, 0), mode="CMYK")
    red, green, blue = load_rgb(path).getpixel((5, 5))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert np.asarray(load_rgb(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 100, 255]


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_rgb(tmp_path / "moving.gif").getpixel((0, 0)) == (255, 0, 0)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.new("F", (4, 4), 0.5).save(tmp_path / "float.tiff")
    with pytest.raises(UsageError, match=r"float\.tiff: floating-point"):
        check_decodable(find_pictures(tmp_path))
