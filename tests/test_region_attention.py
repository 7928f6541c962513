# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
import pytest
import torch
import torch.nn.functional as F

from studio.kernels.region_attention import (
    Regions,
    SeenTexts,
    allowed,
    flops,
    reference,
    region_attention,
    region_text_attention,
    text_reference,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(samples=2, pixels=30, keys=30):
    return [randn(samples, 3, count, 8, seed=n) for n, count in enumerate((pixels, keys, keys))]


BITS = {
    "some of none": [0, 1, 2] * 10,
    "overlapping": [1, 3, 2] * 10,
    "tiles": [1] * 10 + [2] * 10 + [4] * 10,
    "one pixel": [0] * 29 + [1],
    "all of none": [0] * 30,
    "one region": [1] * 30,
}


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_the_groups_are_the_masked_attention_in_value_and_gradients(bits):
    inputs = [one.requires_grad_() for one in three()]
    ids = torch.tensor([bits, bits[::-1]])
    found, truth = region_attention(*inputs, Regions(ids), 0.3), reference(*inputs, ids, 0.3)
    torch.testing.assert_close(found, truth, atol=1e-12, rtol=0)
    seed = randn(*found.shape, seed=9)
    for mine, theirs in zip(*(torch.autograd.grad(one, inputs, seed) for one in (found, truth)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_the_reference_by_loops():
    query, key, value = three(1, 6, 6)
    bits = [0, 1, 1, 2, 3, 2]
    found = reference(query, key, value, torch.tensor([bits]), 0.5)
    for i, own in enumerate(bits):
        seen = [j for j, other in enumerate(bits) if not own or not other or own & other]
        weights = (0.5 * query[0, :, i, None] @ key[0, :, seen].transpose(1, 2)).softmax(-1)
        torch.testing.assert_close(found[0, :, i], (weights @ value[0, :, seen])[:, 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["all of none", "one region"])
def test_one_region_is_plain_attention_bit_for_bit(name):
    given = three()
    found = region_attention(*given, Regions(torch.tensor([BITS[name]] * 2)), 0.3)
    assert torch.equal(found, F.scaled_dot_product_attention(*given, scale=0.3))


def test_the_bias_says_the_same_and_the_pairs_are_counted():
    bits = torch.tensor([BITS["overlapping"], BITS["tiles"]])
    regions = Regions(bits)
    seen = torch.stack([allowed(one, one) for one in bits])
    assert torch.equal(regions.bias(torch.float64)[:, 0] == 0, seen)
    assert regions.kept == pytest.approx(float(seen.double().mean()))
    assert flops(regions, 3, 8) == 4 * 3 * 8 * int(seen.sum())


def shares(kind):
    if kind == "own":
        return F.one_hot(torch.arange(60).view(2, 30) % 3, 3).double()
    found = randn(2, 30, 3, seed=4).clamp(min=0)
    found[found.sum(2) == 0] = 1
    return found


@pytest.mark.parametrize("kind", ["own", "several"])
def test_texts_side_by_side_are_one_attention_with_a_bias(kind):
    given, share = three(keys=15), shares(kind)
    found = region_text_attention(*given, SeenTexts(share), 0.3)
    torch.testing.assert_close(found, text_reference(*given, share, 0.3), atol=1e-12, rtol=0)


def test_a_pixel_of_one_text_attends_to_it_alone():
    (query, key, value), share = three(keys=15), shares("own")
    found = region_text_attention(query, key, value, SeenTexts(share), 0.3)
    for text in range(3):
        words = slice(5 * text, 5 * text + 5)
        alone = F.scaled_dot_product_attention(query, key[:, :, words], value[:, :, words], scale=0.3)
        own = share[..., text] == 1
        torch.testing.assert_close(found.transpose(1, 2)[own], alone.transpose(1, 2)[own], atol=1e-12, rtol=0)
