from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import tiny_recipe

from studio.events import Loss
from studio.home import Home
from studio.trainers.captions import WORDINGS, beside
from studio.trainers.dreambooth import train_concept
from studio.trainers.pairs import Cut, best_cut, best_standing, misplaced, moved, pasted
from studio.trainers.training import Drawn, Training

PAIRS = {"pair_share": 0.5, "pair_count": 4, "pair_prompts": ("a dog", "a red cat"), "batch_size": 2}


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Training, Drawn]]:
    """What every step of a training was made from."""
    seen: list[tuple[Training, Drawn]] = []
    loss = Training.loss

    def look(self: Training, drawn: Drawn) -> torch.Tensor:
        seen.append((self, drawn))
        return loss(self, drawn)

    monkeypatch.setattr(Training, "loss", look)
    return seen


def on_ground(width: int, left: int) -> Image.Image:
    """A red thing `width` px wide on 96 px of green ground."""
    picture = Image.new("RGB", (96, 96), "green")
    picture.paste("red", (left, 20, left + width, 72))
    return picture


@pytest.mark.parametrize(
    ("width", "left", "size"), [(44, 26, 1.0), (44, 30, 1.0), (60, 18, 0.75), (76, 10, 0.6), (92, 2, 0.6)]
)
def test_a_subject_is_pasted_as_large_as_half_a_scene_has_room_for(width: int, left: int, size: float) -> None:
    cut = best_cut(on_ground(width, left))
    assert cut.size == size
    assert abs(cut.middle - (left + width / 2) / 96) <= 4 / 96


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize(("width", "left"), [(44, 26), (44, 30), (40, 22)])
def test_the_subject_comes_into_its_half_by_whole_cells(width: int, left: int, right: bool) -> None:
    picture = on_ground(width, left)
    scene = Image.new("RGB", (96, 96), "black")
    made, region = pasted(scene, picture, best_cut(picture), right, 1 / 6)
    pixels = np.asarray(made).astype(int)
    red = np.flatnonzero((pixels[:, :, 0] > 200).any(0))
    edge = red[-1] if right else red[0]  # what the scene's edge may hide lies there
    assert width - len(red) <= (0.06 * 96 if edge in (0, 95) else 0)
    assert (red[0] - left) % 16 == 0 or red[0] == 0
    assert abs(red.mean() - (72 if right else 24)) < 16
    covered = np.flatnonzero((pixels.sum(2) > 0).any(0))
    assert (covered[0] / 96, (covered[-1] + 1) / 96) == (region[0], region[2])
    assert region[2] == 1 if right else region[0] == 0


def test_where_a_picture_stands_best_of_all_steps() -> None:
    for middle, right in product((0.42, 0.47, 0.5, 0.56), (False, True)):
        cut, goal = Cut(1.0, middle), 0.73 if right else 0.27
        spots = [middle + step / 6 for step in range(-6, 7) if 0.19 <= middle + step / 6 <= 0.81]
        assert middle + moved(cut, right, 1 / 6) == pytest.approx(min(spots, key=lambda spot: abs(spot - goal)))
        assert misplaced(cut, right, 1 / 6) == pytest.approx(min(abs(spot - goal) for spot in spots))


def test_two_pictures_at_least_stand_on_either_side_and_none_much_smaller() -> None:
    middles = {"a": (1.0, 0.47), "b": (1.0, 0.52), "c": (1.0, 0.48), "d": (0.6, 0.46), "e": (1.0, 0.43)}
    cuts = {Path(name): Cut(*one) for name, one in middles.items()}
    stands = {right: [str(path) for path in best_standing(cuts, right, 1 / 6)] for right in (False, True)}
    off = {n: {r: misplaced(cut, r, 1 / 6) for r in stands} for n, cut in zip(middles, cuts.values(), strict=True)}
    for right, names in stands.items():
        rest = set("abce") - set(names)
        assert len(names) >= 2
        assert "d" not in names
        assert max(off[n][right] for n in names) <= min(off[n][right] for n in rest)


def test_rather_none_is_scaled_down() -> None:
    cuts = {Path("a"): Cut(1.0, 0.46), Path("b"): Cut(1.0, 0.47), Path("scaled"): Cut(0.75, 0.42)}
    assert misplaced(cuts[Path("scaled")], False, 1 / 6) < misplaced(cuts[Path("a")], False, 1 / 6)
    assert best_standing(cuts, False, 1 / 6) == [Path("a"), Path("b")]


def test_what_is_taller_than_one_of_two_is_scaled_down() -> None:
    tall = on_ground(40, 28)
    tall.paste("red", (40, 4, 44, 72))
    assert best_cut(tall).size == 0.75


@pytest.mark.parametrize("left", [8, 26, 44])
def test_a_cut_lies_around_the_subject_wherever_it_stands_and_whatever_else_there_is(left: int) -> None:
    picture = on_ground(40, left)
    picture.paste("white", (50, 2, 70, 10))
    cut = best_cut(picture)
    assert cut.size == 1
    assert cut.middle == pytest.approx(max(0.25, (left + 20) / 96), abs=0.01)


def test_what_is_a_little_wider_than_half_a_scene_is_not_made_smaller() -> None:
    cut = best_cut(on_ground(52, 22))
    assert (cut.size, cut.width) == (1.0, 0.56)
    scene = Image.new("RGB", (96, 96), "black")
    made, _ = pasted(scene, on_ground(52, 22), cut, False, 1 / 6)
    red = np.flatnonzero((np.asarray(made)[:, :, 0] > 200).any(0))
    assert len(red) == 52


