import math
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from test_attaching import snapshot
from test_feature_cache import randn

from studio.adapters import load_adapter
from studio.bank import AdapterBank
from studio.errors import StudioError
from studio.kernels.region_attention import allowed
from studio.models import find_base, load_base
from studio.pipelines.attention_bias import AttentionBias
from studio.pipelines.denoiser import Branch, Denoiser
from studio.pipelines.feature_cache import FeatureCache
from studio.pipelines.probe import AttentionProbe, layers_on

TIME = torch.tensor(500)
INF = math.inf


@pytest.fixture(scope="module")
def bases(tiny_sdxl, tiny_sd15):
    return {one: load_base(find_base(str(path)), "cpu") for one, path in (("sdxl", tiny_sdxl), ("sd15", tiny_sd15))}


@pytest.fixture(params=["sdxl", "sd15"])
def base(bases, request):
    return bases[request.param]


def asking(base) -> Denoiser:
    made = Denoiser(base, AdapterBank(base, []), guided=True)
    made.read("all", "a red cat", "night", ())
    return made


def tokens(denoiser) -> int:
    return denoiser.texts["all"].embeds.shape[1]


def regions(size, *n: int, seed=0) -> torch.Tensor:
    """Two of 0 and 1 that meet, overlap and leave ground free."""
    return randn(*n, 2, *size, seed=seed).gt(0.3).float()


def windows(size, small):
    """The cells that each pixel of the smaller grid covers, by hand."""
    for y in range(small[0]):
        for x in range(small[1]):
            rows = range(y * size[0] // small[0], -(-(y + 1) * size[0] // small[0]))
            columns = range(x * size[1] // small[1], -(-(x + 1) * size[1] // small[1]))
            yield [(row, column) for row in rows for column in columns]


def factors(masks, words, small) -> list[list[float]]:
    """exp(bias) of every pixel and token, by loops: the mean over cells, each the mean over its regions."""
    size, found = masks.shape[1:], []
    for cells in windows(size, small):
        row = []
        for token in range(words.shape[1]):
            total = 0.0
            for y, x in cells:
                own = [math.exp(words[r, token]) for r in range(len(masks)) if masks[r, y, x]]
                total += sum(own) / len(own) if own else 1.0
            row.append(total / len(cells))
        found.append(row)
    return found


def walls(masks, small) -> list[list[float]]:
    """1 where pixel p sees pixel q, by loops over what covers most of each."""
    owners = []
    for cells in windows(masks.shape[1:], small):
        shares = [0.0] * (len(masks) + 1)
        for y, x in cells:
            own = [r for r in range(len(masks)) if masks[r, y, x]] or [len(masks)]
            for r in own:
                shares[r] += 1 / len(own)
        owners.append({r for r in range(len(masks)) if shares[r] > max(shares) - 1e-6})
    return [[float(not p or not q or bool(p & q)) for q in owners] for p in owners]


@contextmanager
def by_hand(base, kind: str, biased: dict[int, Any], size):
    """Attention computed plainly by diffusers, times factors by row of the batch: {row: f(small) -> [L, N]}."""
    before, undo = dict(base.unet.attn_processors), []
    base.unet.set_attn_processor(AttnProcessor())
    for name, module in base.unet.named_modules():
        if not name.endswith(kind):
            continue
        grids = [size]
        while len(grids) < 4:
            grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))

        def scores(query, key, mask=None, module=module, grids=grids):
            plain = type(module).get_attention_scores(module, query, key, mask).unflatten(0, (-1, module.heads))
            (small,) = [one for one in grids if one[0] * one[1] == query.shape[1]]
            for row, make in biased.items():
                if row < len(plain):
                    weighed = plain[row] * torch.tensor(make(small))
                    plain[row] = weighed / weighed.sum(2, keepdim=True)
            return plain.flatten(0, 1)

        module.get_attention_scores = scores
        undo.append(module)
    try:
        yield
    finally:
        for module in undo:
            del module.get_attention_scores
        base.unet.set_attn_processor(before)


