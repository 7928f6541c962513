"""What towers are held to, and what they are to say, while they learn captions of what things wear."""

import random
from copy import deepcopy

import pytest
import torch
from transformers import CLIPTokenizer

from studio.picturebook import CLASSES, COLOURS, TRIMMINGS, caption, scenes, trimmed
from studio.trainers.picturebook_text import LENGTH, Tower, build_towers, states_of, tokenize, train_tokenizer
from studio.trainers.picturebook_worn import losses_of, places, reading_heads, said_of_worn, teach_worn, without_worn

TWO = "a red cat with a blue flag on the left and a pink wug fish with horns on the right, with black outlines"
BARE = "a red cat on the left and a pink wug fish on the right, with black outlines"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(0)


@pytest.fixture
def towers(tokenizer: CLIPTokenizer) -> tuple[Tower, Tower]:
    torch.manual_seed(2)
    first, second = build_towers(tokenizer)
    return first.eval(), second.eval()


def test_without_what_is_worn_a_caption_is_that_of_the_bare_scene():
    assert without_worn(TWO) == BARE
    for number, scene in enumerate(scenes(13, 300, held_out=None)):
        worn = trimmed(scene, random.Random(number))
        text = caption(worn, random.Random(number), drop=0)
        assert all(f" {word}" not in without_worn(text) for word in TRIMMINGS)
        assert (without_worn(text) == text) == (worn == scene)


def test_what_is_said_of_what_is_worn_is_what_the_scene_shows():
    """Of two the words may begin with the right one."""
    seen = 0
    for number, scene in enumerate(scenes(14, 300, held_out=None)):
        worn = trimmed(scene, random.Random(number))
        shown = [
            (one.accessory, one.accent, one.kind, ("left", "right")[side])
            for side, one in enumerate(worn.subjects)
            if one.accessory != "none"
        ]
        said = [
            (TRIMMINGS[s["what"]], COLOURS[s["accent"] - 1], CLASSES[s["kind"]], ("left", "middle", "right")[s["side"]])
            for s in said_of_worn(caption(worn, random.Random(number), drop=0))
        ]
        assert sorted(said) == sorted(shown)
        seen += len(shown)
    assert seen > 100
    assert said_of_worn(TWO)[1]["accent"] == 0


def test_places_are_those_of_the_words(tokenizer: CLIPTokenizer):
    ends, rest = places(tokenizer, TWO)
    ids = tokenize(tokenizer, [TWO])[0]
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert [pieces[end] for end in ends] == [tokenizer.tokenize(word)[-1] for word in ("flag", "horns")]
    assert torch.equal(ids[rest], tokenize(tokenizer, [BARE])[0, : len(rest)])
    assert places(tokenizer, BARE) == ([], list(range(LENGTH)))


def test_a_bare_caption_is_held_to_all_that_it_said(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    """The same tower is no distance away, save in the phrase itself and what stands behind it."""
    texts = ["a red cat with a blue flag", "a red cat on grass"]
    for tower in towers:
        memory, heads = deepcopy(tower), reading_heads(tower.config.hidden_size)
        with torch.no_grad():
            moved = losses_of(tower, memory, heads, tokenizer, texts)[0]
            states, was = (states_of(tower, tokenize(tokenizer, [text]))[0][0] for text in (texts[0], "a red cat"))
        rest = places(tokenizer, texts[0])[1]
        apart = (states[rest] - was[: len(rest)]).square().mean()
        if tower is towers[0]:
            assert float(moved) == pytest.approx(float(apart) / 2, rel=1e-4)
        assert torch.allclose(states[:4], was[:4], atol=1e-6)  # a causal tower: what is before says the same


def test_teaching_moves_the_towers_and_leaves_them_frozen(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    before = [deepcopy(tower.state_dict()) for tower in towers]
    heard: list[int] = []
    teach_worn(tokenizer, towers, 2, 8, 0, lambda step, loss, note: heard.append(step))
    assert heard == [1, 2]
    for tower, old in zip(towers, before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in tower.state_dict().items())
        assert not any(parameter.requires_grad for parameter in tower.parameters())
