import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from studio.bases import BaseSource
from studio.concepts import ADAPTER_FILE, Concept, write_concept
from studio.errors import UsageError
from studio.home import Home
from studio.trainers.planning import plan_recipe, resumed_recipe
from studio.trainers.presets import PRESETS, defaults, free_trigger, read_facts
from studio.trainers.recipe import build_recipe, write_toml

GIVEN = {"name": "milo", "class_word": "cat", "pictures": "pictures"}


@pytest.fixture
def own_base(tiny_sdxl: Path, tmp_path: Path) -> str:
    """A base with facts about itself, as picturebook has them."""
    folder = shutil.copytree(tiny_sdxl, tmp_path / "own")
    facts = {"identifiers": ["uvu", "xax"], "native_size": 32, "prior_prompts": ["a {class_word}", "a dog"]}
    (folder / "studio_base.json").write_text(json.dumps(facts), encoding="utf-8")
    return str(folder)


def keep(home: Home, name: str, trigger: str) -> None:
    folder = home.library / name
    folder.mkdir(parents=True)
    (folder / ADAPTER_FILE).touch()
    write_concept(Concept(name, trigger, "dog", "picturebook", "sdxl", "lora", folder))


@pytest.mark.parametrize(
    ("given", "share"),
    [({}, 0.5), ({"class_word": "style"}, 0.0)],
)
def test_small_bases_learn_subjects_beside_something_else(own_base: str, home: Home, given: dict, share: float) -> None:
    assert plan_recipe(GIVEN | {"base": own_base} | given, None, home).pair_share == share


def test_preset_then_file_then_command_line(own_base: str, home: Home, tmp_path: Path) -> None:
    config = tmp_path / "r.toml"
    config.write_text(f"base = '{own_base}'\nrank = 3\nsteps = 11\npictures = 'p'\n", encoding="utf-8")
    recipe = plan_recipe(GIVEN | {"steps": 7}, config, home)
    assert (recipe.steps, recipe.rank, recipe.alpha, recipe.resolution) == (7, 3, 3.0, 32)
    assert recipe.prior_prompts == ("a cat", "a dog")
    assert recipe.instance_prompt == "a milo0 cat"
    assert recipe.pictures.is_absolute()


def test_each_concept_gets_an_identifier_of_its_own(own_base: str, home: Home) -> None:
    keep(home, "rex", "uvu")
    known = GIVEN | {"base": own_base, "new_word": False}
    assert plan_recipe(known, None, home).trigger == "xax"
    assert plan_recipe(known | {"name": "rex"}, None, home).trigger == "uvu"
    assert plan_recipe(known | {"trigger": "mine"}, None, home).trigger == "mine"


def test_a_small_base_gets_a_new_word_unless_the_trigger_is_one_that_it_knows(own_base: str, home: Home) -> None:
    plans = [plan_recipe(GIVEN | {"base": own_base, **more}, None, home) for more in ({}, {"trigger": "uvu"})]
    assert [(plan.trigger, plan.new_word) for plan in plans] == [("milo0", True), ("uvu", False)]


@pytest.mark.parametrize("rank", [-3, "many"])
def test_a_wrong_rank_is_said_of_the_rank_alone(own_base: str, home: Home, rank: object) -> None:
    with pytest.raises(UsageError, match="rank is") as refused:
        plan_recipe(GIVEN | {"base": own_base, "rank": rank}, None, home)
    assert "alpha" not in refused.value.problem


def test_identifiers_that_are_all_taken(own_base: str, home: Home) -> None:
    facts = read_facts(BaseSource("own", own_base, "folder", "sdxl"))
    with pytest.raises(UsageError, match="All 2 identifiers"):
        free_trigger(facts, {"uvu", "xax"})


@pytest.mark.parametrize(
    ("key", "said"),
    [("name", "The name is"), ("class_word", "The class word is"), ("pictures", "The pictures are")],
)
def test_what_is_missing_is_asked_for(key: str, said: str, home: Home) -> None:
    with pytest.raises(UsageError, match=f"{said} missing"):
        plan_recipe({name: value for name, value in GIVEN.items() if name != key}, None, home)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_preset_is_a_whole_recipe(preset: str, family: str) -> None:
    source = BaseSource("x/y", "x/y", "hub", family)  # type: ignore[arg-type]
    facts = read_facts(source)
    chosen = defaults(source, facts, preset, "cat", "sks", "lora")
    recipe = build_recipe([chosen, GIVEN, {"trigger": "sks", "base": "x/y"}])
    assert recipe.resolution == {"sd15": 512, "sdxl": 1024}[family]


