"""The judges: crops at the right scale, and what they read of true renders."""

import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from studio.errors import StudioError
from studio.judge import (
    ATTRIBUTES,
    HEIGHT,
    Gallery,
    Judge,
    JudgeNet,
    _load_net,
    reference_scenes,
    subject_of,
    to_tensor,
)  # fmt: skip
from studio.picturebook import SAMPLE_SUBJECTS, Scene, Subject, distractors, scenes, seen_as
from studio.picturebook_draw import render


def test_a_crop_is_cut_at_the_judges_scale():
    image = Image.new("RGB", (384, 192))
    image.paste((255, 255, 255), (192, 0, 384, 192))
    whole, right = to_tensor(image), to_tensor(image, (0.5, 0.0, 1.0, 1.0))
    assert whole.shape == (3, HEIGHT, 2 * HEIGHT)
    assert right.shape == (3, HEIGHT, HEIGHT)
    assert bool((right[:, :, 4:] == 1).all())


@pytest.mark.parametrize("box", [(0.3, 0.2, 0.31, 0.9), (0.0, 0.5, 0.0, 0.5), (0.98, 0.97, 1.0, 1.0)])
def test_a_narrow_crop_is_widened_to_what_a_judge_can_read(box):
    image = Image.effect_noise((96, 96), 90)
    assert min(to_tensor(image, box).shape[1:]) == 32
    for which in ("A", "B"):
        assert len(Judge(JudgeNet(which)).read([image], [box])) == 1


def test_it_is_widened_around_its_middle():
    image = Image.new("RGB", (96, 96))
    image.paste((255, 255, 255), (32, 0, 64, 96))
    assert bool((to_tensor(image, (0.45, 0.0, 0.55, 1.0)) == 1).all())


def test_a_thin_picture_is_read():
    assert len(Judge(JudgeNet("B")).read([Image.new("RGB", (4, 600))])) == 1


def test_of_no_pictures_there_is_nothing_to_say():
    readings, embeddings = Judge(JudgeNet("A")).look([])
    assert (readings, tuple(embeddings.shape)) == ([], (0, 96))


def test_missing_weights_come_with_the_studio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("studio.judge.files", lambda _: tmp_path)
    _load_net.cache_clear()
    with pytest.raises(StudioError) as missing:
        Judge.load("A")
    assert missing.value.remedy == "Install the studio again: they are part of it."


@pytest.mark.parametrize("which", ["A", "B"])
def test_a_net_takes_any_size_and_its_place_is_inside(which):
    net = JudgeNet(which).eval()
    for height, width in ((96, 96), (96, 48), (40, 64)):
        logits, embedding, place = net(torch.rand(2, 3, height, width))
        assert {name: tuple(v.shape) for name, v in logits.items()} == {n: (2, len(v)) for n, v in ATTRIBUTES.items()}
        assert torch.allclose(embedding.norm(dim=-1), torch.ones(2))
        assert bool(((place > 0) & (place < 1)).all())


@pytest.mark.parametrize("which", ["A", "B"])
def test_a_shipped_judge_reads_renders(which):
    judge = Judge.load(which)
    chosen = list(scenes(31, 120, held_out=None, subjects=1))
    readings = judge.read([render(scene) for scene in chosen])
    for field in ("kind", "colour", "pattern"):
        right = [getattr(r, field) == getattr(s.subjects[0], field) for r, s in zip(readings, chosen, strict=True)]
        assert sum(right) / len(right) > 0.9
    assert sum(r.background == s.background for r, s in zip(readings, chosen, strict=True)) / 120 > 0.95


@pytest.mark.parametrize("which", ["A", "B"])
def test_a_shipped_judge_tells_halves_apart(which):
    judge = Judge.load(which)
    chosen = list(scenes(32, 80, held_out=None, subjects=2))
    images = [render(scene) for scene in chosen]
    for side, box in enumerate(((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0))):
        readings = judge.read(images, [box] * len(images))
        assert sum(r.shows(s.subjects[side]) for r, s in zip(readings, chosen, strict=True)) / 80 > 0.85


@pytest.mark.parametrize("which", ["A", "B"])
def test_sample_subjects_are_told_from_their_nearest_distractors(which):
    judge, rng = Judge.load(which), random.Random(3)
    hits = []
    for subject in SAMPLE_SUBJECTS.values():
        gallery = Gallery(judge, [subject, *distractors(subject)])
        shown = [Scene((subject,), ground, "flat", "big", rng.randrange(10**6)) for ground in ("night", "grass", "sky")]
        hits += gallery.identity(judge.embed([render(scene) for scene in shown]), subject)[0].tolist()
    assert sum(hits) / len(hits) > 0.85


@pytest.mark.parametrize("which", ["A", "B"])
@pytest.mark.parametrize("subject", [Subject("cat", "red"), Subject("dog", "blue", "striped", "yellow")])
def test_what_is_plain_or_bare_is_found_and_is_itself(which, subject):
    judge = Judge.load(which)
    drawn = [render(scene) for scene in reference_scenes(subject)]
    found = subject_of(judge, drawn, subject.kind)
    assert found == seen_as(subject)
    identity = Gallery(judge, [found, *distractors(found)]).identity(judge.embed(drawn), found)[0]
    assert identity.float().mean() >= 0.5


def test_identity_and_margin_are_the_nearest_reference_and_its_lead():
    gallery = Gallery.__new__(Gallery)
    gallery.subjects = tuple(SAMPLE_SUBJECTS.values())[:3]
    gallery.references = torch.eye(3)
    embeddings = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    identity, margin = gallery.identity(embeddings, gallery.subjects[0])
    assert identity.tolist() == [True, False]
    assert margin.tolist() == pytest.approx([1.0, -0.2])
