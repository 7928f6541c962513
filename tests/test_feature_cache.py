import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures_models import diffusers
from test_attaching import snapshot
from torch.utils.flop_counter import FlopCounterMode

import studio
from studio.adapters import load_concept
from studio.bank import AdapterBank
from studio.errors import StudioError
from studio.models import find_base, load_base
from studio.pipelines.denoiser import Branch, Denoiser
from studio.pipelines.feature_cache import FeatureCache, shallowest_with_words
from studio.pipelines.text_cache import TextRows

PICTUREBOOK = Path(studio.__file__).parents[1] / "assets/picturebook/unet/config.json"
EVERY = [("sd15", 1), ("sdxl", 1), ("sdxl", 2), ("picturebook", 1), ("picturebook", 2)]


@pytest.fixture(scope="module")
def unets(tiny_sd15, tiny_sdxl) -> dict[str, Any]:
    torch.manual_seed(3)
    made = diffusers.UNet2DConditionModel.from_config(json.loads(PICTUREBOOK.read_text()))
    tiny = {
        name: load_base(find_base(str(path)), "cpu").unet for name, path in (("sd15", tiny_sd15), ("sdxl", tiny_sdxl))
    }
    return {**tiny, "picturebook": made.eval()}


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


@pytest.fixture
def denoiser(base, tiny_concepts):
    bank = AdapterBank(base, [load_concept(one) for one in tiny_concepts])
    with bank.installed():
        made = Denoiser(base, bank, guided=True)
        for key, weights in (("0", (1.0, 0.0)), ("1", (0.0, 1.0))):
            made.read(key, "a red cat", "night", weights)
        made.features = FeatureCache(base.unet, 2)
        yield made


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(unet, rows: int = 3, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
    added = None
    if (wide := unet.config["projection_class_embeddings_input_dim"]) is not None:
        ids = 6 * unet.config["addition_time_embed_dim"]
        added = {"text_embeds": randn(rows, wide - ids), "time_ids": torch.full((rows, 6), 32.0)}
    words = randn(rows, 5, unet.config["cross_attention_dim"], seed=1)
    return {
        "sample": randn(rows, 4, *size), "timestep": torch.tensor(500),
        "encoder_hidden_states": words, "added_cond_kwargs": added,
    }  # fmt: skip


def predict(unet, given) -> torch.Tensor:
    with torch.no_grad():
        return unet(**given).sample


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(("name", "shallow"), EVERY)
@pytest.mark.parametrize("size", [(8, 8), (12, 16), (9, 7)])
def test_a_hit_at_the_same_inputs_is_the_full_forward_bit_for_bit(unets, name, shallow, size):
    unet, cache = unets[name], FeatureCache(unets[name], shallow)
    given = inputs(unet, size=size)
    plain = predict(unet, given)
    with cache.storing("abc"):
        assert torch.equal(predict(unet, given), plain)
    with cache.reusing("abc"):
        assert torch.equal(predict(unet, given), plain)
    assert torch.equal(predict(unet, given), plain)


@pytest.mark.parametrize(("name", "shallow"), EVERY)
def test_a_hit_runs_the_shallow_layers_and_no_others(unets, name, shallow):
    unet, cache = unets[name], FeatureCache(unets[name], shallow)
    ran, handles = set(), []
    for path, module in unet.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(lambda *_, path=path: ran.add(path)))
    given = inputs(unet)
    try:
        with cache.storing("abc"):
            full = flops(lambda: predict(unet, given))
        everything = set(ran)
        ran.clear()
        with cache.reusing("abc"):
            cut = flops(lambda: predict(unet, given))
    finally:
        for handle in handles:
            handle.remove()
    downs, ups = len(unet.down_blocks), len(unet.up_blocks)
    deep = [f"down_blocks.{n}." for n in range(shallow, downs)] + [f"up_blocks.{n}." for n in range(ups - shallow)]
    deep += ["mid_block.", f"down_blocks.{shallow - 1}.downsamplers."]
    assert everything - ran == {path for path in everything if path.startswith(tuple(deep))}
    assert cut < 0.8 * full


