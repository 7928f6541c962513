from itertools import chain
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from fixtures_models import build_lora
from test_attaching import snapshot

from studio.adapters import load_adapter
from studio.bank import AdapterBank
from studio.errors import StudioError
from studio.gates import Gate
from studio.models import find_base, load_base
from studio.pipelines.probe import AttentionProbe, layers_on

LATENTS, WORDS, ROWS = (8, 8), 7, 3
ALL = torch.arange(WORDS).expand(ROWS, -1)


@pytest.fixture(scope="module")
def bases(tiny_sdxl, tiny_sd15):
    return {one: load_base(find_base(str(path)), "cpu") for one, path in (("sdxl", tiny_sdxl), ("sd15", tiny_sd15))}


@pytest.fixture(params=["sdxl", "sd15"])
def base(bases, request):
    return bases[request.param]


def inputs(base, dtype=torch.float32, rows=slice(0, ROWS)) -> dict[str, Any]:
    """Fixed noise and text of some of ROWS rows."""
    rng = torch.Generator().manual_seed(1)
    width = base.unet.config["cross_attention_dim"]
    found: dict[str, Any] = {
        "sample": torch.randn(ROWS, 4, *LATENTS, generator=rng).to(dtype)[rows],
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(ROWS, WORDS, width, generator=rng).to(dtype)[rows],
    }
    if base.family == "sdxl":
        added = {"text_embeds": torch.randn(ROWS, 24, generator=rng), "time_ids": torch.full((ROWS, 6), 32.0)}
        found["added_cond_kwargs"] = {key: value.to(dtype)[rows] for key, value in added.items()}
    return found


def attention_layers(base, kind="attn2"):
    return [name for name, _ in base.unet.named_modules() if name.endswith(kind)]


def scores_of_diffusers(base, layers, given):
    """What the plain processor of diffusers computes by `get_attention_scores`, spied on: {layer: [B, heads, L, N]}."""
    found, before = {}, dict(base.unet.attn_processors)
    base.unet.set_attn_processor(AttnProcessor())
    undo = []
    for name in layers:
        module = base.unet.get_submodule(name)

        def spy(*args, module=module, name=name, **kwargs):
            probabilities = type(module).get_attention_scores(module, *args, **kwargs)
            found[name] = probabilities.unflatten(0, (-1, module.heads))
            return probabilities

        module.get_attention_scores = spy
        undo.append(module)
    with torch.no_grad():
        base.unet(**given)
    for module in undo:
        del module.get_attention_scores
    base.unet.set_attn_processor(before)
    return found


def read(base, layers, columns=ALL, given=None, stop=False, latents=LATENTS):
    with AttentionProbe(base.unet, layers, latents).reading(columns, stop) as maps:
        base.unet(**(given or inputs(base)))
    return maps.layers


