"""What is measured of a concept: its controls, its leak, and that a real training moves the figures."""

from dataclasses import replace
from pathlib import Path

import pytest

from studio.bases import find_base
from studio.events import silent
from studio.home import Home
from studio.judge import Judge, Reading
from studio.models import load_base
from studio.picturebook import SAMPLE_SUBJECTS, Subject
from studio.pipelines.concept_bench import (
    FIELDS,
    SCENES,
    ConceptBench,
    bench_concept,
    control_subjects,
    scene_prompts,
    taken,
    true_pictures,
)  # fmt: skip
from studio.trainers.sample_concepts import learn_sample

MILO = SAMPLE_SUBJECTS["milo"]


def reading(**told: str) -> Reading:
    """A plain red car, and what else is told."""
    seen = {"kind": "car", "colour": "red", "second": "white", "pattern": "plain", "accessory": "none", "accent": "red"}
    return Reading(**seen | told, background="paper", style="flat", place=(0.5, 0.5))


@pytest.mark.parametrize("name", SAMPLE_SUBJECTS)
def test_controls_share_neither_colour_nor_pattern_with_the_concept(name: str) -> None:
    subject = SAMPLE_SUBJECTS[name]
    controls = control_subjects(subject)
    assert [c.kind == subject.kind for c in controls] == [True, True, False, False]
    assert not any(c.colour in (subject.colour, subject.second) or c.pattern == subject.pattern for c in controls)


def test_what_is_taken_is_what_the_words_gave_otherwise() -> None:
    asked = Subject("car", "red")
    assert taken(reading(), asked, MILO) == ()
    for field in ("kind", "colour", "pattern", "accessory"):
        assert taken(reading(**{field: getattr(MILO, field)}), asked, MILO) == (field,)
    assert taken(reading(colour=MILO.colour), Subject("car", MILO.colour), MILO) == ()


def test_colours_are_taken_only_where_they_show() -> None:
    asked = Subject("car", "red", "striped")
    assert taken(reading(pattern="striped", second=MILO.second), asked, MILO) == ("second",)
    assert taken(reading(pattern="plain", second=MILO.second), asked, MILO) == ()
    assert taken(reading(accessory="crown", accent=MILO.accent), asked, MILO) == ("accent",)
    assert taken(reading(accessory="none", accent=MILO.accent), asked, MILO) == ()
    bare = replace(MILO, pattern="plain", accessory="none")
    read = reading(pattern="striped", second=bare.second, accessory="crown", accent=bare.accent)
    assert taken(read, replace(asked, second="blue"), bare) == ()


def test_scenes_name_the_concept_and_its_place() -> None:
    prompts = scene_prompts("sks cat")
    assert [ground for _, ground in prompts] == ["night", "grass", "sand", "sky"]
    assert all("sks cat" in prompt for prompt, _ in prompts)


@pytest.mark.slow
def test_true_drawings_show_the_subject_in_the_scenes_that_are_asked_for() -> None:
    base, judge = load_base(find_base("picturebook")), Judge.load("B")
    readings = judge.read(true_pictures(base, MILO, ConceptBench(seeds=2)))
    assert [reading.background for reading in readings] == [ground for ground, _ in SCENES for _ in range(2)]
    assert all(reading.shows(MILO, FIELDS) for reading in readings)


@pytest.mark.slow
def test_a_short_training_brings_the_pictures_nearer_to_the_concept(home: Home, tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(
        "steps = 30\nbatch_size = 2\nprior_count = 4\npair_count = 4\nsample_every = 0\n"
    )
    learned = learn_sample("milo", "quick", home, silent, config=tmp_path / "short.toml")
    base = load_base(find_base("picturebook"))
    plan = ConceptBench(seeds=1, steps=8)
    report, pictures = bench_concept(base, Judge.load("A"), learned.concept, learned.subject, plan, silent)
    after, before = report["attributes"], report["attributes of the untrained base"]
    assert len(pictures["trained"]) == 4
    assert sum(after.values()) / len(after) > sum(before.values()) / len(before) + 0.1
