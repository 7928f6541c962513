import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from studio.bases import Sizes
from studio.buckets import kept_share, nearest_size, told_sizes, training_sizes
from studio.errors import UsageError
from studio.images import find_pictures, survey
from studio.trainers.planning import plan_recipe

SDXL, SD15, SMALL = Sizes((1024, 1024), 32), Sizes((512, 512), 64), Sizes((96, 96), 16, 4)


def every_size(resolution: int, step: int) -> list[tuple[int, int]]:
    """All sizes within the bounds, of which one side cannot grow."""
    sides = range(step, 2 * resolution + 1, step)
    fits = {(w, h) for w in sides for h in sides if min(w, h) >= resolution / 2 and w * h <= resolution**2}
    return [(w, h) for w, h in fits if (w + step, h) not in fits or (w, h + step) not in fits]


@pytest.mark.parametrize(("sizes", "resolution", "step"), [(SDXL, 1024, 64), (SD15, 512, 64), (SMALL, 96, 16)])
def test_fifty_pictures_get_the_nearest_aspect_ratio(sizes: Sizes, resolution: int, step: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes: list[tuple[int, int]] = []
    for number in range(50):
        width, height = (int(side) for side in random.integers(20, 200, 2))
        exif = Image.Exif()
        exif[0x0112] = orientation = int(random.integers(1, 9))
        Image.new("RGB", (width, height)).save(tmp_path / f"{number:02d}.jpg", exif=exif)
        shapes.append((height, width) if orientation >= 5 else (width, height))
    chosen = [finding.size for finding in survey(tmp_path, training_sizes(sizes, resolution, buckets=True))]
    for (width, height), size in zip(shapes, chosen, strict=True):
        off = {(w, h): abs(math.log(w / h) - math.log(width / height)) for w, h in every_size(resolution, step)}
        assert size is not None
        assert off[size] == pytest.approx(min(off.values()), abs=1e-12)
        assert size[0] * size[1] == max(w * h for (w, h), by in off.items() if by < off[size] + 1e-12)
    assert len(set(chosen)) > 8


def test_the_sizes_of_sdxl_are_those_that_are_known() -> None:
    found = training_sizes(SDXL, 1024, buckets=True)
    assert found[0] == (1024, 1024)
    assert {(832, 1216), (1216, 832), (896, 1152), (1344, 768), (1536, 640), (512, 2048)} < set(found)
    assert len(set(found)) == len(found)
    assert set(found) == {(h, w) for w, h in found}


def test_without_buckets_all_is_square() -> None:
    assert training_sizes(SDXL, 768, buckets=False) == ((768, 768),)
    assert training_sizes(SDXL, 32, buckets=True) == ((32, 32),)  # too small for any other shape


def test_the_kept_share_is_that_of_a_cut_by_hand() -> None:
    assert kept_share(300, 100, (64, 64)) == pytest.approx(1 / 3)
    assert kept_share(300, 100, (128, 64)) == pytest.approx(2 / 3)
    assert kept_share(100, 300, (64, 192)) == 1
    assert nearest_size(5, 4, ((64, 64), (128, 128))) == (128, 128)


def test_sizes_are_told_in_one_line() -> None:
    told = told_sizes([(832, 1216), (1024, 1024), (1024, 1024), (832, 1216), (1024, 1024)])
    assert told == "3 pictures at 1024 x 1024, 2 at 832 x 1216"
    assert told_sizes([(64, 64)]) == "1 picture at 64 x 64"


def test_notes_are_about_the_bucket(tmp_path: Path) -> None:
    for name, size in (("a", (1300, 800)), ("b", (2000, 200)), ("c", (800, 1300))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    wide, banner, tall = survey(tmp_path, training_sizes(SDXL, 1024, buckets=True))
    assert (wide.size, wide.notes) == ((1280, 768), ())
    assert (tall.size, tall.notes) == ((768, 1280), ())
    assert banner.size == (2048, 512)
    assert banner.notes == ("enlarged: its shorter side has 200 pixels of 512", "60% of it are cut away")


@pytest.mark.parametrize(
    ("subfolder", "times"), [("3_cat", 3), ("12_", 12), ("cat", 1), ("2024_cat", 1), ("cat_3", 1), ("3cat", 1)]
)
def test_pictures_of_a_subfolder_count_as_its_name_says(tmp_path: Path, subfolder: str, times: int) -> None:
    for place in (tmp_path, tmp_path / subfolder, tmp_path / subfolder / "deeper", tmp_path / ".hidden"):
        place.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(place / "a.png")
    (tmp_path / subfolder / "a.txt").write_text("a cat at night")
    found = [(one.name, one.repeats, one.caption) for one in find_pictures(tmp_path)]
    assert found == [("a.png", 1, None), (f"{subfolder}/a.png", times, "a cat at night")]


def test_a_broken_picture_is_named_with_its_subfolder(tmp_path: Path) -> None:
    (tmp_path / "2_x").mkdir()
    (tmp_path / "2_x" / "a.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"2_x/a\.png: this is not a picture"):
        find_pictures(tmp_path)


def test_presets_of_full_size_bases_have_buckets_and_others_not(tiny_sdxl: Path, home, tmp_path: Path) -> None:
    given = {"pictures": tmp_path, "name": "milo", "class_word": "cat", "base": str(tiny_sdxl)}
    assert plan_recipe(given, None, home).buckets
    assert not plan_recipe(given | {"method": "b-lora"}, None, home).buckets
    assert plan_recipe(given | {"method": "b-lora", "buckets": True}, None, home).buckets
    assert not plan_recipe(given | {"base": "picturebook"}, None, home).buckets
    assert not plan_recipe(given, None, home).flip
    assert json.loads(plan_recipe(given, None, home).model_dump_json())["buckets"]