def test_rows_come_from_the_cache_in_any_order_and_keep_their_own_features(unets):
    unet, cache = unets["sdxl"], FeatureCache(unets["sdxl"], 1)
    given = inputs(unet)
    with cache.storing("abc"):
        plain = predict(unet, given)
    some = {"sample": given["sample"][[2, 0]], "encoder_hidden_states": given["encoder_hidden_states"][[2, 0]]}
    added = {key: value[[2, 0]] for key, value in given["added_cond_kwargs"].items()}
    with cache.reusing("ca"):
        torch.testing.assert_close(predict(unet, {**given, **some, "added_cond_kwargs": added}), plain[[2, 0]])
    with cache.reusing("aab"):
        assert (predict(unet, given) - plain)[1:].abs().amax((1, 2, 3)).min() > 1e-4


def test_features_are_those_of_the_last_full_forward(unets):
    unet, cache = unets["sdxl"], FeatureCache(unets["sdxl"], 1)
    first, second = inputs(unet), {**inputs(unet), "timestep": torch.tensor(100)}
    with cache.storing("abc"):
        predict(unet, first)
    with cache.reusing("abc"):
        stale = predict(unet, second)
    with cache.storing("abc"):
        fresh = predict(unet, second)
    assert not torch.equal(stale, fresh)
    with cache.reusing("abc"):
        assert torch.equal(predict(unet, second), fresh)
    cache.clear()
    with pytest.raises(StudioError, match="No full forward has stored features of a"), cache.reusing("abc"):
        pass


def test_nothing_is_left_behind_and_what_others_put_there_stays(unets):
    unet, cache = unets["sdxl"], FeatureCache(unets["sdxl"], 1)
    given = inputs(unet)
    own = unet.mid_block.forward
    unet.mid_block.forward = lambda *args, **kwargs: own(*args, **kwargs)  # as offloading does
    theirs = unet.mid_block.forward
    try:
        with cache.storing("abc"):
            predict(unet, given)
        with pytest.raises(KeyboardInterrupt), cache.reusing("abc"):
            raise KeyboardInterrupt
        assert unet.mid_block.forward is theirs
    finally:
        del unet.mid_block.forward
    assert not any("forward" in vars(module) or module._forward_hooks for module in unet.modules())


@pytest.mark.parametrize(("name", "depth"), [("sd15", 1), ("sdxl", 2), ("picturebook", 2)])
def test_the_shallow_part_reads_the_words(unets, name, depth):
    assert shallowest_with_words(unets[name]) == depth


@pytest.mark.parametrize("shallow", [0, 3])
def test_a_cut_that_leaves_nothing_is_an_error(unets, shallow):
    with pytest.raises(StudioError, match="3 up blocks cannot be cut"):
        FeatureCache(unets["sdxl"], shallow)


def test_cached_branches_at_the_same_step_predict_the_same_bits(denoiser):
    latents, t = randn(2, 4, 8, 8), torch.tensor(500)
    full = [Branch((1.0, 0.0), "0"), Branch((0.0, 1.0), "1")]
    truth = denoiser.predict(latents, t, full)
    cached = denoiser.predict(latents, t, [Branch(b.weights, b.text, cached=True) for b in full])
    assert torch.equal(cached, truth)
    mixed = denoiser.predict(latents, t, [full[0], Branch((0.0, 1.0), "1", cached=True)])
    torch.testing.assert_close(mixed, truth, atol=1e-5, rtol=1e-5)
    assert (denoiser.forwards, denoiser.rows, denoiser.cached_rows) == (4, 8 + 4, 8 + 4)


def test_cached_branches_together_equal_one_at_a_time(denoiser):
    branches = [Branch((1.0, 0.0), "0"), Branch((0.0, 1.0), "1")]
    denoiser.predict(randn(2, 4, 8, 8), torch.tensor(500), branches)
    later, t = randn(2, 4, 8, 8, seed=5), torch.tensor(400)
    together = denoiser.predict(later, t, [Branch(b.weights, b.text, cached=True) for b in branches])
    denoiser.max_rows = 1
    alone = denoiser.predict(later, t, [Branch(b.weights, b.text, cached=True) for b in branches])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (denoiser.predict(later, t, branches) - together).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("latents", "branch"),
    [
        (randn(3, 4, 8, 8), Branch((1.0, 0.0), "0", cached=True)),
        (randn(2, 4, 8, 12), Branch((1.0, 0.0), "0", cached=True)),
        (randn(2, 4, 8, 8), Branch((1.0, 0.0), "1", cached=True)),
    ],
    ids=["another batch", "another size", "another text"],
)
def test_what_no_full_forward_was_made_for_is_an_error(denoiser, latents, branch):
    t = torch.tensor(500)
    denoiser.predict(randn(2, 4, 8, 8), t, [Branch((1.0, 0.0), "0")])
    with pytest.raises(StudioError, match="No full forward has stored"):
        denoiser.predict(latents, t, [branch])