def test_a_prompt_says_in_several_ways_who_stands_where(home: Home, tiny_sdxl: Path) -> None:
    recipe = tiny_recipe(tiny_sdxl, home)
    said = [beside("a sks cat at night", recipe, "a red dog", right=True, wording=n) for n in range(len(WORDINGS))]
    assert "a sks cat on the right and a red dog on the left at night" in said
    assert "a red dog on the left and a sks cat on the right at night" in said
    assert "a red dog and a sks cat at night" in said


def test_a_large_or_wide_picture_is_scaled_and_what_it_does_not_reach_stays() -> None:
    picture = Image.new("RGB", (200, 160), "red")
    made, region = pasted(Image.new("RGB", (96, 96), "black"), picture, Cut(0.75, 0.5), False, 1 / 6)
    pixels = np.asarray(made).astype(int)
    left, top, right, bottom = (round(96 * one) for one in region)
    assert (top, bottom) == (12, 84)
    assert (pixels[top:bottom, left:right, 0] > 200).all()
    assert pixels.sum() == pixels[top:bottom, left:right].sum()


def test_half_of_the_instances_stand_beside_something(
    tiny_sdxl: Path, home: Home, drawings: list[tuple[Training, Drawn]]
) -> None:
    train_concept(tiny_recipe(tiny_sdxl, home, PAIRS | {"steps": 2, "prior_target": "base"}), home)
    for _, drawn in drawings:
        share = drawn.batch.own.mean((1, 2, 3)).tolist()
        assert share[0] == 1
        assert 0.25 < share[1] < 0.5
        assert share[2:] == [0, 0]


def test_of_a_masked_picture_beside_something_only_the_mask_is_learned(
    tiny_sdxl: Path, home: Home, drawings: list[tuple[Training, Drawn]]
) -> None:
    """The mask is a band over the whole width of the picture: so it is of what is pasted."""
    recipe = tiny_recipe(tiny_sdxl, home, PAIRS | {"steps": 2, "prior_target": "base"})
    train_concept(recipe, home)
    band = Image.new("L", (40, 32), 0)
    band.paste(255, (0, 8, 40, 24))
    for picture in (home.root / "pictures").glob("?.png"):
        band.save(picture.with_suffix(".mask.png"))
    train_concept(recipe.model_copy(update={"masked": True}), home, overwrite=True)
    whole, masked = (sum(drawn.batch.own[1].mean().item() for _, drawn in drawings[n : n + 2]) for n in (0, 2))
    assert masked == pytest.approx(whole / 2, rel=0.05)


def test_a_share_below_one_a_step_comes_every_few_steps(
    tiny_sdxl: Path, home: Home, drawings: list[tuple[Training, Drawn]]
) -> None:
    settings = PAIRS | {"steps": 8, "batch_size": 1, "pair_share": 0.25, "prior_preservation": False}
    train_concept(tiny_recipe(tiny_sdxl, home, settings), home)
    beside = [bool((drawn.batch.own == 0).any()) for _, drawn in drawings]
    assert beside == [False, False, False, True] * 2


def test_outside_its_half_the_target_is_the_bases_own_prediction(
    tiny_sdxl: Path, home: Home, drawings: list[tuple[Training, Drawn]]
) -> None:
    losses: list[float] = []
    settings = PAIRS | {"steps": 1, "prior_target": "base", "prior_weight": 2.0}
    recipe = tiny_recipe(tiny_sdxl, home, settings)
    train_concept(recipe, home, lambda event: losses.append(event.loss) if isinstance(event, Loss) else None)
    ((training, drawn),) = drawings
    batch, unet = drawn.batch, training.base.unet
    noisy = training.schedule.noisy(batch.latents, drawn.noise, drawn.timesteps)
    picture = training.schedule.target(batch.latents, drawn.noise, drawn.timesteps)
    unet.disable_adapters()

    def base(embeds: torch.Tensor, pooled: torch.Tensor | None) -> torch.Tensor:
        added = {"text_embeds": pooled, "time_ids": batch.time_ids}
        with torch.no_grad():
            return unet(noisy, drawn.timesteps, embeds, added_cond_kwargs=added).sample

    target = batch.own * picture + (1 - batch.own) * base(batch.plain_embeds, batch.plain_pooled)
    squares = (base(batch.embeds, batch.pooled) - target) ** 2  # the first step is taken from the base as it is
    assert losses[0] == pytest.approx((squares * (batch.own + 2 * (1 - batch.own)))[:2].mean().item(), rel=1e-4)


def test_the_other_half_follows_the_words_without_the_trigger(
    tiny_sdxl: Path, home: Home, drawings: list[tuple[Training, Drawn]]
) -> None:
    train_concept(tiny_recipe(tiny_sdxl, home, PAIRS | {"steps": 1}), home)
    ((training, drawn),) = drawings
    known = {
        prompt: training.base.encode([prompt]).embeds[0]
        for other in PAIRS["pair_prompts"]
        for prompt in (f"a cat on the left and {other} on the right", f"{other} on the left and a cat on the right")
    }
    assert any(torch.allclose(drawn.batch.plain_embeds[1], states, atol=1e-5) for states in known.values())
    assert not torch.allclose(drawn.batch.plain_embeds[1], drawn.batch.embeds[1], atol=1e-3)
