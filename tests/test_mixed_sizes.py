from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from soaking import soaked
from training_helpers import MIXED, SIZES, Halt, halting, same, shapes, tiny_recipe, weights

from studio.bases import find_base
from studio.errors import UsageError
from studio.events import Event, Notice, silent
from studio.home import Home
from studio.models import load_base
from studio.trainers.captions import pictures_of
from studio.trainers.data import Example, mask_share
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.processes import ALONE, Team
from studio.trainers.training import Training

FACTOR = 4  # pixels to a side of a latent


def prepared(base: Path, home: Home, changes: dict[str, Any]) -> Training:
    shapes(home)
    recipe = tiny_recipe(base, home, MIXED | changes)
    pictures = pictures_of(recipe)
    return _prepare(load_base(find_base(str(base)), "cpu"), recipe, pictures, home, silent, true_sizes=True)[0]


def test_every_picture_is_seen_equally_often_and_half_of_them_mirrored(tiny_sdxl: Path, home: Home) -> None:
    training = prepared(tiny_sdxl, home, {"flip": True, "gradient_accumulation": 2, "prior_preservation": False})
    vae: Any = diffusers.AutoencoderTiny.from_pretrained(tiny_sdxl / "vae")
    known: dict[tuple[str, bool], torch.Tensor] = {}
    for name, (width, height) in SIZES.items():
        if (width, height) != (90, 50):
            pixels = np.asarray(Image.open(home.root / "pictures" / f"{name}.png")) / 127.5 - 1
            for mirrored in (False, True):
                turned = torch.tensor(pixels[:, ::-1].copy() if mirrored else pixels).permute(2, 0, 1)[None].float()
                known[f"sks cat {name[-1]}", mirrored] = vae.encode(turned).latents[0] * vae.config.scaling_factor
    seen: Counter[tuple[str, bool | None]] = Counter()
    for step in range(12):  # of 4; an epoch has (5 + 3) * 2
        for drawn in training.draw(step):
            for prompt, latents in zip(drawn.batch.prompts, drawn.batch.latents, strict=True):
                near = [m for m in (False, True) if (prompt, m) in known and torch.allclose(
                    latents, known[prompt, m], atol=1e-4)]  # fmt: skip
                seen[prompt, near[0] if near else None] += 1
    expected = {(f"sks cat {n}", mirrored): 3 * times for n, times in zip("01235", (1, 1, 1, 1, 3), strict=True)
                for mirrored in (False, True)}  # fmt: skip
    assert seen == expected | {("sks cat 4", None): 6}


def test_no_tensor_mixes_sizes_and_each_picture_has_its_own_conditions(tiny_sdxl: Path, home: Home) -> None:
    training = prepared(tiny_sdxl, home, {"batch_size": 4})
    found: dict[str, set[tuple[float, ...]]] = {}
    rows: list[int] = []
    for drawn in training.draw(0) + training.draw(1):
        batch = drawn.batch
        assert batch.time_ids is not None
        assert drawn.noise.shape == batch.latents.shape
        assert batch.own.shape[2:] == batch.latents.shape[2:]
        for prompt, sizes in zip(batch.prompts, batch.time_ids.tolist(), strict=True):
            assert [FACTOR * side for side in batch.latents.shape[2:]] == sizes[4:]
            found.setdefault(prompt, set()).add(tuple(sizes))
        rows += drawn.rows
    assert sorted(rows) == sorted([*range(8), *range(8)])
    expected = {
        f"sks cat {name[-1]}": {(height, width, 0, 0, height, width)} for name, (width, height) in SIZES.items()
    }
    expected["sks cat 4"] = {(50, 90, 0, 3, 48, 80)}  # scaled by .96 to 86 x 48, of which 3 and 3 are cut off
    square = {(64, 64, 0, 0, 64, 64)}
    assert found == expected | {prompt: square for prompt in found if "sks" not in prompt}


