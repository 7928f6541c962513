from pathlib import Path
from typing import Any

import pytest

from studio.errors import UsageError
from studio.trainers.recipe import Recipe, build_recipe, read_toml, write_toml

GIVEN: dict[str, Any] = {
    "name": "milo",
    "pictures": "pictures",
    "class_word": "cat",
    "trigger": "sks",
    "base": "picturebook",
    "rank": 4,
    "alpha": 8,
    "steps": 10,
    "learning_rate": 1e-3,
    "batch_size": 2,
    "resolution": 96,
    "prior_count": 4,
    "prior_prompts": ["a cat"],
    "save_every": 5,
    "sample_every": 0,
    "sample_prompts": [],
    "guidance": 4.0,
}


def test_later_layers_win() -> None:
    assert build_recipe([GIVEN, {"steps": 20}, {"steps": 30}]).steps == 30


def test_toml_round_trip_is_exact(tmp_path: Path) -> None:
    recipe = build_recipe([GIVEN | {"pictures": tmp_path / "pictures", "learning_rate": 1 / 3}])
    write_toml(recipe, tmp_path / "recipe.toml")
    assert Recipe(**read_toml(tmp_path / "recipe.toml")) == recipe


def test_relative_pictures_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('pictures = "cats"', encoding="utf-8")
    assert read_toml(tmp_path / "r.toml")["pictures"] == tmp_path / "cats"


def test_an_unknown_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("learning_rat = 1e-3", encoding="utf-8")
    with pytest.raises(UsageError, match=r"'learning_rat'; did you mean 'learning_rate'\?"):
        read_toml(tmp_path / "r.toml")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("steps", 0, "steps is 0; it must be at least 1."),
        ("steps", -5, "steps is -5; it must be at least 1."),
        ("rank", 0, "rank is 0; it must be at least 1."),
        ("learning_rate", 0, "learning_rate is 0; it must be more than 0."),
        ("method", "lara", "method is 'lara'; it must be one of 'lora', 'krona', 'b-lora', 'lokr', 'loha' or 'oft'."),
        ("targets", [], "targets is empty."),
        ("trigger", "", "trigger is empty."),
        ("steps", "many", "steps is 'many'; input should be a valid integer"),
    ],
)
def test_mistakes_are_told_in_plain_sentences(key: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError) as refusal:
        build_recipe([GIVEN, {key: value}])
    assert sentence in refusal.value.problem
    assert "pydantic" not in str(refusal.value).lower()


def test_pictures_of_two_need_something_to_stand_beside() -> None:
    with pytest.raises(UsageError, match="pair_prompts names nothing"):
        build_recipe([GIVEN, {"pair_share": 0.5}])


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as refusal:
        build_recipe([GIVEN, {"steps": 0, "rank": 0}])
    assert refusal.value.problem.count("must be at least") == 2


@pytest.mark.parametrize("name", ["../up", "a" * 300, "con", "a/b", ""])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        build_recipe([GIVEN, {"name": name}])


def test_broken_toml_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("steps = = 3", encoding="utf-8")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_toml(tmp_path / "r.toml")
    with pytest.raises(UsageError, match="Cannot read"):
        read_toml(tmp_path / "absent.toml")
