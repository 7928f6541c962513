"""A file may hold convolutions stronger than they were trained: the training itself does not change."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import tiny_recipe

from studio.adapters import Adapter, load_concept
from studio.bases import EMBEDDED
from studio.errors import UsageError
from studio.events import Event, Loss
from studio.home import Home
from studio.trainers.dreambooth import train_concept
from studio.trainers.planning import plan_recipe
from studio.trainers.recipe import Recipe

KINDS: list[dict[str, Any]] = [
    {"rank_stabilised": True, "ema": 0.5, "new_word": True},
    {"text_rank": 2, "init": "orthogonal"},
    {"optimizer": "adamw-schedule-free"},
    {"method": "krona", "factors": (4, 2)},
]
BOTH = {"targets": ("to_q", "conv1"), "steps": 3}


def trained(base: Path, home: Home, changes: dict[str, Any]) -> tuple[Adapter, list[float]]:
    losses: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, Loss):
            losses.append(event.loss)

    recipe = tiny_recipe(base, home, BOTH | changes)
    return load_concept(train_concept(recipe, home, listen, overwrite=True)), losses


@pytest.mark.parametrize("changes", KINDS)
def test_convolutions_in_the_file_are_so_many_times_what_was_trained_and_nothing_else_is(
    tiny_sdxl: Path, home: Home, changes: dict[str, Any]
) -> None:
    if changes.get("optimizer"):
        pytest.importorskip("schedulefree")
    plain, losses = trained(tiny_sdxl, home, changes)
    strong, same_losses = trained(tiny_sdxl, home, changes | {"conv_strength": 1.5})
    assert same_losses == losses
    assert strong.factors.keys() == plain.factors.keys()
    for layer in plain.factors:
        times = 1.5 if layer.endswith("conv1") else 1.0
        torch.testing.assert_close(strong.delta(layer), times * plain.delta(layer), rtol=1e-5, atol=1e-8)
        assert plain.delta(layer).any()
    for token, rows in plain.embeddings.items():
        assert all(torch.equal(strong.embeddings[token][part], row) for part, row in rows.items())
    assert strong.metadata["studio.conv_strength"] == "1.5"
    assert "studio.conv_strength" not in plain.metadata


def planned(home: Home, **given: Any) -> Recipe:
    (home.root / "pictures").mkdir(parents=True, exist_ok=True)
    known = {"name": "milo", "class_word": "cat", "pictures": home.root / "pictures", "base": EMBEDDED}
    return plan_recipe(known | given, None, home)


@pytest.mark.parametrize(
    ("given", "strength"),
    [
        ({}, 1.3),
        ({"preset": "quick"}, 1.3),
        ({"conv_strength": 1.1}, 1.1),
        ({"preset": "best"}, 1.0),
        ({"class_word": "style"}, 1.0),
        ({"method": "b-lora"}, 1.0),
        ({"method": "krona"}, 1.0),
        ({"method": "lokr"}, 1.0),
        ({"method": "oft"}, 1.0),
        ({"dora": True}, 1.0),
        ({"init": "pissa"}, 1.0),
        ({"targets": ("to_q",)}, 1.0),
    ],
)
def test_subjects_on_small_bases_are_written_stronger_where_that_was_measured(
    home: Home, given: dict[str, Any], strength: float
) -> None:
    assert planned(home, **given).conv_strength == strength


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "loha"}, "conv_strength says nothing to the method loha"),
        ({"method": "oft"}, "conv_strength says nothing to the method oft"),
        ({"dora": True}, "with dora layers have the strength that they were trained at"),
        ({"init": "olora"}, "with init olora layers have the strength"),
        ({"conv_strength": 0}, "conv_strength is 0; it must be more than 0"),
        ({"conv_strength": 9}, "conv_strength is 9; it must be at most 4"),
    ],
)
def test_where_there_is_no_such_thing_it_is_refused(home: Home, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        planned(home, **{"conv_strength": 1.2} | given)


def test_where_no_convolution_is_trained_it_is_refused(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="no convolution is trained"):
        trained(tiny_sdxl, home, {"targets": ("to_q",), "conv_strength": 1.5})
