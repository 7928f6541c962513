"""A family's scenes are near and apart, and a CLIP is written so that open_clip reads it back."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip as typed_open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image

from studio.encoders import embedded_clip, load_clip
from studio.picturebook import Scene
from studio.picturebook_draw import render
from studio.trainers.picturebook_clip import MODEL, accuracy, contrast, described, family, train_clip, write_clip
from studio.trainers.picturebook_vae import build_vae

open_clip: Any = typed_open_clip
TOKENIZERS = Path(__file__).parents[1] / "assets" / "picturebook" / "tokenizer"


@pytest.mark.parametrize("seed", range(20))
def test_scenes_of_a_family_differ_from_the_first_in_what_their_captions_say(seed: int):
    scenes = [scene for scene, _ in family(random.Random(seed))]
    assert len({repr(described(scene)) for scene in scenes}) == 4
    first = described(scenes[0])
    for other in map(described, scenes[1:]):
        same = [first.background == other.background, first.style == other.style, first.subjects == other.subjects]
        assert same.count(False) == 1


@pytest.mark.parametrize("held_out", [True, False])
def test_all_scenes_of_a_family_are_held_out_or_none(held_out: bool):
    rng = random.Random(7)
    scenes = [scene for _ in range(100) for scene, _ in family(rng, held_out)]
    assert {subject.held_out for scene in scenes for subject in scene.subjects} == {held_out}


def test_families_of_held_out_scenes_differ_in_things_too():
    """Any ground or style will do, and few other subjects, of which those that are held out are looked for."""
    rng = random.Random(8)
    families = [[described(scene) for scene, _ in family(rng, held_out=True)] for _ in range(200)]
    others = [(first, other) for first, *rest in families for other in rest]
    assert sum(first.subjects != other.subjects for first, other in others) / len(others) > 0.35


def test_training_shows_no_held_out_subject(monkeypatch: pytest.MonkeyPatch):
    shown: list[Scene] = []

    def keep(scene: Scene) -> Image.Image:
        shown.append(scene)
        return render(scene)

    monkeypatch.setattr("studio.trainers.picturebook_clip.render", keep)
    tokenizer = HFTokenizer(str(TOKENIZERS), context_length=MODEL["text_cfg"]["context_length"])
    model = train_clip(build_vae(torch.rand(4, 3, 32, 32)).eval(), tokenizer, steps=3, families=12, seed=0)
    assert len(shown) == 3 * 12 * 4
    assert not any(subject.held_out for scene in shown for subject in scene.subjects)
    assert all(bool(one.isfinite().all()) for one in model.state_dict().values())


def test_the_loss_is_that_of_the_paper():
    images, texts = (torch.nn.functional.normalize(torch.randn(3, 5), dim=1) for _ in range(2))
    logits = 7.0 * images @ texts.T
    rows = -logits.log_softmax(1).diagonal().mean()
    columns = -logits.log_softmax(0).diagonal().mean()
    assert contrast(images, texts, torch.tensor(7.0)) == pytest.approx(float(rows + columns) / 2, abs=1e-6)


def test_what_is_written_encodes_as_what_was_trained(tmp_path: Path):
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL).eval()
    write_clip(tmp_path / "clip", model, TOKENIZERS)
    picture = Image.new("RGB", (96, 96), "red")
    with torch.no_grad():
        direct = (
            model.half().float().encode_image(torch.tensor([1.0, -1, -1])[None, :, None, None].expand(1, 3, 96, 96))
        )
    direct = direct / direct.norm()
    assert torch.allclose(load_clip(str(tmp_path / "clip")).images([picture]), direct, atol=1e-5)


def test_the_shipped_clip_tells_near_scenes_apart():
    found = accuracy(embedded_clip(), seed=5, count=40)
    assert found["caption of a picture"] > 0.6  # chance is a quarter
    assert found["picture of a caption"] > 0.6
    assert found["same scene again"] > 0.6


def test_size_and_seed_are_no_words_of_a_caption():
    (scene, _), *_ = family(random.Random(1))
    assert described(replace(scene, seed=9, size="small")) == described(replace(scene, seed=3, size="big"))