def predict(denoiser, latents, *branches: Branch) -> torch.Tensor:
    with torch.no_grad():
        return denoiser.predict(latents, TIME, branches)


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_words_are_biased_as_by_loops_where_there_are_words(base, size):
    asked, latents = asking(base), randn(2, 4, *size)
    masks, words = regions(size, 2), 3 * randn(2, tokens(asked), seed=2)
    words[0, 3] = words[1, 5] = -INF
    found = predict(asked, latents, Branch((), bias=AttentionBias(masks, words)), Branch(()))
    # Rows are branch by branch, without words first, picture by picture: 2 and 3 have words and the bias.
    made = {2 + i: lambda small, i=i: factors(masks[i], words, small) for i in range(2)}
    with by_hand(base, "attn2", made, size):
        truth = predict(asked, latents, Branch(()), Branch(()))
    torch.testing.assert_close(found, truth, atol=2e-5, rtol=0)
    plain = predict(asked, latents, Branch(()), Branch(()))
    assert float((found - plain)[0, 1].abs().max()) > 1e-2
    assert torch.equal(found[0, 0], plain[0, 0])
    assert torch.equal(found[1], plain[1])


@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_cell_by_cell_is_the_same_as_by_region(base, size):
    masks, words = regions(size), randn(2, 7, seed=2)
    words[1, 2] = -INF
    cells = torch.tensor(factors(masks, words, size)).log().unflatten(0, size)
    for small in (size, (4, 4), (3, 2), (1, 1)):
        found = AttentionBias(cells=cells).on_words(0, small)
        torch.testing.assert_close(found, AttentionBias(masks, words).on_words(0, small), atol=1e-5, rtol=0)
    whole = AttentionBias(torch.ones(1, *size), words[:1]).on_words(0, (3, 2))
    assert torch.equal(whole, words[:1].expand(6, -1))


@pytest.mark.parametrize(("size", "apart"), [((8, 8), 0), ((9, 7), 0), ((9, 7), 2)])
def test_regions_are_kept_apart_as_by_loops(base, size, apart):
    asked, latents, masks = asking(base), randn(1, 4, *size), regions(size)
    found = predict(asked, latents, Branch((), bias=AttentionBias(masks, apart=apart)), Branch(()))
    fine = size[0] if apart == 0 else 3

    def seen(small):
        return walls(masks, small) if small[0] <= fine else [[1.0] * (small[0] * small[1])] * (small[0] * small[1])

    with by_hand(base, "attn1", {0: seen, 1: seen}, size):
        truth = predict(asked, latents, Branch(()), Branch(()))
    torch.testing.assert_close(found, truth, atol=2e-5, rtol=0)


def test_who_sees_whom():
    # Three cells: of the left region, of both, of the right one; and one of none.
    masks = torch.tensor([[[1.0, 1, 0, 0]], [[0, 1, 1, 0]]])
    bits = AttentionBias(masks, apart=0).on_pixels(0, (1, 4))
    assert allowed(bits, bits).tolist() == [
        [True, True, False, True],
        [True] * 4,
        [False, True, True, True],
        [True] * 4,
    ]


