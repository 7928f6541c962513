"""What papers ask, counted by brute force."""

from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

import pytest

from studio.concepts import Concept
from studio.pipelines.evaluation_plan import called
from studio.pipelines.protocols import CATEGORIES, columns, composlora_sets, dreambooth, of_category, plain

MILO = Concept("milo", "sks", "cat", "picturebook", "sdxl", "lora", Path("milo"))
REALITY = {"character": 3, "clothing": 2, "style": 2, "background": 2, "object": 2}  # ComposLoRA's, each of two kinds
TESTBED = {name: [f"{name} {n}" for n in range(count)] for name, count in REALITY.items()}


def test_dreambooth_has_25_prompts_that_differ_and_all_name_the_concept():
    prompts = dreambooth(MILO)
    assert len(prompts) == len(set(prompts)) == 25
    assert all("<milo>" in prompt for prompt in prompts)


def test_what_lives_is_dressed_and_a_thing_is_placed():
    living, thing = set(dreambooth(MILO)), set(dreambooth(replace(MILO, class_word="backpack")))
    assert len(living & thing) == 15
    assert "a <milo> wearing a santa hat" in living - thing
    assert "a <milo> floating on top of water" in thing - living


def test_composlora_has_24_72_96_and_48_sets_of_a_style():
    sizes = [len(one) for one in composlora_sets(TESTBED)]
    assert {size: sizes.count(size) for size in sizes} == {2: 24, 3: 72, 4: 96, 5: 48}


def test_sets_are_those_of_brute_force():
    everyone = list(chain(*TESTBED.values()))

    def right(names: tuple[str, ...]) -> bool:
        kinds = [name.split()[0] for name in names]
        return len(set(kinds)) == len(kinds) and "character" in kinds

    brute = {names for size in range(2, 6) for names in combinations(everyone, size) if right(names)}
    assert {tuple(sorted(one, key=everyone.index)) for one in composlora_sets(TESTBED)} == brute


def test_sets_name_their_members_in_the_order_of_the_categories():
    for names in composlora_sets(TESTBED):
        places = [CATEGORIES.index(name.split()[0]) for name in names]
        assert places == sorted(places)


def test_a_library_is_sorted_by_its_tags():
    neon = replace(MILO, name="neon", tags=("bright", "style"))
    assert of_category([replace(MILO, tags=("character",)), neon, replace(MILO, name="none")]) == {
        "character": ["milo"],
        "style": ["neon"],
    }


def test_a_prompt_is_read_without_triggers():
    assert plain("a <milo> and a <rex>", {"milo": "cat", "rex": "dog"}) == "a cat and a dog"


def test_columns_share_the_canvas():
    boxes = list(columns(["a", "b", "c"]).boxes.values())
    assert sum(box.right - box.left for box in boxes) == 1
    assert [box.left for box in boxes] == [0, *(box.right for box in boxes[:-1])]


@pytest.mark.parametrize(
    ("caption", "prompt"),
    [
        (None, "a <milo>"),
        ("a cat on sand, with another cat", "a <milo> on sand, with another cat"),
        ("Cat on sand", "<milo> on sand"),
        ("a sks cat on sand", "a <milo> on sand"),
        ("category theory", "a <milo>, category theory"),
    ],
)
def test_a_caption_calls_the_concept(caption: str | None, prompt: str):
    assert called(MILO, caption) == prompt
