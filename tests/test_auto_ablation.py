import pytest
import torch
from composing import SETTINGS, latents

from studio.picturebook import SAMPLE_SUBJECTS
from studio.pipelines.auto import Auto
from studio.pipelines.auto_ablation import ABLATIONS, silhouettes
from studio.pipelines.auto_masks import territories
from studio.pipelines.regional import own_words


@pytest.fixture
def acting(base, concepts):
    """How the adapters act in the end, by name of what is left out."""
    made = {"auto": Auto()} | {one.name: one.make() for one in ABLATIONS}
    return {name: latents(base, concepts, composer)[1] for name, composer in made.items()}


def test_each_leaves_out_what_it_says_and_costs_no_forward_more(acting):
    plain = acting["auto"]
    for name, run in acting.items():
        assert run.denoiser.forwards == SETTINGS.steps
        assert run.denoiser.looks == (name == "auto-at-once")
        parted = 0 if name in ("auto-one-pass", "auto-words") else 1
        assert run.denoiser.rows >= (SETTINGS.steps + parted) * 2 * SETTINGS.count
        assert parted or run.denoiser.rows == SETTINGS.steps * 2 * SETTINGS.count
    found = {name: run.state["acting"] for name, run in acting.items()}
    assert found["auto-grounds"].words is None
    assert [name for name in found if not found[name].bias.worded] == ["auto-seen", "auto-words"]
    assert torch.equal(found["auto-words"].image, torch.ones_like(found["auto"].image))
    assert torch.equal(found["auto-words"].words[1], own_words(plain, 1.0))
    assert torch.equal(territories(found["auto-masks"].image), found["auto"].image)
    truth = silhouettes([SAMPLE_SUBJECTS[name] for name in plain.names], plain.size)
    assert torch.equal(found["auto-true-masks"].image[0], territories(truth[None])[0])


def test_silhouettes_stand_side_by_side_and_leave_the_edges_free():
    masks = silhouettes([SAMPLE_SUBJECTS[name] for name in ("milo", "rex")], (24, 24))
    assert masks.sum(0).max() == 1
    assert masks[0, :, 12:].sum() == 0
    assert masks[1, :, :12].sum() == 0
    assert all(0.1 < float(mask.mean()) < 0.4 for mask in masks)
    assert masks[:, 0].sum() == 0
