"""docs/settings.md says what the recipe, the command and the presets say."""

import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from studio.home import Home
from studio.trainers.planning import plan_recipe
from studio.trainers.recipe import Recipe

FILE = Path(__file__).parents[1] / "docs" / "settings.py"
spec = importlib.util.spec_from_file_location("settings_page", FILE)
assert spec is not None
assert spec.loader is not None
settings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(settings)


def test_the_page_is_up_to_date() -> None:
    text = FILE.with_suffix(".md").read_text(encoding="utf-8")
    assert text == settings.page(), "settings differ from docs/settings.md: make tables"


@pytest.mark.parametrize("name", Recipe.model_fields)
def test_every_setting_has_a_description(name: str) -> None:
    assert any(name in section for section in settings.MEANINGS.values()), f"Recipe.{name} has no description"


def test_nothing_is_described_that_is_no_setting() -> None:
    assert {name for section in settings.MEANINGS.values() for name in section} == set(Recipe.model_fields)
    assert set(settings.CHOSEN) <= set(Recipe.model_fields)


def test_a_setting_without_a_description_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(settings.MEANINGS["Steps"], "seed")
    with pytest.raises(ValueError, match=r"Recipe\.seed has no description"):
        settings.page()


@pytest.mark.parametrize("method", ["lora", "krona", "b-lora"])
def test_the_defaults_of_small_bases_are_what_a_plan_on_picturebook_has(
    method: str, home: Home, tmp_path: Path
) -> None:
    given = {"pictures": tmp_path, "name": "milo", "class_word": "cat", "method": method, "preset": "normal"}
    recipe = plan_recipe(given, None, home)
    for name in set(Recipe.model_fields) - set(settings.CHOSEN):
        usual, *others = settings.default(name, own=True).split("; ")
        listed = dict(one.split(": ") for one in others).get(method, usual)
        values = listed.split(" / ")
        assert values[len(values) // 2] == settings.shown(getattr(recipe, name)), name


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int | None, Field(ge=1, le=8)], "whole number ≥ 1, ≤ 8"),
        (Literal["a", "b"], "`a`, `b`"),
        (tuple[str, ...], "texts"),
        (tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], "two: number > 0"),
    ],
)
def test_what_a_setting_takes(kind: object, words: str) -> None:
    assert settings.takes(kind) == words


def test_options_are_those_of_the_command() -> None:
    options = settings.command_options()
    assert (options["learning_rate"], options["new_word"]) == ("`--lr`", "`--new-word`, `--known-word`")
