"""How good is a trained sample concept? Is it the one of its pictures, where the prompt puts it, and nothing else?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from studio.adapters import load_concept
from studio.attaching import attach
from studio.concepts import Concept
from studio.events import Emit, Phase
from studio.judge import Gallery, Judge, Reading
from studio.models import BaseModel
from studio.picturebook import (
    BACKGROUND_WORDS,
    CLASSES,
    COLOURS,
    SAMPLE_SUBJECTS,
    SIZES,
    STYLE_WORDS,
    Scene,
    Subject,
    distractors,
    with_article,
)  # fmt: skip
from studio.picturebook_draw import render
from studio.pipelines.base_bench import draw_prompts
from studio.pipelines.decoding import through_vae
from studio.stats import Share

SCENES = (("night", "flat"), ("grass", "outline"), ("sand", "flat"), ("sky", "outline"))
FIELDS = ("kind", "colour", "second", "pattern", "accessory", "accent")


@dataclass(frozen=True)
class ConceptBench:
    """Pictures of each scene and of each control prompt, their seeds and how they are drawn."""

    seeds: int = 8
    seed: int = 6_000_000
    steps: int = 25
    guidance: float = 2.5


def scene_prompts(subject_words: str) -> list[tuple[str, str]]:
    """(prompt, background) of the four new scenes."""
    return [
        (f"a {subject_words} {BACKGROUND_WORDS[ground][0]}, {STYLE_WORDS[style][0]}", ground)
        for ground, style in SCENES
    ]


def control_subjects(subject: Subject) -> list[Subject]:
    """Subjects asked for in words that share no colour and no pattern with the concept: two of its class, two of
    others."""
    colours = [c for c in COLOURS if c not in (subject.colour, subject.second, "white")]
    kinds = [subject.kind, subject.kind, *[k for k in CLASSES if k != subject.kind][2:4]]
    pattern = "striped" if subject.pattern != "striped" else "plain"
    return [Subject(k, colours[i % len(colours)], ("plain", pattern)[i % 2]) for i, k in enumerate(kinds)]


def gallery_of(judge: Judge, subject: Subject) -> Gallery:
    """All sample concepts and the subject's 20 one-attribute distractors."""
    others = [s for s in SAMPLE_SUBJECTS.values() if s != subject]
    return Gallery(judge, [subject, *others, *distractors(subject)])


def true_pictures(base: BaseModel, subject: Subject, plan: ConceptBench) -> list[Image]:
    """The subject drawn by the renderer in the same scenes, encoded and decoded by the base."""
    drawn = [
        render(Scene((subject,), ground, style, SIZES[n % len(SIZES)], plan.seed + n))
        for ground, style in SCENES
        for n in range(plan.seeds)
    ]
    return through_vae(base, drawn)


def taken(reading: Reading, own: Subject, other: Subject) -> tuple[str, ...]:
    """The fields in which the two differ and which are read as the other's: second colours only of patterns, colours of
    accessories only of what is worn."""
    plain, bare = "plain" in (reading.pattern, other.pattern), "none" in (reading.accessory, other.accessory)
    unseen = ("second",) * plain + ("accent",) * bare
    read = [field for field in FIELDS if field not in unseen]
    return tuple(field for field in read if getattr(reading, field) == getattr(other, field) != getattr(own, field))


def bench_concept(
    base: BaseModel, judge: Judge, concept: Concept, subject: Subject, plan: ConceptBench, emit: Emit
) -> tuple[dict[str, Any], dict[str, list[Image]]]:
    """(report, pictures by row) of one concept: scenes with and without its adapter, and the control prompts.

    `leak` counts controls in which an attribute that the words gave otherwise is read as the concept's.
    """
    gallery = gallery_of(judge, subject)
    scenes = [pair for pair in scene_prompts(concept.phrase) for _ in range(plan.seeds)]
    controls = [s for s in control_subjects(subject) for _ in range(plan.seeds)]
    control_prompts = [
        f"{with_article(f'{s.colour} ' + (s.pattern != 'plain') * f'{s.pattern} ' + s.kind)} on paper, flat style"
        for s in controls
    ]

    def draw(prompts: Sequence[str]) -> list[Image]:
        return draw_prompts(base, prompts, range(plan.seed, plan.seed + len(prompts)), plan.steps, plan.guidance, emit)

    total = len(scenes) + len(controls)
    emit(Phase(f"{concept.name}: without its adapter", total))
    untrained, plain_controls = draw([p for p, _ in scenes]), draw(control_prompts)
    emit(Phase(f"{concept.name}: with it", total))
    with attach(base, [(load_concept(concept), 1.0)]):
        trained, trained_controls = draw([p for p, _ in scenes]), draw(control_prompts)

    def leak(images: Sequence[Image]) -> Share:
        return Share.of([bool(taken(r, s, subject)) for r, s in zip(judge.read(images), controls, strict=True)])

    readings, embeddings = judge.look(trained)
    identity, margin = gallery.identity(embeddings, subject)
    readings_before, embeddings_before = judge.look(untrained)
    before = gallery.identity(embeddings_before, subject)[0]
    truth = gallery.identity(judge.embed(true_pictures(base, subject, plan)), subject)[0]
    obeyed = Share.of([r.background == ground for r, (_, ground) in zip(readings, scenes, strict=True)])
    report = {
        "identity": Share.of(identity.tolist()).rounded(),
        "margin": round(float(margin.mean()), 3),
        "identity of the untrained base": Share.of(before.tolist()).rounded(),
        "identity of true drawings": Share.of(truth.tolist()).rounded(),
        "background obeyed": obeyed.rounded(),
        "attributes": {f: _share_of_field(readings, subject, f) for f in FIELDS},
        "attributes of the untrained base": {f: _share_of_field(readings_before, subject, f) for f in FIELDS},
        "leak": leak(trained_controls).rounded(),
        "leak of the untrained base": leak(plain_controls).rounded(),
    }
    return report, {"untrained": untrained, "trained": trained, "controls": trained_controls}


def _share_of_field(readings: Sequence[Reading], subject: Subject, field: str) -> float:
    return round(sum(getattr(r, field) == getattr(subject, field) for r in readings) / len(readings), 3)
