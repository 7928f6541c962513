import dataclasses

import pytest
import torch
from test_compose import SETTINGS

from studio.adapters import load_concept
from studio.bank import AdapterBank
from studio.errors import UsageError
from studio.events import silent
from studio.models import find_base, load_base
from studio.pipelines.baselines import Switch
from studio.pipelines.compose import compose, denoise, start
from studio.pipelines.regional import Masked, Regional
from studio.regions import Box, Layout

HALVES = Layout({"milo": Box(0, 0, 0.5, 1), "rex": Box(0.5, 0, 1, 1)})


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


def run_of(base, concepts, layout, composer, strengths=(1.0, 1.0), settings=SETTINGS):
    """The run after its loop, and the latents."""
    bank = AdapterBank(base, [load_concept(one) for one in concepts])
    with bank.installed():
        run = start(base, bank, settings, list(concepts), strengths, layout)
        composer.begin(run)
        with torch.no_grad():
            return run, denoise(run, composer, settings, silent)


def test_words_belong_to_their_concept_or_to_all(base, tiny_concepts):
    run, _ = run_of(base, tiny_concepts, HALVES, Regional(shared=0.25), settings=dataclasses.replace(SETTINGS, steps=1))
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


def test_one_forward_a_step_and_no_more(base, tiny_concepts):
    run, _ = run_of(base, tiny_concepts, HALVES, Regional())
    assert run.denoiser.rows == SETTINGS.steps * 2 * SETTINGS.count


def test_a_concept_on_the_whole_canvas_alone_is_the_plain_adapter(base, tiny_concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    whole = Layout({"milo": Box(0, 0, 1, 1)})
    _, found = run_of(base, tiny_concepts[:1], whole, Regional(hold=0), (0.7,), settings)
    _, plain = run_of(base, tiny_concepts[:1], None, Switch(), (0.7,), settings)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)


def test_swapping_boxes_swaps_nothing_but_the_places(base, tiny_concepts):
    """Concepts in the other order, with their boxes, draw the same picture."""
    _, found = run_of(base, tiny_concepts, HALVES, Regional())
    _, again = run_of(base, tiny_concepts[::-1], HALVES, Regional())
    torch.testing.assert_close(found, again, atol=1e-4, rtol=0)
    swapped = Layout({"rex": HALVES.boxes["milo"], "milo": HALVES.boxes["rex"]})
    _, other = run_of(base, tiny_concepts, swapped, Regional())
    assert (other - found).abs().max() > 1e-2


def test_a_concept_without_a_box_is_an_error(base, tiny_concepts):
    for layout, way in ((None, Regional()), (Layout({"milo": Box(0, 0, 1, 1)}), Masked())):
        with pytest.raises(UsageError, match=r"needs a box for <(milo|rex)>"):
            compose(base, SETTINGS, [(one, 1.0) for one in tiny_concepts], way, silent, layout)


def test_the_base_lays_the_picture_out_alone(base, tiny_concepts):
    for composer, after in ((Regional(hold=0.5), [1.0, 1.0]), (Masked(hold=0.5), [0.0, 0.0])):
        run, _ = run_of(base, tiny_concepts, HALVES, composer, settings=dataclasses.replace(SETTINGS, steps=1))
        run.scheduler.set_timesteps(4)
        weights = []
        for run.step in range(4):
            weights.append(list(composer.branches(run)[0].weights))
        assert weights == [[0, 0], [0, 0], after, after]


def test_masked_pixels_come_from_their_own_branch(base, tiny_concepts):
    run, _ = run_of(base, tiny_concepts, HALVES, Masked(), settings=dataclasses.replace(SETTINGS, steps=1))
    height, width = run.size
    predictions = torch.arange(3.0).reshape(3, 1, 1, 1, 1, 1).expand(3, 2, 1, 4, height, width)
    combined = Masked().combine(run, predictions)
    assert (combined[..., : width // 2] == 1).all()
    assert (combined[..., width // 2 :] == 2).all()
    run.layout = Layout({"milo": Box(0, 0, 0.25, 1), "rex": Box(0.75, 0, 1, 1)})
    Masked().begin(run)
    assert (Masked().combine(run, predictions)[..., width // 4 : width * 3 // 4] == 0).all()


def test_masked_concept_on_the_whole_canvas_alone_is_the_plain_adapter(base, tiny_concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    whole = Layout({"milo": Box(0, 0, 1, 1)})
    _, found = run_of(base, tiny_concepts[:1], whole, Masked(hold=0), (0.7,), settings)
    _, plain = run_of(base, tiny_concepts[:1], None, Switch(), (0.7,), settings)
    torch.testing.assert_close(found, plain, atol=1e-4, rtol=0)
