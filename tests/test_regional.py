import dataclasses

import pytest
import torch
from composing import HALVES, SETTINGS, latents

from studio.errors import UsageError
from studio.events import silent
from studio.kernels.blend import blend
from studio.pipelines.baselines import Switch
from studio.pipelines.compose import compose
from studio.pipelines.regional import Masked, Regional, parts_of
from studio.regions import Box, Layout


def test_words_belong_to_their_concept_or_to_all(base, concepts):
    _, run = latents(base, concepts, Regional(shared=0.25), dataclasses.replace(SETTINGS, steps=1), layout=HALVES)
    words = run.state["acting"].words
    tokenizer = base.tokenizers[0]
    own = [run.prompt.tokens(tokenizer, name) for name in run.names]
    assert words.shape == (2, tokenizer.model_max_length)
    assert (words[0, own[0]] == 1).all()
    assert (words[1, own[1]] == 1).all()
    assert (words[0, own[1]] == 0).all()
    assert (words[1, own[0]] == 0).all()
    others = [n for n in range(words.shape[1]) if n not in own[0] + own[1]]
    assert (words[:, others] == 0.25).all()


def test_one_forward_a_step_and_no_more(base, concepts):
    _, run = latents(base, concepts, Regional(), layout=HALVES)
    assert run.denoiser.rows == SETTINGS.steps * 2 * SETTINGS.count


def test_a_concept_on_the_whole_canvas_alone_is_the_plain_adapter(base, concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    whole = Layout({"milo": Box(0, 0, 1, 1)})
    found, _ = latents(base, concepts[:1], Regional(hold=0), settings, (0.7,), whole)
    plain, _ = latents(base, concepts[:1], Switch(), settings, (0.7,))
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)


def test_swapping_boxes_swaps_nothing_but_the_places(base, concepts):
    """Concepts in the other order, with their boxes, draw the same picture."""
    found, _ = latents(base, concepts, Regional(), layout=HALVES)
    again, _ = latents(base, concepts[::-1], Regional(), layout=HALVES)
    torch.testing.assert_close(found, again, atol=1e-4, rtol=0)
    swapped = Layout({"rex": HALVES.boxes["milo"], "milo": HALVES.boxes["rex"]})
    other, _ = latents(base, concepts, Regional(), layout=swapped)
    assert (other - found).abs().max() > 1e-2


def test_a_concept_without_a_box_is_an_error(base, concepts):
    for layout, way in ((None, Regional()), (Layout({"milo": Box(0, 0, 1, 1)}), Masked())):
        with pytest.raises(UsageError, match=r"needs a box for <(milo|rex)>"):
            compose(base, SETTINGS, [(one, 1.0) for one in concepts], way, silent, layout)


def test_the_base_lays_the_picture_out_alone(base, concepts):
    for composer, after in ((Regional(hold=0.5), [1.0, 1.0]), (Masked(hold=0.5), [1.0, 0.0])):
        _, run = latents(base, concepts, composer, dataclasses.replace(SETTINGS, steps=1), layout=HALVES)
        run.scheduler.set_timesteps(4)
        weights = []
        for run.step in range(4):
            weights.append(list(composer.branches(run)[0].weights))
        assert weights == [[0, 0], [0, 0], after, after]


def test_masked_pixels_come_from_their_own_branch_and_free_ones_from_the_base(base, concepts):
    _, run = latents(base, concepts, Masked(), dataclasses.replace(SETTINGS, steps=1), layout=HALVES)
    quarters = Layout({"milo": Box(0, 0, 0.25, 1), "rex": Box(0.75, 0, 1, 1)})
    run.step = 3
    for layout, weights in ((HALVES, [[1, 0], [1, 0], [0, 1], [0, 1]]), (quarters, [[1, 0], [0, 0], [0, 0], [0, 1]])):
        run.layout = layout
        Masked().begin(run)
        branches = Masked(hold=0).branches(run)
        assert all(text in run.denoiser.texts for text in (one.text for one in branches))
        says = torch.tensor([one.weights for one in branches])  # [branches, 2], drawn as the value of every pixel
        predictions = says[:, None, None, :, None, None].expand(-1, 2, 1, -1, *run.size)
        combined = blend(predictions, Masked().shares(run, predictions), 1.0)[0]  # [2, H, W]
        assert combined[:, 0, :: run.size[1] // 4].T.tolist() == weights


def test_each_picture_has_its_own_parts(base, concepts):
    _, run = latents(base, concepts, Masked(), dataclasses.replace(SETTINGS, steps=1), layout=HALVES)
    masks = torch.rand(3, 2, 4, 4).argmax(1, keepdim=True)
    parts = parts_of(run, torch.cat([1 - masks, masks], 1).float())
    assert torch.equal(parts.shares[1], masks[:, 0].float())
    assert [branch.weights for branch in parts.branches] == [(1, 0), (0, 1)]


def test_masked_concept_on_the_whole_canvas_alone_is_the_plain_adapter(base, concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    whole = Layout({"milo": Box(0, 0, 1, 1)})
    found, _ = latents(base, concepts[:1], Masked(hold=0), settings, (0.7,), whole)
    plain, _ = latents(base, concepts[:1], Switch(), settings, (0.7,))
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)
