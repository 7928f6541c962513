"""What towers are held to, and what they are to say, while they learn captions of what things wear."""

import random
from copy import deepcopy

import pytest
import torch
from transformers import CLIPTokenizer

from studio.picturebook import CLASSES, COLOURS, TRIMMINGS, caption, scenes, trimmed
from studio.trainers.picturebook_text import LENGTH, Tower, build_towers, tokenize
from studio.trainers.picturebook_worn import losses_of, places, reading_heads, said_of_worn, teach_worn, without_worn

TWO = "a red cat with a blue flag on the left and a pink wug fish with horns on the right, with black outlines"
BARE = "a red cat on the left and a pink wug fish on the right, with black outlines"


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


def test_a_bare_caption_is_no_distance_away(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    texts = ["a red cat with a blue flag", "a red cat on grass"]
    for tower in towers:
        heads = reading_heads(tower.config.hidden_size)
        both, one = (float(losses_of(tower, tower, heads, tokenizer, those)[0]) for those in (texts, texts[:1]))
        assert 0 < both < one


def test_what_is_not_worn_is_held_to_the_caption_without_it(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    """Of "a red cat" the beginning and three words come first, and all that fills a caption after the five tokens of
    "with a blue flag", which is in two pieces."""
    texts = ["a red cat with a blue flag", "a red cat"]
    for tower, other in zip(towers, build_towers(tokenizer), strict=True):
        with torch.no_grad():
            says, said = (
                one.eval()(input_ids=tokenize(tokenizer, [text]), output_hidden_states=True)
                for one, text in zip((tower, other), texts, strict=True)
            )
            away = losses_of(tower, other, reading_heads(tower.config.hidden_size), tokenizer, texts[:1])[0]
        here, there = says.hidden_states[-2][0], said.hidden_states[-2][0]
        terms = [(here[n] - there[n]).square() for n in range(4)] + [
            (here[n] - there[n - 5]).square() for n in range(9, 48)
        ]
        wanted = float(torch.stack(terms).mean())
        if hasattr(says, "text_embeds"):
            wanted += float((says.text_embeds - said.text_embeds).square().mean())
        assert float(away) == pytest.approx(wanted, rel=1e-5)


def test_teaching_moves_the_towers_and_leaves_them_frozen(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    before = [deepcopy(tower.state_dict()) for tower in towers]
    heard: list[int] = []
    teach_worn(tokenizer, towers, 2, 8, 0, lambda step, loss, note: heard.append(step))
    assert heard == [1, 2]
    for tower, old in zip(towers, before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in tower.state_dict().items())
        assert not any(parameter.requires_grad for parameter in tower.parameters())