def test_a_cached_branch_without_a_cache_is_an_error(denoiser):
    denoiser.features = None
    with pytest.raises(StudioError, match="no cache of features"):
        denoiser.predict(randn(1, 4, 8, 8), torch.tensor(500), [Branch((1.0, 0.0), "0", cached=True)])


def test_keys_and_values_of_the_text_are_computed_once_and_are_the_same_bits(denoiser, base):
    branches, t = [Branch((1.0, 0.0), "0"), Branch((0.5, 1.0), "1")], torch.tensor(500)
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_: calls.append(1))
        for name, layer in base.unet.named_modules()
        if name.endswith(("attn2.to_k", "attn2.to_v"))
    ]
    before = snapshot(base)
    try:
        kept = [denoiser.predict(randn(1, 4, 8, 8, seed=seed), t, branches) for seed in range(3)]
        assert len(calls) == len(handles)
        denoiser.keep_text = False
        assert torch.equal(denoiser.predict(randn(1, 4, 8, 8, seed=2), t, branches), kept[2])
        assert len(calls) == 2 * len(handles)
    finally:
        for handle in handles:
            handle.remove()
    assert snapshot(base) == before
    assert not any(key in vars(module) for module in base.unet.modules() for key in ("to_k", "to_v"))


def test_rows_of_the_text_are_known_in_other_batches_too(denoiser, base):
    one, other, t = Branch((1.0, 0.0), "0"), Branch((0.5, 1.0), "1"), torch.tensor(500)
    apart = [denoiser.predict(randn(1, 4, 8, 8), t, [branch]) for branch in (one, other)]
    calls = []
    handle = (
        base.unet.up_blocks[0]
        .attentions[0]
        .transformer_blocks[0]
        .attn2.to_k.register_forward_hook(lambda *_: calls.append(1))
    )
    try:
        together = denoiser.predict(randn(1, 4, 8, 8), t, [other, one, other])
        assert not calls
        denoiser.predict(randn(1, 4, 8, 8), t, [other, Branch((0.5, 0.9), "1")])
        assert len(calls) == 1
    finally:
        handle.remove()
    torch.testing.assert_close(together, torch.cat([apart[1], apart[0], apart[1]]), rtol=1e-5, atol=1e-6)


def test_only_so_many_rows_of_the_text_are_kept():
    def found(keys: str) -> list[float] | None:
        rows_found = rows.find(keys, layer)
        return None if rows_found is None else rows_found.flatten().tolist()

    rows, layer = TextRows(most=3), torch.nn.Linear(1, 1)
    rows.keep("abcd", layer, torch.arange(4.0).view(4, 1, 1))
    assert found("a") is None
    assert found("db") == [3, 1]
    rows.keep("b", torch.nn.Linear(1, 1), torch.zeros(1, 1, 1))
    rows.keep("ef", layer, torch.zeros(2, 1, 1))
    assert found("c") is None
    assert found("b") == [1]


def test_another_text_or_gate_is_computed_anew(denoiser):
    latents, t = randn(1, 4, 8, 8), torch.tensor(500)
    mask = torch.zeros(2, denoiser.texts["0"].embeds.shape[1])
    for change in (
        lambda: [Branch((1.0, 0.0), "0")],
        lambda: [Branch((0.3, 0.0), "0")],
        lambda: [Branch((1.0, 0.0), "0", words=mask)],
        lambda: (mask.fill_(1), [Branch((1.0, 0.0), "0", words=mask)])[1],
        lambda: (denoiser.read("0", "two blue houses", "", (1.0, 0.0)), [Branch((1.0, 0.0), "0")])[1],
    ):
        branches = change()
        kept = denoiser.predict(latents, t, branches)
        fresh = Denoiser(denoiser.base, denoiser.bank, guided=True)
        fresh.texts, fresh.keep_text = denoiser.texts, False
        assert torch.equal(fresh.predict(latents, t, branches), kept)
