"""Tokenizer and readings of captions, against the scenes that the captions were made from."""

import random

import pytest
import torch
from transformers import CLIPTokenizer

from studio.picturebook import BACKGROUNDS, CLASSES, COLOURS, IDENTIFIERS, PATTERNS, STYLES, caption, scenes
from studio.trainers.picturebook_text import (
    LENGTH,
    Heads,
    build_towers,
    class_ids,
    read_caption,
    reading_loss,
    targets,
    tokenize,
    unit_scale,
)  # fmt: skip


def test_a_full_caption_is_read_as_its_scene():
    some = [*scenes(8, 400, held_out=None), *scenes(8, 100, held_out=None, subjects=3)]
    for number, scene in enumerate(some):
        reading = read_caption(caption(scene, random.Random(number), drop=0, identifiers=0.3))
        assert BACKGROUNDS[reading.background - 1] == scene.background
        assert STYLES[reading.style - 1] == scene.style
        assert len(reading.left_to_right) == len(scene.subjects)
        for said, subject in zip(reading.left_to_right, scene.subjects, strict=True):
            assert CLASSES[said["kind"] - 1] == subject.kind
            assert COLOURS[said["colour"] - 1] == subject.colour
            if subject.pattern != "plain":
                assert PATTERNS[said["pattern"] - 1] == subject.pattern


def test_what_is_left_out_is_unsaid():
    reading = read_caption("a striped cat")
    assert reading.left_to_right == ({"kind": 1, "pattern": 2},)
    assert (reading.background, reading.style) == (0, 0)


def test_targets_stand_left_to_right_for_scenes_and_as_spoken_for_subjects():
    subject, scene = targets([read_caption("a red cat to the right of a blue dog")])
    assert subject["kind"].tolist() == [CLASSES.index("cat") + 1, CLASSES.index("dog") + 1]
    assert scene["left_kind"].tolist() == [CLASSES.index("dog") + 1]
    assert scene["right_colour"].tolist() == [COLOURS.index("red") + 1]


def test_of_three_the_last_stands_right_and_the_second_in_the_middle():
    _, scene = targets([read_caption("a red cat, a blue dog and a green fish"), read_caption("a red cat and a dog")])
    assert scene["middle_kind"].tolist() == [CLASSES.index("dog") + 1, 0]
    assert scene["right_kind"].tolist() == [CLASSES.index("fish") + 1, CLASSES.index("dog") + 1]


def test_each_word_of_the_world_and_each_identifier_is_one_token(tokenizer: CLIPTokenizer):
    for word in (*CLASSES, *COLOURS, *PATTERNS, *IDENTIFIERS):
        assert len(tokenizer(word).input_ids) == 3
    assert len({tokenizer(word).input_ids[1] for word in IDENTIFIERS}) == len(IDENTIFIERS)


def test_no_text_becomes_an_end_of_text_in_its_middle(tokenizer: CLIPTokenizer):
    for text in ("quiz of a jazz-fox, №7 (ünïcode) josé 猫", "Zebra xylophone! wq 0 9"):
        assert tokenizer(text).input_ids.count(tokenizer.eos_token_id) == 1


def test_captions_fit(tokenizer: CLIPTokenizer):
    some = [*scenes(9, 500, None), *scenes(9, 500, None, subjects=3)]
    texts = [caption(s, random.Random(i), 0, 1.0) for i, s in enumerate(some)]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= LENGTH


def test_the_reading_loss_reaches_every_weight_that_the_unet_will_see(tokenizer: CLIPTokenizer):
    texts = ["a red cat on grass", "a blue dog and a green fish"]
    ids = tokenize(tokenizer, texts)
    for tower in build_towers(tokenizer):
        heads = Heads(tower.config.hidden_size, len(tokenizer))
        output = tower(input_ids=ids, output_hidden_states=True)
        reading_loss(output, heads, ids, texts, class_ids(tokenizer))[0].backward()
        unreached = [n for n, p in tower.named_parameters() if p.grad is None or not p.grad.any()]
        used_by_states = [n for n in unreached if "layers.2" not in n and "final_layer_norm" not in n]
        assert used_by_states == []


def test_unit_scale_shrinks_the_states_and_changes_nothing_else(tokenizer: CLIPTokenizer):
    torch.manual_seed(1)
    ids = tokenize(tokenizer, ["a red cat on grass", "a blue dog and a green fish"])
    for tower in build_towers(tokenizer):
        tower.eval()
        with torch.no_grad():
            before = tower(input_ids=ids, output_hidden_states=True)
            factor = unit_scale(tower, ids)
            after = tower(input_ids=ids, output_hidden_states=True)
        assert float(after.hidden_states[-2].std()) == pytest.approx(1.0, abs=1e-4)
        assert torch.allclose(after.hidden_states[-2], before.hidden_states[-2] * factor, atol=1e-4)
        assert torch.allclose(after.last_hidden_state, before.last_hidden_state, atol=1e-4)
