from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import Halt, draw_pictures, halting, same, tiny_recipe

from studio.errors import UsageError
from studio.events import Event, Notice
from studio.home import Home
from studio.images import check_masks, find_pictures, load_mask
from studio.trainers.data import Example, mask_share
from studio.trainers.dreambooth import train_concept
from studio.trainers.training import Drawn, Training


@pytest.fixture
def photos(home: Home) -> Path:
    """Three pictures of 40 x 32 px; of 0.png and 1.png the left half is meant, by a file and by alpha."""
    folder = draw_pictures(home.root / "pictures")
    half = Image.new("L", (40, 32), 0)
    half.paste(255, (0, 0, 20, 32))
    half.save(folder / "0.mask.png")
    clear = Image.open(folder / "1.png").convert("RGBA")
    clear.putalpha(half)
    clear.save(folder / "1.png")
    return folder


def test_masks_are_no_pictures_and_may_be_alpha_channels(photos: Path) -> None:
    pictures = find_pictures(photos)
    assert [picture.path.name for picture in pictures] == ["0.png", "1.png", "2.png"]
    masks = [load_mask(picture.path) for picture in pictures]
    assert masks[2] is None
    for mask in masks[:2]:
        assert mask is not None
        assert np.asarray(mask)[:, :20].min() == 255 == 255 - np.asarray(mask)[:, 20:].max()
    assert check_masks(pictures) == ["2.png"]


def test_a_cell_counts_by_how_much_of_it_the_mask_covers(photos: Path) -> None:
    """The square of 32 px cuts 4 px off at either side: 16 px of 32 are meant, 2 cells of 8 px in either row."""
    expected = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 4, 4)
    torch.testing.assert_close(mask_share(Example(photos / "0.png", ""), (32, 32), 4, 4), expected)
    coarse = torch.tensor([1.0, 0.5, 0.0]).expand(1, 3, 3)  # cells of 10 to 11 px: the middle one is covered by half
    torch.testing.assert_close(mask_share(Example(photos / "0.png", ""), (32, 32), 3, 3), coarse, atol=0.06, rtol=0)
    assert mask_share(Example(photos / "2.png", ""), (32, 32), 4, 4).eq(1).all()


def test_outside_its_mask_a_picture_is_not_learned(
    tiny_sdxl: Path, home: Home, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Drawn] = []
    loss = Training.loss
    monkeypatch.setattr(Training, "loss", lambda self, drawn: (seen.append(drawn), loss(self, drawn))[1])
    told: list[Event] = []
    train_concept(tiny_recipe(tiny_sdxl, home, {"masked": True, "batch_size": 3, "steps": 1}), home, told.append)
    shares = sorted(seen[0].batch.own[:3].mean((1, 2, 3)).tolist())
    assert shares == pytest.approx([0.5, 0.5, 1.0])
    assert Notice("Pictures without a mask are learned as a whole: 2.png.") in told


def test_a_mask_of_all_is_no_mask(tiny_sdxl: Path, tmp_path: Path) -> None:
    trained = []
    for masked in (False, True):
        home = Home(tmp_path / str(masked))
        folder = home.root / "pictures"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(folder / "x.png")
        Image.new("L", (32, 32), 255).save(folder / "x.mask.png")
        trained.append(train_concept(tiny_recipe(tiny_sdxl, home, {"masked": masked, "steps": 2}), home))
    assert same(*trained)


def test_an_edited_mask_is_noticed_by_a_resume(tiny_sdxl: Path, home: Home, photos: Path) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"masked": True, "save_every": 1})
    with pytest.raises(Halt):
        train_concept(recipe, home, halting(2))
    Image.new("L", (40, 32), 255).save(photos / "0.mask.png")
    with pytest.raises(UsageError, match="have changed"):
        train_concept(recipe, home, resume=True)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("L", (40, 32), 0), "0.mask.png is black"),
        (Image.new("L", (10, 10), 255), "has 10 x 10 pixels, its picture 40 x 32"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_refused(photos: Path, mask: Image.Image, said: str) -> None:
    mask.save(photos / "0.mask.png")
    with pytest.raises(UsageError, match=said):
        check_masks(find_pictures(photos))


@pytest.mark.parametrize("broken", ["0.mask.png", "1.png"])
def test_a_mask_that_cannot_be_read_is_named(photos: Path, broken: str) -> None:
    (photos / broken).write_bytes(b"no picture")
    with pytest.raises(UsageError, match=f"{broken} cannot be read"):
        load_mask(photos / f"{broken[0]}.png")


def test_no_mask_at_all_is_refused(home: Home) -> None:
    with pytest.raises(UsageError, match="No picture has a mask"):
        check_masks(find_pictures(draw_pictures(home.root / "pictures")))
