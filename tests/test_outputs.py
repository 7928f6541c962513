import hashlib
import json

import pytest
from PIL import Image

from studio.bases import BaseSource
from studio.concepts import Concept
from studio.errors import StudioError, UsageError
from studio.pipelines.outputs import describe, output_folder, save_pictures, slug
from studio.pipelines.settings import GenerateSettings

SOURCE = BaseSource("picturebook", "somewhere", "folder", "sdxl")
PICTURES = [Image.new("RGB", (32, 16), colour) for colour in ("red", "blue")]


def test_pictures_tell_how_they_were_made(tmp_path):
    (tmp_path / "adapter.safetensors").write_bytes(b"weights")
    milo = Concept("milo", "sks", "cat", "picturebook", "sdxl", "lora", tmp_path)
    settings = GenerateSettings("<milo> à la plage", negative_prompt="night", steps=7, guidance=3.0, seed=5)
    paths = save_pictures(PICTURES, tmp_path / "out", describe(settings, SOURCE, [(milo, 0.8)]))
    told = [json.loads(Image.open(path).info["studio"]) for path in paths]
    assert [path.name for path in paths] == ["milo-a-la-plage-5.png", "milo-a-la-plage-6.png"]
    assert [one["seed"] for one in told] == [5, 6]
    concept = {"name": "milo", "phrase": "sks cat", "strength": 0.8, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert told[0]["concepts"] == [concept]
    expected = {"prompt": "<milo> à la plage", "negative_prompt": "night", "steps": 7, "guidance": 3.0}
    expected |= {"scheduler": "default", "base": "picturebook", "family": "sdxl", "width": 32, "height": 16}
    assert expected.items() <= told[0].items()


def test_no_picture_is_written_over_another(tmp_path):
    description = describe(GenerateSettings("a cat"), SOURCE, [])
    first = save_pictures(PICTURES, tmp_path, description)
    second = save_pictures(PICTURES[::-1], tmp_path, description)
    assert len({*first, *second}) == 4
    assert Image.open(first[0]).getpixel((0, 0)) == (255, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-cat-0-2.png",
        "a-cat-0.png",
        "a-cat-1-2.png",
        "a-cat-1.png",
    ]


def test_a_full_disk_leaves_no_half_picture(tmp_path, monkeypatch):
    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StudioError, match="No space left"):
        save_pictures(PICTURES, tmp_path, describe(GenerateSettings("a cat"), SOURCE, []))
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_named_by_day_and_prompt_unless_given(home, tmp_path):
    folder = output_folder(home, None, "A cat!")
    assert folder.parent == home.outputs
    assert folder.name.endswith("-a-cat")
    assert output_folder(home, tmp_path / "new", "x").is_dir()


def test_an_output_that_cannot_be_written_is_refused(home, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        output_folder(home, tmp_path / "file", "x")
    with pytest.raises(UsageError, match="is the name of a picture"):
        output_folder(home, tmp_path / "cat.png", "x")
    with pytest.raises(StudioError, match="Cannot write"):
        output_folder(home, tmp_path / "file" / "below", "x")


@pytest.mark.parametrize(
    ("prompt", "name"), [("", "picture"), ("猫", "picture"), ("../../etc", "etc"), ("x" * 300, "x" * 40)]
)
def test_any_prompt_makes_a_safe_name(prompt, name):
    assert slug(prompt) == name
