from pathlib import Path
from typing import Any

import pytest
from training_helpers import draw_pictures, tiny_recipe, weights

from studio.adapters import load_concept
from studio.bases import SDXL_BLOCKS
from studio.blora import half_of
from studio.errors import UsageError
from studio.events import Notice
from studio.home import Home
from studio.trainers.dreambooth import train_concept

ONE: dict[str, Any] = {"method": "b-lora", "steps": 2}


def test_only_the_attention_of_the_two_blocks_is_trained_and_splits_without_a_rest(tiny_sdxl: Path, home: Home) -> None:
    concept = train_concept(tiny_recipe(tiny_sdxl, home, ONE), home)
    layers = {name.removeprefix("unet.").rpartition(".lora_")[0] for name in weights(concept)}
    inside = {layer.partition(".transformer_blocks.")[0] for layer in layers}
    assert inside == set(SDXL_BLOCKS.values())
    kinds = {layer.partition(".attn")[2].partition(".")[2] for layer in layers}
    assert kinds == {"to_k", "to_q", "to_v", "to_out.0"}
    adapter = load_concept(concept)
    content, style = half_of(adapter, "content"), half_of(adapter, "style")
    assert content.notice() is style.notice() is None
    assert len(content.adapter.layers) + len(style.adapter.layers) == len(layers)


def test_one_picture_is_enough_for_it(tiny_sdxl: Path, home: Home) -> None:
    picture = draw_pictures(home.root / "pictures", 1) / "0.png"
    told: dict[str, list[str]] = {"b-lora": [], "lora": []}
    for method, notices in told.items():
        recipe = tiny_recipe(tiny_sdxl, home, {"method": method, "name": method, "pictures": picture, "steps": 1})
        train_concept(recipe, home, lambda e, n=notices: n.append(e.message) if isinstance(e, Notice) else None)
    assert not any("one picture only" in said for said in told["b-lora"])
    assert any("one picture only" in said for said in told["lora"])


def test_the_authors_recipe_holds_at_full_size(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"method": "b-lora"})
    assert (recipe.prior_preservation, recipe.pair_share, recipe.new_word) == (False, 0, False)
    assert recipe.blocks == tuple(SDXL_BLOCKS.values())


def test_a_base_without_such_blocks_is_refused(tiny_sd15: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="no block is known"):
        tiny_recipe(tiny_sd15, home, ONE)


def test_a_block_that_is_not_there_is_named(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="no block called"):
        train_concept(tiny_recipe(tiny_sdxl, home, {"blocks": ("up_blocks.7",)}), home)
    assert not any(home.library.glob("*"))
