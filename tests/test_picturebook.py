"""The world: determinism, captions that say the scene, held-out shares, distractors."""

import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from studio.picturebook import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    IDENTIFIERS,
    SAMPLE_STYLES,
    SAMPLE_SUBJECTS,
    STYLES,
    TRIMMINGS,
    Scene,
    Subject,
    caption,
    distractors,
    random_subject,
    sample_scenes,
    scenes,
    trimmed,
)  # fmt: skip
from studio.picturebook_draw import RGB, render


def test_the_same_scene_gives_the_same_pixels():
    for scene in scenes(3, 10):
        assert render(scene).tobytes() == render(scene).tobytes()


def test_a_scene_does_not_depend_on_how_many_are_asked_for():
    assert list(scenes(1, 3)) == list(scenes(1, 9))[:3]


@pytest.mark.parametrize("style", [*STYLES, *SAMPLE_STYLES])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_in_every_style_is_drawn_within_the_canvas(kind: str, style: str):
    empty = np.asarray(render(Scene((), "paper", style, "big", 5)), dtype=int)
    drawn = np.asarray(render(Scene((Subject(kind, "blue"),), "paper", style, "big", 5)), dtype=int)
    changed = np.any(np.abs(drawn - empty) > 60, axis=-1)
    assert changed.mean() > 0.02
    assert not changed[:, :3].any()
    assert not changed[:, -3:].any()


def test_a_flat_plain_star_has_its_colour_in_its_middle():
    scene = Scene((Subject("star", "purple"),), "grass", "flat", "big", 1)
    left, top, right, bottom = scene.boxes()[0]
    middle = render(scene).getpixel((round((left + right) * 48), round((top + bottom) * 48)))
    assert middle == RGB["purple"]


@pytest.mark.parametrize("background", ["night", "sky"])
def test_through_a_mugs_handle_the_ground_is_seen(background: str):
    """Whatever lies on the ground above it: a star or a cloud is no colour of the whole."""
    for seed in range(60):
        scene = Scene((Subject("mug", "red"),), background, "flat", "big", seed)
        left, top, right, bottom = scene.boxes()[0]
        hole = (round((left + right + 0.65 * (right - left)) * 48), round((top + bottom + 0.05 * (bottom - top)) * 48))
        colours: Any = render(replace(scene, subjects=())).getcolors(96 * 96)
        assert render(scene).getpixel(hole) == max(colours)[1]


def test_three_on_a_wider_canvas_are_as_large_as_two_on_a_square():
    two, three = (Scene(tuple(Subject("star", "purple") for _ in range(n)), "grass", "flat") for n in (2, 3))
    assert [bottom - top for _, top, _, bottom in three.boxes(1.5)] == pytest.approx([0.46] * 3)
    wide, square = ({round(one[2] - one[0], 9) for one in boxes} for boxes in (three.boxes(1.5), two.boxes()))
    assert (wide, square) == ({round(0.46 / 1.5, 9)}, {0.46})
    assert render(three, 144, 96).size == (144, 96)


def test_two_subjects_stand_apart_from_left_to_right():
    for scene in scenes(2, 50, subjects=2):
        (left, right) = scene.boxes()
        assert left[2] <= right[0] + 0.05
        assert min(left) >= -0.01
        assert max(right) <= 1.01


def test_about_a_tenth_of_the_subjects_is_held_out():
    rng = random.Random(0)
    held_out = sum(random_subject(rng).held_out for _ in range(4000)) / 4000
    assert 0.05 < held_out < 0.15


def test_training_scenes_show_no_held_out_subject():
    assert not any(subject.held_out for scene in scenes(4, 300) for subject in scene.subjects)
    assert all(subject.held_out for scene in scenes(4, 50, held_out=True) for subject in scene.subjects)


def test_a_full_caption_names_every_attribute():
    for number, scene in enumerate(scenes(5, 100)):
        text = caption(scene, random.Random(number), drop=0, identifiers=0)
        for subject in scene.subjects:
            assert subject.kind in text
            assert subject.colour in text
            if subject.pattern != "plain":
                assert subject.pattern in text
                assert subject.second == "white" or f"and {subject.second}" in text


def test_captions_of_three_name_them_from_left_to_right():
    for number, scene in enumerate(scenes(9, 50, subjects=3)):
        text = caption(scene, random.Random(number), drop=0, identifiers=0)
        seen = [word.strip(",") for word in text.split() if word.strip(",") in CLASSES]
        assert seen == [subject.kind for subject in scene.subjects]


