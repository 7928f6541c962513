"""What is measured of a concept: its controls, its leak, and that a real training moves the figures."""

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
    leaked,
    scene_prompts,
    true_pictures,
)  # fmt: skip
from studio.trainers.sample_concepts import learn_sample

MILO = SAMPLE_SUBJECTS["milo"]


def reading(colour: str = "red", pattern: str = "plain", accessory: str = "none") -> Reading:
    return Reading("cat", colour, "white", pattern, accessory, "red", "paper", "flat", (0.5, 0.5))


@pytest.mark.parametrize("name", SAMPLE_SUBJECTS)
def test_controls_share_neither_colour_nor_pattern_with_the_concept(name: str) -> None:
    subject = SAMPLE_SUBJECTS[name]
    controls = control_subjects(subject)
    assert [c.kind == subject.kind for c in controls] == [True, True, False, False]
    assert not any(c.colour in (subject.colour, subject.second) or c.pattern == subject.pattern for c in controls)


def test_a_leak_is_an_attribute_of_the_concept_that_the_words_gave_otherwise() -> None:
    asked = Subject("cat", "red")
    assert not leaked(reading(), asked, MILO)
    assert leaked(reading(colour=MILO.colour), asked, MILO)
    assert leaked(reading(pattern=MILO.pattern), asked, MILO)
    assert leaked(reading(accessory=MILO.accessory), asked, MILO)
    assert not leaked(reading(colour=MILO.colour), Subject("cat", MILO.colour), MILO)


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