def test_a_folder_tells_its_own_size(tiny_sd15: Path) -> None:
    assert read_facts(BaseSource("tiny", str(tiny_sd15), "folder", "sd15")).native_size == 16


def test_an_unknown_preset_is_refused(own_base: str, home: Home) -> None:
    with pytest.raises(UsageError, match="'fast'"):
        plan_recipe(GIVEN | {"base": own_base, "preset": "fast"}, None, home)


def test_nothing_to_resume_is_said(home: Home) -> None:
    with pytest.raises(UsageError, match="no interrupted training of 'milo'"):
        resumed_recipe({"name": "milo"}, None, home)


def test_what_is_said_on_resuming_holds_from_every_folder(
    own_base: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = plan_recipe(GIVEN | {"base": own_base, "pictures": tmp_path / "photos"}, None, home)
    write_toml(recipe, home.library / f".training-{recipe.name}" / "recipe.toml")
    monkeypatch.chdir(tmp_path)
    again = {"name": recipe.name, "pictures": Path("photos"), "base": os.path.relpath(own_base)}
    assert resumed_recipe(again, None, home) == recipe


@pytest.mark.parametrize("rank", [8, 8.0, "8"])
def test_the_scale_stays_however_a_rank_is_written(own_base: str, home: Home, rank: object) -> None:
    recipe = plan_recipe(GIVEN | {"base": own_base, "rank": rank}, None, home)
    assert (recipe.rank, recipe.alpha) == (8, 8.0)


def test_a_short_training_does_not_end_while_it_warms_up(tiny_sdxl: Path, home: Home) -> None:
    usual = plan_recipe(GIVEN | {"base": str(tiny_sdxl)}, None, home)
    assert usual.warmup_steps > 3
    assert plan_recipe(GIVEN | {"base": str(tiny_sdxl), "steps": 30}, None, home).warmup_steps == 3
    assert plan_recipe(GIVEN | {"base": str(tiny_sdxl), "steps": 30, "warmup_steps": 9}, None, home).warmup_steps == 9


def test_planning_needs_no_torch() -> None:
    code = "import sys, studio.trainers.planning, studio.ui.cmd_train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_base_in_a_relative_folder_is_kept_as_an_absolute_path(
    own_base: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(own_base).parent)
    recipe = plan_recipe(GIVEN | {"base": Path(own_base).name}, None, home)
    assert recipe.base == own_base


@pytest.mark.parametrize(
    ("vram", "expected"),
    [(8, (True, True)), (10, (True, True)), (12, (True, False)), (23, (True, False)), (48, (False, False))],
)
def test_a_gpus_size_chooses_what_saves_memory(
    tiny_sdxl: Path, home: Home, vram: int, expected: tuple[bool, bool]
) -> None:
    recipe = plan_recipe(GIVEN | {"base": str(tiny_sdxl)}, None, home, vram)
    assert (recipe.gradient_checkpointing, recipe.offload) == expected


def test_what_is_said_outweighs_a_gpus_size(tiny_sdxl: Path, home: Home) -> None:
    recipe = plan_recipe(GIVEN | {"base": str(tiny_sdxl), "offload": False}, None, home, 8)
    assert not recipe.offload


def test_settings_for_a_gpu_that_help_nobody_are_refused(own_base: str, tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="From 8 GB on"):
        plan_recipe(GIVEN | {"base": str(tiny_sdxl)}, None, home, 4)
    with pytest.raises(UsageError, match="for bases of full size"):
        plan_recipe(GIVEN | {"base": own_base}, None, home, 8)
    with pytest.raises(UsageError, match="offload keeps the text encoders off the device"):
        plan_recipe(GIVEN | {"base": str(tiny_sdxl), "text_rank": 4}, None, home, 8)


@pytest.mark.parametrize("method", ["lora", "krona", "lokr", "loha", "oft"])
def test_the_recipe_of_a_concept_is_one_again(own_base: str, home: Home, tmp_path: Path, method: str) -> None:
    planned = plan_recipe(GIVEN | {"base": own_base, "method": method}, None, home)
    write_toml(planned, tmp_path / "recipe.toml")
    assert plan_recipe({}, tmp_path / "recipe.toml", home) == planned