def test_there_are_enough_identifiers_and_none_is_a_word_of_the_world():
    assert len(set(IDENTIFIERS)) >= 32
    words = {w for i, s in enumerate(scenes(6, 500, None)) for w in caption(s, random.Random(i), 0, 0).split()}
    assert not words & set(IDENTIFIERS)


@pytest.mark.parametrize("name", SAMPLE_SUBJECTS)
def test_distractors_differ_in_exactly_one_attribute(name: str):
    subject = SAMPLE_SUBJECTS[name]
    near = distractors(subject)
    assert len(set(near)) == 20
    for other in near:
        assert sum(getattr(subject, f.name) != getattr(other, f.name) for f in fields(Subject)) == 1


def test_distractors_look_different_whatever_is_plain_or_worn():
    rng = random.Random(5)
    plain = [replace(random_subject(rng), pattern="plain", second=rng.choice(COLOURS)) for _ in range(8)]
    bare = [random_subject(rng) for _ in range(8)]
    worn = [replace(one, accessory=rng.choice(ACCESSORIES), accent=rng.choice(COLOURS)) for one in plain + bare]
    for subject in [*plain, *bare, *worn, Subject("cat", "white", second="white")]:
        drawn = [render(Scene((one,), "paper", "flat")).tobytes() for one in [subject, *distractors(subject)]]
        assert len(set(drawn)) == 21


def test_sample_subjects_have_three_pairs_of_one_class():
    kinds = [s.kind for s in SAMPLE_SUBJECTS.values()]
    assert len(kinds) == 8
    assert sum(kinds.count(kind) == 2 for kind in set(kinds)) == 3


def test_a_subject_stands_where_it_is_told_to_and_no_higher_or_lower_for_it():
    near, told = (Scene((Subject("cat", "red"),), "sky", "flat", "small", 3, middle) for middle in (None, 0.7))
    (left, top, right, bottom), (told_left, told_top, told_right, told_bottom) = near.boxes()[0], told.boxes()[0]
    assert (told_left + told_right) / 2 == pytest.approx(0.7)
    assert told_right - told_left == pytest.approx(right - left)
    assert (told_top, told_bottom) == (top, bottom)


@pytest.mark.parametrize("subject", SAMPLE_SUBJECTS.values(), ids=SAMPLE_SUBJECTS)
def test_sample_pictures_lead_to_both_sides_by_whole_periods_of_the_pattern(subject: Subject):
    shown = sample_scenes(subject, 5, seed=1)
    assert {scene.background for scene in shown} == {"paper", "grass", "sky", "sand"}
    for scene in shown:
        if scene.size == "small":
            assert scene.middle is not None
            assert min(abs(scene.middle - steps / 6 - 0.25) for steps in (-2, -1, 0, 1, 2)) < 0.01


def test_trimmings_are_named_and_what_concepts_wear_is_not():
    rng = random.Random(6)
    for scene in scenes(31, 300, held_out=None):
        worn = trimmed(scene, rng)
        text = caption(worn, rng)
        for subject, bare in zip(worn.subjects, scene.subjects, strict=True):
            assert replace(subject, accessory="none", accent=bare.accent) == bare
            assert (subject.accessory in TRIMMINGS) == (subject != bare)
            assert subject == bare or (subject.accent != subject.colour and f" {subject.accessory}" in text)
        assert not set(text.replace(",", " ").split()) & set(ACCESSORIES)
    dressed = Scene((Subject("cat", "red", "plain", "white", "hat", "blue"),), "grass", "flat")
    assert "hat" not in caption(dressed, rng, 0, 0).split()
    many = Scene((Subject("cat", "red", "plain", "white", "horns", "blue"),), "grass", "flat")
    assert "cat with blue horns " in caption(many, rng, 0, 0)


@pytest.mark.parametrize("kind", CLASSES)
def test_each_trimming_is_drawn_like_no_other_thing_that_is_worn(kind: str):
    drawn = [
        render(Scene((Subject(kind, "red", "plain", "white", worn, "blue"),), "paper", "flat")).tobytes()
        for worn in (*TRIMMINGS, *ACCESSORIES)
    ]
    assert len(set(drawn)) == len(drawn)
