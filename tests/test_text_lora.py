from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from training_helpers import Halt, halting, same, tiny_recipe, weights

from studio.adapters import load_concept
from studio.attaching import attach
from studio.bases import find_base
from studio.errors import UsageError
from studio.events import Notice
from studio.home import Home
from studio.models import load_base
from studio.trainers.dreambooth import train_concept
from studio.trainers.training import Training

TEXT = {"steps": 3, "text_rank": 3, "text_learning_rate": 0.02}
SAID = "a sks cat on grass"


@pytest.mark.parametrize("base", ["tiny_sdxl", "tiny_sd15"])
def test_plain_diffusers_and_the_studio_read_what_the_encoders_learned(
    base: str, home: Home, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(base)
    trained: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), trained.append(self))[0])
    told: list[str] = []
    listen = lambda event: told.append(event.message) if isinstance(event, Notice) else None  # noqa: E731
    concept = train_concept(tiny_recipe(folder, home, TEXT), home, listen)
    live = trained[0].base.encode([SAID])

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    more = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    plain = pipe.encode_prompt(SAID, **more)
    pipe.load_lora_weights(concept.adapter_file)
    loaded = pipe.encode_prompt(SAID, **more)
    fresh = load_base(find_base(str(folder)), "cpu")
    with attach(fresh, [(load_concept(concept), 1.0)]):
        attached = fresh.encode([SAID])
    torch.testing.assert_close(loaded[0], live.embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attached.embeds, live.embeds, atol=1e-5, rtol=1e-5)
    if live.pooled is not None and attached.pooled is not None:
        torch.testing.assert_close(loaded[2], live.pooled, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(attached.pooled, live.pooled, atol=1e-5, rtol=1e-5)
    assert (loaded[0] - plain[0]).abs().max() > 1e-3
    assert any("of rank 3 on" in line and "text encoders" in line for line in told)


def test_each_part_has_its_own_rate(tiny_sdxl: Path, homes: list[Home]) -> None:
    still, moved = (
        weights(train_concept(tiny_recipe(tiny_sdxl, home, TEXT | {"steps": 1, "text_learning_rate": rate}), home))
        for home, rate in zip(homes, (1e-9, 0.02), strict=True)
    )
    for name, tensor in moved.items():
        if name.startswith("text_encoder") and ".lora_B." in name:
            np.testing.assert_allclose(tensor.abs().max(), 0.02, rtol=0.05)  # a first step of AdamW is the rate
        elif name.startswith("unet"):
            torch.testing.assert_close(tensor, still[name])


def test_text_and_word_resume_bit_for_bit(tiny_sdxl: Path, homes: list[Home]) -> None:
    changes = TEXT | {"save_every": 2, "new_word": True, "trigger": "milo0", "steps": 4, "pair_share": 0.5}
    changes |= {"pair_prompts": ("a dog",), "pair_count": 2, "prior_target": "base", "gradient_accumulation": 2}
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], changes), homes[0])

    recipe = tiny_recipe(tiny_sdxl, homes[1], changes)
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(3))
    assert same(straight, train_concept(recipe, homes[1], resume=True))


def test_methods_without_a_part_for_text_refuse_it(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="text_rank says nothing to the method krona"):
        tiny_recipe(tiny_sdxl, home, {"method": "krona", "factors": (2, 2), "text_rank": 2})
