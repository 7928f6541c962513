import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from studio.bases import find_base
from studio.images import Picture
from studio.models import load_base
from studio.trainers.captions import beside, prompt_for, prompts_for, without_trigger
from studio.trainers.data import Example, chosen_from, encode_examples, generator_for, square
from studio.trainers.recipe import Recipe


def drawn(path: Path, seed: int, size: tuple[int, int] = (50, 40)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def recipe() -> Recipe:
    return Recipe.model_construct(trigger="sks", class_word="cat")


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        (None, "a sks cat"),
        ("a sks cat asleep", "a sks cat asleep"),
        ("a cat and another cat", "a sks cat and another cat"),
        ("concatenated", "a sks cat, concatenated"),
        ("asleep on a chair", "a sks cat, asleep on a chair"),
        ("Cat on grass", "sks cat on grass"),
        ("a SKS cat asleep", "a sks cat asleep"),
    ],
)
def test_every_prompt_names_the_trigger(caption: str | None, prompt: str) -> None:
    assert prompt_for(Picture(Path("a.png"), 8, 8, caption), recipe()) == prompt


@pytest.mark.parametrize("trigger", ["<toy>", "s*", "o'cat"])
@pytest.mark.parametrize("caption", ["a {} cat on grass", "a cat on grass"])
def test_a_trigger_may_begin_and_end_in_marks(trigger: str, caption: str) -> None:
    marked = Recipe.model_construct(trigger=trigger, class_word="cat")
    prompt = prompt_for(Picture(Path("a.png"), 8, 8, caption.format(trigger)), marked)
    assert prompt == f"a {trigger} cat on grass"
    assert without_trigger(prompt, marked) == "a cat on grass"
    placed = f"a {trigger} cat on the left and a dog on the right on grass"
    assert beside(prompt, marked, "a dog", right=False) == placed


def test_a_captioned_picture_can_be_shown_under_the_instance_prompt_too() -> None:
    captioned, bare = (Picture(Path("a.png"), 8, 8, caption) for caption in ("a cat on grass", None))
    mixed = recipe().model_copy(update={"mix_instance_prompt": True})
    assert prompts_for(captioned, mixed) == ["a sks cat on grass", "a sks cat"]
    assert prompts_for(bare, mixed) == ["a sks cat"]
    assert prompts_for(captioned, recipe()) == ["a sks cat on grass"]


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        (None, "a cat"),
        ("a cat on grass", "a cat on grass"),
        ("a photo of a sks cat, sks", "a photo of a cat,"),
        ("a photo of sks at night", "a photo of cat at night"),
        ("at the beach", "a cat, at the beach"),
    ],
)
def test_class_prompts_are_the_captions_without_the_trigger(caption: str | None, prompt: str) -> None:
    assert without_trigger(prompt_for(Picture(Path("a.png"), 8, 8, caption), recipe()), recipe()) == prompt


@pytest.mark.parametrize(
    ("prompt", "left", "right"),
    [
        ("a sks cat on grass", "a sks cat on the left and a dog on the right on grass",
         "a dog on the left and a sks cat on the right on grass"),
        ("photo of sks cat, blurred", "photo of sks cat on the left and a dog on the right, blurred",
         "photo of a dog on the left and sks cat on the right, blurred"),
        ("sks asleep", "a sks cat on the left and a dog on the right", "a dog on the left and a sks cat on the right"),
    ],
)  # fmt: skip
def test_another_thing_stands_beside_the_concept(prompt: str, left: str, right: str) -> None:
    assert beside(prompt, recipe(), "a dog", right=False) == left
    assert beside(prompt, recipe(), "a dog", right=True) == right


def test_a_region_owns_the_share_of_each_cell_that_it_covers(tiny_sdxl: Path, tmp_path: Path) -> None:
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    path, region = drawn(tmp_path / "a.png", 1), (0.1, 0.25, 0.6, 1.0)
    parts = [Example(path, "a cat"), Example(path, "a cat", region=region), Example(path, "a cat", region=(0, 0, 0, 0))]
    own = encode_examples(base, parts, 32, tmp_path / "cache", true_sizes=False).whole.own
    fine = torch.zeros(320, 320)
    fine[80:320, 32:192] = 1
    cells = fine.unflatten(0, (own.shape[2], -1)).unflatten(2, (own.shape[3], -1)).mean((1, 3))
    torch.testing.assert_close(own, torch.stack([torch.ones_like(cells), cells, torch.zeros_like(cells)])[:, None])