@pytest.mark.parametrize("adapted", [False, True])
def test_maps_are_the_attention_scores_of_diffusers(base, tiny_sd15, tiny_loras, tmp_path, adapted):
    layers = attention_layers(base)
    if base.family == "sd15" and adapted:
        tiny_loras = [build_lora(tiny_sd15, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    bank = AdapterBank(base, [load_adapter(one) for one in tiny_loras] if adapted else [])
    gate = Gate(torch.tensor([[0.4, 0.0], [0.2, -0.3], [0.0, 0.0]]))
    with bank.installed(), bank.use(gate if adapted else Gate(torch.zeros(ROWS, 0))), torch.no_grad():
        truth = scores_of_diffusers(base, layers, inputs(base))
        found = read(base, layers)
        some = torch.tensor([[1, 3], [6, 0], [2, 2]])
        chosen = read(base, layers, some)
    for name in layers:
        flat = found[name].flatten(2)
        torch.testing.assert_close(flat, truth[name].mean(1).transpose(1, 2), atol=1e-6, rtol=0)
        torch.testing.assert_close(flat.sum(1), torch.ones(ROWS, flat.shape[2]), atol=1e-6, rtol=0)
        for row in range(ROWS):
            torch.testing.assert_close(chosen[name][row], found[name][row, some[row]], atol=1e-6, rtol=0)
    if adapted:
        plain = read(base, layers)[layers[-1]]
        assert torch.allclose(found[layers[-1]][2], plain[2], atol=1e-6)
        assert not torch.allclose(found[layers[-1]][0], plain[0], atol=1e-3)


def test_pixels_that_look_at_pixels(base):
    layers = attention_layers(base, "attn1")
    truth = scores_of_diffusers(base, layers, inputs(base))
    with torch.no_grad():
        found = read(base, layers)
    for name in layers:
        torch.testing.assert_close(found[name], truth[name].mean(1), atol=1e-6, rtol=0)


def test_grids_are_those_of_the_layers(base):
    levels = {"sdxl": [1, 2], "sd15": [0, 1]}[base.family]
    found = {level: layers_on(base.unet, level) for level in levels}
    assert sorted(chain(*found.values())) == sorted(attention_layers(base))
    given = inputs(base)
    given["sample"] = torch.randn(ROWS, 4, 12, 8)
    with torch.no_grad():
        for level, layers in found.items():
            maps = read(base, layers, given=given, latents=(12, 8))
            assert {tuple(one.shape) for one in maps.values()} == {(ROWS, WORDS, 12 // 2**level, 8 // 2**level)}


def test_gradients_are_finite_differences(tiny_sdxl):
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    base.unet.double()
    layers, given = layers_on(base.unet, 1), inputs(base, dtype=torch.float64)
    weigh = torch.randn(len(layers), ROWS, WORDS, 4, 4, generator=torch.Generator().manual_seed(2)).double()

    def value(sample):
        maps = read(base, layers, given=given | {"sample": sample}, stop=True)
        return torch.stack([(w * one).sum() for w, one in zip(weigh, maps.values(), strict=True)]).sum()

    sample = given["sample"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(sample), sample)
    assert all(one.grad is None for one in base.unet.parameters())
    for seed in range(3):
        way = torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            slope = (value(sample + 1e-5 * way) - value(sample - 1e-5 * way)) / 2e-5
        assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_stopping_early_changes_no_map_and_runs_nothing_behind(base):
    layers = [name for name in attention_layers(base) if name.startswith(("down", "mid"))]
    behind = []
    hook = base.unet.up_blocks[0].register_forward_hook(lambda *_: behind.append(1))
    with torch.no_grad():
        whole, stopped = read(base, layers), read(base, layers, stop=True)
    hook.remove()
    assert len(behind) == 1
    assert all(torch.equal(whole[name], stopped[name]) for name in layers)


def test_the_prediction_is_the_same_bit_for_bit_and_nothing_stays(base):
    given = inputs(base)
    before, own = snapshot(base), [set(vars(module)) for module in base.unet.modules()]
    with torch.no_grad():
        plain = base.unet(**given).sample
        with AttentionProbe(base.unet, attention_layers(base), LATENTS).reading(ALL):
            assert torch.equal(base.unet(**given).sample, plain)
        with pytest.raises(RuntimeError):
            read(base, attention_layers(base), given=given | {"encoder_hidden_states": torch.zeros(ROWS, WORDS, 3)})
        assert torch.equal(base.unet(**given).sample, plain)
    assert snapshot(base) == before
    assert [set(vars(module)) for module in base.unet.modules()] == own


def test_rows_may_come_in_several_forwards(base):
    layers = attention_layers(base)[:2]
    columns = torch.tensor([[1, 3], [6, 0], [2, 2]])
    with torch.no_grad():
        whole = read(base, layers, columns)
        with AttentionProbe(base.unet, layers, LATENTS).reading(columns) as parts:
            for rows in (slice(0, 2), slice(2, 3)):
                base.unet(**inputs(base, rows=rows))
    for name in layers:
        torch.testing.assert_close(parts.layers[name], whole[name], atol=1e-6, rtol=0)


def test_a_layer_that_hides_its_attention_is_an_error(base):
    layers, before = attention_layers(base), dict(base.unet.attn_processors)
    base.unet.set_attn_processor(AttnProcessor())
    try:
        with torch.no_grad(), pytest.raises(StudioError, match="seen for 0 of 3 rows"):
            read(base, layers)
    finally:
        base.unet.set_attn_processor(before)
    with pytest.raises(StudioError, match="seen for 3 of 4 rows"), torch.no_grad():
        read(base, layers, torch.zeros(4, 1, dtype=torch.long))


def test_names_and_sizes_that_are_not_there(base):
    with pytest.raises(StudioError, match="no attention layer"):
        AttentionProbe(base.unet, ["mid_block.resnets.0"], LATENTS)
    with pytest.raises(StudioError, match="image tokens"), torch.no_grad():
        read(base, attention_layers(base), latents=(16, 16))


def test_words_of_texts_side_by_side_are_among_their_own(base):
    """Two texts in one: each word's map is what it would be in a forward that shows its text alone to every pixel."""
    layer = attention_layers(base)[:1]  # the first: what stands before it has read no text yet
    given = inputs(base)
    first, second = given["encoder_hidden_states"][:, :4], given["encoder_hidden_states"][:, 3:]
    both = {**given, "encoder_hidden_states": torch.cat([first, second], 1)}
    with torch.no_grad():
        alone = [
            read(base, layer, ALL[:, :4], {**given, "encoder_hidden_states": one})[layer[0]] for one in (first, second)
        ]
        with AttentionProbe(base.unet, layer, LATENTS, texts=2).reading(torch.arange(8).expand(ROWS, -1)) as maps:
            base.unet(**both)
    torch.testing.assert_close(maps.layers[layer[0]], torch.cat(alone, 1), atol=1e-6, rtol=0)
