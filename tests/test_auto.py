import dataclasses

import torch
from composing import HALVES, SETTINGS, latents

from studio.pipelines.auto import Auto
from studio.pipelines.auto_masks import AutoMasks, bands
from studio.pipelines.baselines import Merge
from studio.pipelines.regional import Masked, own_words
from studio.regions import Box, Layout


class Split(AutoMasks):
    """A map that says: the first concept on top, the second below, nothing between."""

    def __call__(self, words, features, size):
        masks = torch.zeros(len(words), 3, *size)
        third = size[0] // 3
        masks[:, 0, :third], masks[:, 1, -third:], masks[:, 2, third:-third] = 1, 1, 1
        return masks


def test_it_takes_as_many_forwards_as_merging_and_at_the_end_a_row_for_each_concept(base, concepts):
    for layout in (None, HALVES):
        for parted, apart in ((1.0, 0), (0.7, 1), (0.5, 2), (0.0, SETTINGS.steps - 1)):
            _, run = latents(base, concepts, Auto(parted=parted), layout=layout)
            assert (run.denoiser.forwards, run.denoiser.looks) == (SETTINGS.steps, 0)
            assert run.denoiser.rows == (SETTINGS.steps + apart) * 2 * SETTINGS.count


def test_parted_from_the_first_on_it_is_masked_by_what_it_found(base, concepts):
    found, _ = latents(base, concepts, Auto(parted=0.0, alone=0.25, masks=Split(), alike=2.0))
    halves = Layout({"milo": Box(0, 0, 1, 0.5), "rex": Box(0, 0.5, 1, 1)})
    truth, _ = latents(base, concepts, Masked(hold=0.25), layout=halves)
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=1e-5)


def test_what_boxes_leave_free_is_the_bases_at_the_end_too(base, concepts):
    layout = Layout({"milo": Box(0, 0, 0.25, 1), "rex": Box(0.75, 0, 1, 1)})
    _, run = latents(base, concepts, Auto(), layout=layout)
    parts = run.state["parts"]
    assert [(one.weights, one.text) for one in parts.branches] == [((0, 0), "base"), ((1, 0), "0"), ((0, 1), "1")]
    assert torch.equal(parts.shares.sum(0), torch.ones(1, *run.size))
    assert parts.shares[:, 0, 0, :: run.size[1] // 4].T.tolist() == [[0, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]]


def test_one_concept_is_plainly_drawn(base, concepts):
    settings = dataclasses.replace(SETTINGS, prompt="a <milo> on the grass")
    found, _ = latents(base, concepts[:1], Auto(), settings, (0.8,))
    truth, _ = latents(base, concepts[:1], Merge(), settings, (0.8,))
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=1e-3)


def test_each_adapter_acts_where_the_maps_say_and_on_its_own_words(base, concepts):
    _, run = latents(base, concepts, Auto(masks=Split(), alike=2.0))
    acting, half = run.state["acting"], run.size[0] // 2
    for n, rows in enumerate((slice(half), slice(half, None))):
        expected = torch.zeros(SETTINGS.count, *run.size)
        expected[:, rows] = 1
        assert torch.equal(acting.image[:, n], expected)
    assert torch.equal(acting.words[1], own_words(run, 1.0))
    assert torch.equal(acting.bias.regions[:, :2], acting.image)
    for n, name in enumerate(run.names):
        tokens = run.prompt.tokens(run.base.tokenizers[0], name)
        assert (acting.bias.words[:, tokens] == 8 * torch.eye(3)[:, n : n + 1] - 8).all()


def test_boxes_are_the_grounds_and_hide_the_words_elsewhere(base, concepts):
    _, run = latents(base, concepts, Auto(hidden=5.0), layout=HALVES)
    assert torch.equal(run.state["acting"].image, HALVES.masks(run.names, *run.size))
    for state, by, text in (("holding", torch.inf, None), ("acting", 5.0, run.prompt)):
        bias = run.state[state].bias
        assert torch.equal(bias.regions.sum(0), torch.ones(run.size))
        if text is not None:
            for n, name in enumerate(run.names):
                tokens = text.tokens(run.base.tokenizers[0], name)
                assert (bias.words[:, tokens] == -by + by * torch.eye(3)[:, n : n + 1]).all()
        assert bias.words.min() == -by


def test_a_box_for_some_leaves_the_maps_for_the_others(base, concepts):
    layout = Layout({"rex": Box(0, 0, 1, 0.5)})
    _, run = latents(base, concepts, Auto(masks=Split(), alike=2.0), layout=layout)
    image, half = run.state["acting"].image, run.size[0] // 2
    assert (image[:, 1, :half] == 1).all()
    assert (image[:, 1, half:] == 0).all()
    assert (image[:, 0] == 0).all()  # its map lies wholly in the other's box


def test_where_the_maps_tell_nothing_the_ground_is_shared_out_in_the_order_of_the_words(base, concepts):
    _, run = latents(base, concepts, Auto(masks=Split(), most=0.1))
    image, middle = run.state["acting"].image, run.size[1] // 2
    assert (image[:, 0, :, :middle] == 1).all()
    assert (image[:, 1, :, middle:] == 1).all()
    assert (image.sum(1) == 1).all()


def test_maps_of_uneven_areas_are_not_believed(base, concepts):
    class Uneven(AutoMasks):
        def __call__(self, words, features, size):
            masks = torch.zeros(len(words), 3, *size)
            masks[:, 0, : size[0] // 2], masks[:, 1, -2:, -2:] = 1, 1
            masks[:, 2] = 1 - masks.sum(1)
            return masks

    shares = Uneven()(torch.zeros(1), [], (8, 8)).mean((2, 3))[0]
    for even, believed in ((float(shares[1] / shares[0]) - 0.01, True), (float(shares[1] / shares[0]) + 0.01, False)):
        _, run = latents(base, concepts, Auto(masks=Uneven(), alike=2.0, even=even))
        assert bool((run.state["acting"].image[:, 0, 0] == 1).all()) == believed


def test_bands_have_equal_areas():
    ground = torch.ones(1, 6, 12)
    ground[:, 1:5, 3:9] = 0
    masks = bands(ground, [7, 3])
    assert masks.sum((2, 3)).tolist() == [[12, 12]]
    assert masks[0, 1].sum(0)[:6].sum() == 12
    assert torch.equal(masks.sum(1), 1 - ground)
