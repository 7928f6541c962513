import json
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    Image.effect_noise((200, 120), 90).save(place / "a.png")
    Image.effect_noise((120, 120), 90).save(place / "b.png")
    (place / "b.txt").write_text("a cat on grass")
    (place / "c.png").write_bytes((place / "b.png").read_bytes())
    Image.effect_noise((60, 60), 90).save(place / "d.png")
    return place


def test_what_will_be_done_to_each_picture_is_told(run_studio, folder: Path):
    said = run_studio("check", folder, "--resolution", "96", "--json")
    report = json.loads(said.out)
    assert (said.code, report["resolution"], report["usable"]) == (0, 96, 4)
    notes = {one["file"]: one["notes"] for one in report["pictures"]}
    assert notes["a.png"] == ["40% of it are cut away"]
    assert notes["b.png"] == []
    assert notes["c.png"] == ["the same file as b.png"]
    assert notes["d.png"] == ["enlarged: its shorter side has 60 pixels of 96"]
    assert report["notices"] == ["1 of 4 pictures have captions; the others use the plain prompt."]
    assert report["pictures"][1] | {"notes": []} == {
        "file": "b.png", "pixels": [120, 120], "trained_at": [96, 96], "repeats": 1, "caption": "a cat on grass",
        "problem": None, "notes": [],
    }  # fmt: skip


def test_for_a_base_with_buckets_each_pictures_own_shape_is_told(run_studio, tiny_sdxl: Path, folder: Path):
    Image.effect_noise((100, 400), 90).save(folder / "e.png")
    asked = ("check", folder, "--resolution", "96", "--base", tiny_sdxl)
    report = json.loads(run_studio(*asked, "--json").out)
    found = {one["file"]: (one["trained_at"], one["notes"]) for one in report["pictures"]}
    assert report["buckets"]
    assert found["a.png"] == ([112, 80], [])  # 7 : 5; 16 : 9 or 2 : 1 would be further from 5 : 3
    assert found["b.png"] == ([96, 96], [])
    assert found["e.png"] == ([48, 192], [])
    said = run_studio(*asked)
    assert "112 x 80" in next(line for line in said.out.splitlines() if "a.png" in line)
    assert "5 of 5 pictures can be used, in shapes of about 96 x 96 px." in said.out


def test_subfolders_count_as_their_names_say(run_studio, folder: Path):
    for name in ("3_best", "more", "more/deeper"):
        (folder / name).mkdir()
    for file in ("3_best/a.png", "more/x.png", "more/deeper/y.png"):
        Image.effect_noise((120, 120), 90).save(folder / file)
    report = json.loads(run_studio("check", folder, "--json").out)
    repeats = {one["file"]: one["repeats"] for one in report["pictures"]}
    assert repeats == {"a.png": 1, "b.png": 1, "c.png": 1, "d.png": 1, "3_best/a.png": 3, "more/x.png": 1}
    assert "Subfolder 3_best: each picture (1) is shown 3 times in an epoch." in report["notices"]
    assert "Subfolder more: each picture (1) is shown once in an epoch." in report["notices"]
    assert "Folders in subfolders are not used: more/deeper." in report["notices"]
    (folder / "3_best").rename(folder / "0_best")
    refused = run_studio("check", folder)
    assert (refused.code, "0_best would be shown 0 times" in refused.err) == (2, True)


def test_a_picture_that_cannot_be_used_is_named_beside_those_that_can(run_studio, folder: Path):
    (folder / "e.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "e.txt").write_text("its caption")
    said = run_studio("check", folder)
    assert said.code == 1
    assert "4 of 5 pictures can be used, as squares of 96 px." in said.out
    assert "Captions without" not in said.out
    assert "cannot be used: the picture is cut short or damaged" in next(
        line for line in said.out.splitlines() if "e.png" in line
    )


def test_pictures_of_a_phone_that_cannot_be_read_are_told(run_studio, folder: Path, tmp_path: Path):
    (folder / "IMG_1.HEIC").write_bytes(b"0")
    assert "Pictures in HEIC, to be saved as JPEG first, are not used: IMG_1.HEIC." in run_studio("check", folder).out
    phone = tmp_path / "phone"
    phone.mkdir()
    for name in ("IMG_1.HEIC", "IMG_2.heif"):
        (phone / name).write_bytes(b"0")
    for asked in (phone, phone / "IMG_1.HEIC"):
        said = run_studio("check", asked)
        assert "JPEG" in said.out + said.err
    refused = run_studio("check", phone)
    assert (refused.code, "holds no pictures but 2 in HEIC" in refused.err) == (2, True)


def test_a_folder_without_pictures_is_wrong_usage(run_studio, tmp_path: Path):
    said = run_studio("check", tmp_path)
    assert (said.code, "holds no pictures" in said.err) == (2, True)