def test_the_loss_of_a_mixed_batch_is_that_of_its_samples_one_by_one(tiny_sdxl: Path, home: Home) -> None:
    training = prepared(tiny_sdxl, home, {"batch_size": 8, "prior_weight": 0.7})
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
    scheduler: Any = diffusers.DDPMScheduler.from_config(training.base.scheduler.config)
    expected, sizes = 0.0, set()
    drawn = training.draw(0)
    for part in drawn:
        batch = part.batch
        sizes.add(part.noise.shape[2:])
        for n, row in enumerate(part.rows):
            one = slice(n, n + 1)
            noisy = scheduler.add_noise(batch.latents[one], part.noise[one], part.timesteps[one])
            target = scheduler.get_velocity(batch.latents[one], part.noise[one], part.timesteps[one])
            added = {"text_embeds": batch.pooled[one], "time_ids": batch.time_ids[one]}  # pyright: ignore
            with torch.no_grad():
                said = unet(noisy, part.timesteps[one], batch.embeds[one], added_cond_kwargs=added).sample
            expected += float((said - target).square().mean()) / 8 * (1 if row < 8 else 0.7)
    assert len(sizes) == 4

    def loss(rows: list[int]) -> float:
        return float(training.loss_of(drawn, rows))

    assert loss(list(range(16))) == pytest.approx(expected, rel=1e-5)
    for size in (2, 3):
        shares: list[list[int]] = []
        for rank in range(size):
            training.team = Team(rank, size)
            shares += training.micro_batches()
        assert sorted(row for share in shares for row in share) == list(range(16))
        assert {len(share) for share in shares} <= {16 // size, 16 // size + 1}
        assert sum(map(loss, shares)) / size == pytest.approx(expected, rel=1e-5)
    training.team = ALONE
    assert training.take_step() == pytest.approx(expected, rel=1e-5)


ALL: dict[str, Any] = {
    "flip": True, "dropout": 0.2, "noise_offset": 0.1, "prior_target": "base", "pair_share": 0.5, "pair_count": 3,
    "pair_prompts": ("a dog",),
}  # fmt: skip


@pytest.mark.parametrize("changes", [pytest.param({}, marks=soaked), ALL])
@pytest.mark.parametrize("base", ["tiny_sdxl", pytest.param("tiny_sd15", marks=soaked)])
def test_a_training_with_mixed_sizes_resumes_bit_for_bit(
    base: str, changes: dict[str, Any], homes: list[Home], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(base)
    changes = MIXED | {"resolution": 32, "gradient_accumulation": 3, "save_every": 3} | changes
    for home in homes:
        shapes(home)
    straight = train_concept(tiny_recipe(folder, homes[0], changes), homes[0])
    recipe = tiny_recipe(folder, homes[1], changes)
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(4))
    assert same(straight, train_concept(recipe, homes[1], resume=True))
    assert all(bool(tensor.isfinite().all()) for tensor in weights(straight).values())


def test_accumulated_mixed_sizes_equal_one_batch(tiny_sdxl: Path, homes: list[Home]) -> None:
    one, three = (
        weights(train_concept((shapes(home), tiny_recipe(tiny_sdxl, home, MIXED | {"steps": 2} | how))[1], home))
        for home, how in zip(homes, ({"batch_size": 3}, {"batch_size": 1, "gradient_accumulation": 3}), strict=True)
    )
    for name in one:
        torch.testing.assert_close(one[name], three[name], atol=2e-4, rtol=1e-3)


def test_square_pictures_train_the_same_with_buckets_and_without(tiny_sdxl: Path, homes: list[Home]) -> None:
    trained = []
    for home, buckets in zip(homes, (True, False), strict=True):
        shapes(home, ["0", "3_often/5"])
        trained.append(train_concept(tiny_recipe(tiny_sdxl, home, MIXED | {"buckets": buckets}), home))
    assert same(*trained)


def test_the_sizes_are_told_before_the_base_is_loaded(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []

    def load(*_: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("studio.trainers.dreambooth.load_base", load)
    shapes(home)
    with pytest.raises(KeyboardInterrupt):
        train_concept(tiny_recipe(tiny_sdxl, home, MIXED), home, told.append)
    assert Notice("2 pictures at 64 x 64, 2 at 80 x 48, 1 at 48 x 80, 1 at 128 x 32.") in told
    assert Notice("Subfolder 3_often: each picture (1) is shown 3 times in an epoch.") in told


def test_a_subfolder_that_counts_otherwise_is_noticed_by_a_resume(tiny_sdxl: Path, home: Home) -> None:
    folder = shapes(home)
    recipe = tiny_recipe(tiny_sdxl, home, MIXED | {"save_every": 2})
    with pytest.raises(Halt):
        train_concept(recipe, home, halting(4))
    (folder / "3_often").rename(folder / "4_often")
    with pytest.raises(UsageError, match="have changed"):
        train_concept(recipe, home, resume=True)


def test_a_mask_is_cut_and_mirrored_like_its_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (96, 48)).save(path)
    mask = Image.new("L", (96, 48), 0)
    mask.paste(255, (8, 0, 32, 24))  # of 80 x 48, from the left: 3 cells of 8 px in the upper half
    mask.save(tmp_path / "a.mask.png")
    expected = torch.zeros(1, 6, 10)
    expected[:, :3, :3] = 1
    torch.testing.assert_close(mask_share(Example(path, "a cat"), (80, 48), 6, 10), expected)
    mirrored = mask_share(Example(path, "a cat", mirrored=True), (80, 48), 6, 10)
    torch.testing.assert_close(mirrored, expected.flip(2))


def test_the_same_picture_at_another_size_or_mirrored_is_kept_apart(tiny_sdxl: Path, home: Home) -> None:
    shapes(home)
    kept: list[set[str]] = []
    for changes in ({"buckets": False}, {}, {"flip": True}):
        recipe = tiny_recipe(tiny_sdxl, home, MIXED | {"prior_preservation": False} | changes)
        base = load_base(find_base(str(tiny_sdxl)), "cpu")
        _prepare(base, recipe, pictures_of(recipe), home, silent, true_sizes=True)
        kept.append({path.name for path in (home.cache / "examples").iterdir()})
    assert [len(one) - len(kept[0]) for one in kept] == [0, 4, 4 + 6]  # two squares are the same