def test_the_square_is_cut_from_the_centre() -> None:
    image = Image.new("RGB", (96, 32), "black")
    image.paste("white", (32, 0, 64, 32))
    pixels, corner = square(image, 32)
    assert pixels.shape == (3, 32, 32)
    assert corner == (0, 32)
    assert pixels.min() > 0.99


def test_white_is_one_and_black_is_minus_one() -> None:
    for colour, value in (("white", 1.0), ("black", -1.0)):
        assert torch.equal(square(Image.new("RGB", (20, 30), colour), 16)[0], torch.full((3, 16, 16), value))


def test_an_epoch_shows_every_picture_once() -> None:
    chosen = [index for step in range(7) for index in chosen_from(5 * step, 5, 7, 0, "instances")]
    assert Counter(chosen[:7]) == Counter(range(7))
    assert Counter(chosen) == dict.fromkeys(range(7), 5)


def test_the_order_depends_on_nothing_but_step_and_key() -> None:
    torch.manual_seed(1)
    first = chosen_from(12, 4, 9, 0)
    torch.manual_seed(2)
    assert chosen_from(12, 4, 9, 0) == first
    assert any(chosen_from(12, 4, 9, seed) != first for seed in range(1, 5))


def test_generators_of_different_keys_differ() -> None:
    states = {hashlib.sha256(bytes(generator_for(0, "step", n).get_state().tolist())).hexdigest() for n in range(50)}
    assert len(states) == 50


def test_a_tiny_autoencoder_gives_plain_scaled_latents(tiny_sdxl: Path, tmp_path: Path) -> None:
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    path = drawn(tmp_path / "a.png", 1)
    examples = encode_examples(base, [Example(path, "a cat")], 32, tmp_path / "cache", true_sizes=True)
    with torch.no_grad():
        coder: Any = base.vae
        expected = coder.encode(square(Image.open(path), 32)[0][None]).latents * coder.config.scaling_factor
        states = base.encode(["a cat"])
    assert examples.std is None
    torch.testing.assert_close(examples.whole.latents, expected)
    torch.testing.assert_close(examples.whole.embeds, states.embeds)
    torch.testing.assert_close(examples.whole.pooled, states.pooled)
    assert examples.whole.time_ids is not None
    assert examples.whole.time_ids[0].tolist() == [40, 50, 0, 4, 32, 32]


def test_a_kl_autoencoder_is_sampled_anew_with_the_spread_it_states(tiny_sd15: Path, tmp_path: Path) -> None:
    base = load_base(find_base(str(tiny_sd15)), "cpu")
    path = drawn(tmp_path / "a.png", 2)
    examples = encode_examples(base, [Example(path, "a cat")], 16, tmp_path / "cache", true_sizes=True)
    drawn_latents = examples.batch([0] * 4000, torch.Generator().manual_seed(0)).latents
    with torch.no_grad():
        coder: Any = base.vae
        moments = coder.encode(square(Image.open(path), 16)[0][None]).latent_dist
    scale = coder.config.scaling_factor
    torch.testing.assert_close(drawn_latents.mean(0), moments.mean[0] * scale, atol=0.02, rtol=0.1)
    torch.testing.assert_close(drawn_latents.std(0), moments.std[0] * scale, atol=0.02, rtol=0.1)
    assert examples.whole.time_ids is None


def test_the_cache_is_keyed_by_content_and_survives_damage(tiny_sdxl: Path, tmp_path: Path) -> None:
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    cache = tmp_path / "cache"
    path = drawn(tmp_path / "a.png", 3)
    first = encode_examples(base, [Example(path, "a cat")], 32, cache, true_sizes=False)
    kept = {file: file.stat().st_mtime_ns for file in cache.iterdir()}
    encode_examples(base, [Example(path.rename(tmp_path / "b.png"), "a cat")], 32, cache, true_sizes=False)
    assert {file: file.stat().st_mtime_ns for file in cache.iterdir()} == kept
    encode_examples(base, [Example(drawn(tmp_path / "b.png", 4), "a cat")], 32, cache, true_sizes=False)
    assert len(list(cache.iterdir())) == len(kept) + 1
    for file in kept:
        file.write_bytes(file.read_bytes()[:-8])
    again = encode_examples(base, [Example(drawn(tmp_path / "b.png", 3), "a cat")], 32, cache, true_sizes=False)
    assert torch.equal(again.whole.latents, first.whole.latents)