@pytest.mark.parametrize("size", [(17, 23), (24, 40), (5, 3)])
def test_no_pixel_is_left_without_a_key(size):
    for seed in range(5):
        bias = AttentionBias(
            randn(3, *size, seed=seed).sigmoid(), torch.tensor([[0, -INF], [-INF, 0], [-9, 9]]), None, 0
        )
        small = size
        while small != (1, 1):
            assert bias.on_words(0, small).isfinite().any(1).all()
            small = (-(-small[0] // 2), -(-small[1] // 2))


def test_a_bias_of_zeros_is_none_and_no_layer_is_touched(base, monkeypatch):
    asked, latents = asking(base), randn(1, 4, 8, 8)
    plain = predict(asked, latents, Branch(()))
    monkeypatch.setattr("studio.pipelines.attention_bias.tap", None)
    for bias in (
        AttentionBias(regions((8, 8)), torch.zeros(2, tokens(asked))),
        AttentionBias(cells=torch.zeros(8, 8, tokens(asked))),
    ):
        assert torch.equal(predict(asked, latents, Branch((), bias=bias)), plain)


def test_the_probe_reads_biased_attention(base):
    asked, latents, size = asking(base), randn(2, 4, 8, 8), (8, 8)
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[:, :2] = True
    masks = hidden.float().repeat_interleave(2, 0).repeat_interleave(2, 1)[None]
    words = torch.zeros(1, tokens(asked))
    words[0, 2] = -INF
    layers = layers_on(base.unet, 1)
    asked.probe = AttentionProbe(base.unet, layers, size)
    branches = [Branch((), columns=(1, 2), bias=AttentionBias(masks, words)), Branch((), columns=(1, 2))]
    predict(asked, latents, *branches)
    with torch.no_grad():
        looked = asked.look(latents, TIME, branches)
    for maps in (asked.maps, looked):
        first = maps[0].layers[layers[0]]
        assert not first[:, 1][:, hidden].any()
        assert first[:, 1][:, ~hidden].all()
        assert maps[1].layers[layers[0]].all()
    for one, other in zip(asked.maps, looked, strict=True):
        torch.testing.assert_close(one.mean(), other.mean(), atol=1e-6, rtol=0)


def test_gradients_pass_the_bias(base):
    asked = asking(base)
    words = torch.zeros(2, tokens(asked))
    words[0, 2] = -INF
    asked.probe = AttentionProbe(base.unet, layers_on(base.unet, 1), (8, 8))
    latents = randn(1, 4, 8, 8).requires_grad_()
    maps = asked.look(latents, TIME, [Branch((), columns=(1,), bias=AttentionBias(regions((8, 8)), words, apart=1))])
    (gradient,) = torch.autograd.grad(maps[0].mean().sum(), latents)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_steps_small_batches_and_cached_features(base):
    asked, latents = asking(base), randn(2, 4, 8, 8)
    masks, words = regions((8, 8), 2), randn(2, tokens(asked), seed=2)
    bias = AttentionBias(masks, words, apart=1)
    branches = [Branch((), bias=bias), Branch(())]
    whole = predict(asked, latents, *branches)
    assert torch.equal(predict(asked, latents, *branches), whole)
    asked.max_rows = 3
    torch.testing.assert_close(predict(asked, latents, *branches), whole, atol=1e-5, rtol=0)
    asked.max_rows, asked.features = 16, FeatureCache(base.unet, 1)
    predict(asked, latents, *branches)
    torch.testing.assert_close(
        predict(asked, latents, *[Branch((), bias=one.bias, cached=True) for one in branches]), whole, atol=1e-6, rtol=0
    )
    words.zero_()
    masks.zero_()
    asked.features = None
    torch.testing.assert_close(predict(asked, latents, *branches), predict(asked, latents, Branch(()), Branch(())))


def test_nothing_stays_also_after_an_accident(base):
    asked, before = asking(base), snapshot(base)
    own = [set(vars(module)) for module in base.unet.modules()]
    bias = AttentionBias(regions((8, 8)), torch.ones(2, 3))
    with pytest.raises(StudioError, match="a layer has"):
        predict(asked, randn(1, 4, 8, 8), Branch((), bias=bias))
    assert snapshot(base) == before
    assert [set(vars(module)) for module in base.unet.modules()] == own


def test_what_cannot_be_meant(base):
    with pytest.raises(StudioError, match="hides every token"):
        AttentionBias(regions((8, 8)), torch.full((2, 3), -INF))
    with pytest.raises(StudioError, match="no regions"):
        AttentionBias(apart=1)
    asked, before = asking(base), dict(base.unet.attn_processors)
    base.unet.set_attn_processor(AttnProcessor())
    try:
        with pytest.raises(StudioError, match="seen for 0 of 2 rows"):
            predict(
                asked, randn(1, 4, 8, 8), Branch((), bias=AttentionBias(regions((8, 8)), torch.ones(2, tokens(asked))))
            )
    finally:
        base.unet.set_attn_processor(before)


def test_pictures_may_have_image_masks_of_their_own(bases, tiny_loras):
    base = bases["sdxl"]
    bank = AdapterBank(base, [load_adapter(one) for one in tiny_loras])
    with bank.installed():
        asked = Denoiser(base, bank, guided=True)
        asked.read("all", "a red cat", "night", (0, 0))
        latents, masks = randn(2, 4, 8, 8), regions((8, 8), 2)
        both = predict(asked, latents, Branch((1, 1), image=masks))
        for i in range(2):
            alone = predict(asked, latents[i : i + 1], Branch((1, 1), image=masks[i]))
            torch.testing.assert_close(both[:, :, i], alone[:, :, 0], atol=1e-5, rtol=0)
    assert float((both - predict(asked, latents, Branch((1, 1)))).abs().max()) > 1e-3


def test_words_without_words_are_biased_only_where_always(base):
    asked, latents = asking(base), randn(2, 4, 8, 8, seed=1)
    words = torch.zeros(1, tokens(asked)).index_fill(1, torch.tensor([1]), 3.0)
    own, both = (AttentionBias(torch.ones(1, 8, 8), words, always=always) for always in (False, True))
    plain, some, all_of = predict(asked, latents, Branch(()), Branch((), bias=own), Branch((), bias=both))
    assert torch.equal(some[1], all_of[1])
    assert not torch.equal(plain[1], some[1])
    torch.testing.assert_close(some[0], plain[0], atol=1e-5, rtol=0)
    assert float((all_of[0] - plain[0]).abs().max()) > 1e-4
