"""What towers are held to while they learn captions of three things."""

import random
from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from studio.picturebook import caption, scenes
from studio.trainers.picturebook_text import Tower, read_caption, tokenize
from studio.trainers.picturebook_three import Memory, teach_three, without_middle

THREE = (
    "a red cat on the left, a blue and green striped sks dog in the middle and a pink wug fish on the right on grass"
)
TWO = "a red cat on the left and a pink wug fish on the right on grass"


def _states(tower: Tower, tokenizer: CLIPTokenizer, text: str) -> Tensor:
    with torch.no_grad():
        return tower(input_ids=tokenize(tokenizer, [text]), output_hidden_states=True).hidden_states[-2][0]


def test_without_the_middle_one_the_first_and_the_last_are_left():
    assert without_middle(THREE) == TWO
    for number, scene in enumerate(scenes(11, 200, held_out=None, subjects=3)):
        text = caption(scene, random.Random(number), identifiers=0.3)
        whole, shorter = read_caption(text), read_caption(without_middle(text))
        assert shorter.spoken == (whole.spoken[0], whole.spoken[2])
        assert (shorter.background, shorter.style) == (whole.background, whole.style)


def test_captions_of_one_and_two_stay_as_they_are():
    for number, scene in enumerate(scenes(12, 200, held_out=None)):
        text = caption(scene, random.Random(number))
        assert without_middle(text) == text


def test_of_one_and_two_everything_is_held(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    texts = ["a red cat on grass", "a blue dog and a green fish, flat style"]
    for tower in towers:
        memory = Memory.of(tower, tokenizer)
        with torch.no_grad():
            output = tower(input_ids=tokenize(tokenizer, texts), output_hidden_states=True)
            assert memory.distance(output, texts, tokenizer) == 0
            output.hidden_states[-2][0, -1] += 0.1
            assert memory.distance(output, texts, tokenizer) > 0


def test_the_last_of_three_is_as_the_second_of_two_and_a_step_on(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    memory = Memory.of(towers[0], tokenizer)
    with torch.no_grad():
        output = towers[0](input_ids=tokenize(tokenizer, [THREE]), output_hidden_states=True)
    long, short = (tokenizer.tokenize(text) for text in (THREE, TWO))
    own, as_second = (_states(towers[0], tokenizer, text) for text in (THREE, TWO))
    tail = len(short) - short.index("and</w>")
    squares = []
    for at in range(1, len(long) + 1):  # token 0 is the beginning
        wanted = own[at]
        if at > len(long) - tail:
            wanted = as_second[at - len(long) + len(short)]
            if at <= 1 + long.index("fish</w>"):
                wanted = wanted + memory.step
        squares.append((own[at] - wanted).square().mean())
    assert float(memory.distance(output, [THREE], tokenizer)) == pytest.approx(
        float(sum(squares)) / (len(squares) + 1), rel=1e-4
    )


def test_teaching_moves_the_towers_and_leaves_them_frozen(tokenizer: CLIPTokenizer, towers: tuple[Tower, Tower]):
    before, heard = deepcopy(towers), []
    teach_three(tokenizer, towers, 2, 8, 0, lambda step, loss, note: heard.append(step))
    assert heard == [1, 2]
    for tower, old in zip(towers, before, strict=True):
        assert not any(p.requires_grad for p in tower.parameters())
        pairs = zip(tower.parameters(), old.parameters(), strict=True)
        assert any(not torch.equal(new, was) for new, was in pairs)
