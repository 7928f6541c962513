"""How judges are trained: what a view shows and asks, the loss, and a training of a few steps."""

import random
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from studio.judge import ATTRIBUTES, Judge
from studio.picturebook import SAMPLE_STYLES, Subject, scenes
from studio.picturebook_draw import render
from studio.trainers import judge as script
from studio.trainers.judge import (
    IGNORED,
    batch_of_views,
    bent,
    contrast,
    dressed_subject,
    subject_targets,
    train_judge,
    view,
)
from studio.trainers.picturebook_vae import build_vae


@pytest.fixture
def vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    return build_vae(torch.rand(4, 3, 32, 32)).eval().requires_grad_(False)


def named(targets: dict[str, int]) -> dict[str, str]:
    return {name: ATTRIBUTES[name][index] for name, index in targets.items() if index != IGNORED}


def test_only_what_can_be_seen_of_a_subject_is_asked():
    plain = Subject("cat", "red", "plain", "blue", "none", "green")
    assert named(subject_targets(plain, "flat")) == {
        "kind": "cat", "pattern": "plain", "accessory": "none", "colour": "red",
    }  # fmt: skip
    dressed = Subject("dog", "red", "dotted", "blue", "hat", "green")
    whole = {name: getattr(dressed, name) for name in ("kind", "colour", "second", "pattern", "accessory", "accent")}
    assert named(subject_targets(dressed, "pixel")) == whole
    for style in SAMPLE_STYLES:
        assert named(subject_targets(dressed, style)).keys() == {"kind", "pattern", "accessory"}


@pytest.mark.parametrize("shape", [(96, 96), (48, 96), (60, 60)])
def test_a_view_holds_its_subject_where_it_says(shape: tuple[int, int]):
    rng = random.Random(1)
    for _ in range(40):
        subject = dressed_subject(rng)
        image, targets, place = view(subject, rng, shape)
        assert image.size == shape
        assert named(targets)["kind"] == subject.kind
        assert all(0 < at < 1 for at in place)


def test_a_view_without_a_subject_asks_for_ground_and_style_alone():
    image, targets, _ = view(None, random.Random(2), (48, 96))
    assert image.size == (48, 96)
    assert named(targets).keys() == {"kind", "background", "style"}
    assert named(targets)["kind"] == "none"


def test_a_batch_is_pictures_targets_and_places(vae: AutoencoderTiny):
    rng = random.Random(3)
    x, targets, places = batch_of_views([dressed_subject(rng), None], (48, 96), "B", vae, rng, 1.0)
    assert x.shape == (2, 3, 96, 48)
    assert {name: one.shape for name, one in targets.items()} == dict.fromkeys(ATTRIBUTES, torch.Size([2]))
    assert places.shape == (2, 2)


@pytest.mark.parametrize("which", ["A", "B"])
def test_what_is_bent_moves_a_little_and_stays_in_order(which: Literal["A", "B"]):
    """Of pictures whose pixels tell their place; no pixel goes as far as four others."""
    torch.manual_seed(4)
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    places = torch.stack([columns, rows, rows * 0])  # [3, 96, 96]
    moved = (bent(places.expand(20, 3, 96, 96), which) - places)[:, :2, 8:-8, 8:-8]
    assert 0.1 < moved.abs().mean() < 1.0
    assert moved.abs().max() < 4
    assert moved.std(0).min() > 0.1  # other pictures are bent otherwise


def test_what_a_subject_wears_has_a_colour_of_its_own():
    rng = random.Random(5)
    worn = [one for one in (dressed_subject(rng) for _ in range(500)) if one.accessory != "none"]
    assert len(worn) > 250
    assert all(one.accent != one.colour for one in worn)


def test_the_contrast_is_that_of_the_paper():
    """Khosla et al. 2020, equation 2, by sums over pairs; the fifth has no partner."""
    torch.manual_seed(1)
    one, labels = F.normalize(torch.randn(5, 4), dim=1), [7, 3, 7, 3, 9]
    terms = []
    for i in range(4):
        others = [j for j in range(5) if j != i]
        total = sum(torch.exp(one[i] @ one[j] / 0.1) for j in others)
        partners = [j for j in others if labels[j] == labels[i]]
        terms.append(-sum(torch.log(torch.exp(one[i] @ one[j] / 0.1) / total) for j in partners) / len(partners))
    assert float(contrast(one, torch.tensor(labels))) == pytest.approx(float(sum(terms) / 4), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["A", "B"])
def test_a_judge_of_a_few_steps_reads_and_is_that_of_its_seed(which: Any, vae: AutoencoderTiny):
    judge, again = (train_judge(which, vae, 4, seed=5) for _ in range(2))
    weights, other = judge.net.state_dict(), again.net.state_dict()
    assert all(bool(one.isfinite().all()) and torch.equal(one, other[name]) for name, one in weights.items())
    readings, embeddings = judge.look([render(scene) for scene in scenes(1, 3)])
    assert all(one.kind in ATTRIBUTES["kind"] for one in readings)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(("which", "given", "steps"), [("A", [], 8000), ("B", [], 8000), ("B", ["--steps", "7"], 7)])
def test_what_is_measured_is_what_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: AutoencoderTiny, which: Any, given: list[str], steps: int
):
    measured: list[dict[str, torch.Tensor]] = []
    taken: list[int] = []

    def untrained(which: Any, vae: AutoencoderTiny, steps: int, seed: int) -> Judge:
        taken.append(steps)
        return Judge(script.JudgeNet(which))

    def measure(judge: Judge, *given: Any) -> dict[str, Any]:
        measured.append(judge.net.state_dict())
        return {}

    monkeypatch.setattr(script, "train_judge", untrained)
    monkeypatch.setattr(script, "measured", measure)
    vae.save_pretrained(tmp_path / "vae")
    script.main([which, "--vae", str(tmp_path / "vae"), "--out", str(tmp_path), *given])
    shipped = load_file(tmp_path / f"{which}.safetensors")
    assert taken == [steps]
    assert len(measured) == 1
    assert all(torch.equal(weights[name].float(), one.float()) for weights in measured for name, one in shipped.items())


@pytest.mark.parametrize("through", [False, True])
def test_a_judge_is_measured_on_the_same_renders_through_the_vae_and_without(vae: AutoencoderTiny, through: bool):
    shown: list[Image.Image] = []

    class Seeing(Judge):
        def read(self, images: Any, boxes: Any = None) -> Any:
            shown.extend(images)
            return super().read(images, boxes)

    judge = Seeing(script.JudgeNet("A"))
    found = script.accuracy(judge, 5, 4, vae if through else None)
    assert found["whole_kind"].count == found["half_kind"].count == 4
    again = list(shown)
    shown.clear()
    script.accuracy(judge, 5, 4)
    same = [one.tobytes() == other.tobytes() for one, other in zip(shown, again, strict=True)]
    assert all(same) is not through
    assert [one.size for one in shown] == [one.size for one in again]
