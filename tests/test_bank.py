from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from test_attaching import outputs, snapshot

import studio.bank
from studio.adapters import Adapter, load_adapter
from studio.attaching import attach
from studio.bank import AdapterBank
from studio.errors import StudioError
from studio.factors import Dora, Factor, Full, Hadamard, Kronecker, LowRank
from studio.gates import Gate, strips
from studio.models import find_base, load_base

BLOCK = "unet.down_blocks.1.attentions.0.transformer_blocks.0"
LINEAR, CONV = f"{BLOCK}.attn1.to_q", "unet.down_blocks.1.resnets.0.conv1"


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low(out: int, inputs: int, *kernel: int, rank: int = 3, seed: int = 0) -> LowRank:
    ones = [1] * len(kernel)
    return LowRank(randn(rank, inputs, *kernel, seed=seed), randn(out, rank, *ones, seed=seed + 1), 2.0)


def every_kind(base) -> Adapter:
    """One layer of each kind of layer and factor that the bank knows."""
    conv = base.unet.get_submodule(CONV.removeprefix("unet.")).weight.shape
    factors = {
        LINEAR: low(16, 16),
        f"{BLOCK}.attn2.to_k": low(16, 40, seed=2),
        f"{BLOCK}.attn1.to_k": Hadamard(low(16, 16, seed=4), low(16, 16, seed=6), 2.0),
        f"{BLOCK}.attn1.to_v": Kronecker(randn(4, 8), randn(4, 2, seed=1), layout="ibm"),
        f"{BLOCK}.attn1.to_out.0": Dora(low(16, 16, seed=8), 1 + randn(16, 1).abs()),
        f"{BLOCK}.attn2.to_q": Kronecker(randn(2, 4), randn(8, 4, seed=1)),
        f"{BLOCK}.norm1": Full(randn(16)),
        CONV: low(*conv, seed=10),
        "unet.down_blocks.1.resnets.0.norm1": Full(randn(conv[1])),
        "unet.down_blocks.1.resnets.0.time_emb_proj": low(16, 32, seed=12),
        "unet.down_blocks.1.downsamplers.0.conv": low(16, 16, 3, 3, seed=14),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": low(16, 16, seed=16),
    }
    biases = {CONV: randn(conv[0]), LINEAR.replace("to_q", "to_out.0"): randn(16)}
    return Adapter("kinds", "test", "sdxl", factors, biases)


def noise(samples: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    added = {"text_embeds": torch.randn(samples, 24, generator=rng), "time_ids": torch.full((samples, 6), 32.0)}
    return {
        "sample": torch.randn(samples, 4, 8, 8, generator=rng), "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(samples, 5, 40, generator=rng), "added_cond_kwargs": added,
    }  # fmt: skip


def predict(base, samples: int = 1, rows: list[int] | None = None) -> torch.Tensor:
    """The UNet's answer to fixed noise of `samples` samples, or to some `rows` of it."""
    inputs = noise(samples)
    if rows is not None:
        pick = lambda value: {k: v[rows] for k, v in value.items()} if isinstance(value, dict) else value[rows]  # noqa: E731
        inputs = {key: value if key == "timestep" else pick(value) for key, value in inputs.items()}
    with torch.no_grad():
        return base.unet(**inputs).sample


def close(got: torch.Tensor, truth: torch.Tensor, base_alone: torch.Tensor) -> bool:
    return float((got - truth).abs().max()) < 1e-5 * float((truth - base_alone).abs().max())


def test_a_gate_of_ones_is_merging_for_every_kind(base, tiny_loras):
    adapters = [every_kind(base), load_adapter(tiny_loras[1])]
    with attach(base, [(one, s) for one, s in zip(adapters, (0.7, -0.4), strict=True)]):
        truth = outputs(base)
    bank = AdapterBank(base, adapters)
    with bank.installed(), bank.use(Gate(torch.tensor([[0.7, -0.4]]))):
        got = outputs(base)
    for mine, wanted, alone in zip(got, truth, outputs(base), strict=True):
        assert close(mine, wanted, alone)
    with bank.merged((0.7, -0.4)):
        assert all(torch.equal(*pair) for pair in zip(outputs(base), truth, strict=True))


def test_a_layer_that_another_bank_computes_is_refused_and_nothing_is_left(base, tiny_loras):
    before = snapshot(base)
    one, other = (AdapterBank(base, [load_adapter(tiny_loras[n])], extends=True) for n in (0, 1))
    with one.installed(), pytest.raises(StudioError, match="Another bank"), other.installed():
        pass
    assert snapshot(base) == before


def test_without_a_gate_or_with_zeros_the_base_is_bit_equal_and_nothing_is_left(base):
    before, alone = snapshot(base), predict(base)
    bank = AdapterBank(base, [every_kind(base)])
    with bank.installed():
        assert torch.equal(predict(base), alone)
        with bank.use(Gate(torch.zeros(1, 1))):
            assert torch.equal(predict(base), alone)
        with bank.use(Gate(torch.ones(1, 1))):
            assert not torch.equal(predict(base), alone)
        assert bank.gate is None
    with pytest.raises(KeyboardInterrupt), bank.installed():
        raise KeyboardInterrupt
    assert snapshot(base) == before
    assert torch.equal(predict(base), alone)
    assert not any(module._forward_hooks for module in base.unet.modules())


@pytest.mark.parametrize("plain", [0, 1, 3])
def test_each_sample_of_a_batch_has_its_own_adapter_or_none(base, tiny_loras, plain):
    """That of none is bit for bit the base's, where in the batch it may be."""
    adapters = [every_kind(base), *map(load_adapter, tiny_loras)]
    bank, places = AdapterBank(base, adapters), [n for n in range(4) if n != plain]
    weights = torch.zeros(4, 3)
    weights[places, range(3)] = 1
    with bank.installed(), bank.use(Gate(weights)):
        together = predict(base, 4)
    alone = predict(base, 4)
    assert torch.equal(together[plain], alone[plain])
    for place, adapter in zip(places, adapters, strict=True):
        with attach(base, [(adapter, 1.0)]):
            assert close(together[place], predict(base, 4)[place], alone[place])


def test_gates_that_differ_in_numbers_alone_are_planned_once(base, tiny_loras, monkeypatch):
    """And each acts by its own: scales, masks, words."""
    adapters = [every_kind(base), *map(load_adapter, tiny_loras)]
    layouts = [strips(3, 2, (8, 8), torch.ones(1)), strips(3, 2, (8, 8), torch.ones(1), shift=1), None]
    words = [None, torch.eye(3, 5).expand(2, 3, 5), None]
    gates = [
        Gate(torch.tensor([[0.0, 0.4, -1.0], [0.0, second, 2.0]]), image, text)
        for second, image, text in zip((0.7, 0.0, -0.3), layouts, words, strict=True)
    ]
    alone = []
    for gate in gates:
        with AdapterBank(base, adapters).installed() as bank, bank.use(gate):
            alone.append(predict(base, 2))
    plans, planned = list[object](), studio.bank._planned
    monkeypatch.setattr(studio.bank, "_planned", lambda *given: plans.append(given) or planned(*given))
    with AdapterBank(base, adapters).installed() as bank:
        for gate, wanted in zip(gates, alone, strict=True):
            with bank.use(gate):
                assert torch.equal(predict(base, 2), wanted)
        reached = [one for one in bank.hooked if one.name.startswith("unet.")]
        assert len(plans) == len(reached)


def test_a_region_of_one_layer_is_its_adapter_there_and_the_base_elsewhere(base):
    bank = AdapterBank(base, [Adapter("a", "test", "sdxl", {LINEAR: low(16, 16), CONV: low(16, 8, 3, 3)})])
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    for path, x in ((LINEAR, randn(1, 16, 16)), (CONV, randn(1, 8, 4, 4))):
        layer = base.unet.get_submodule(path.removeprefix("unet."))
        plain = layer(x)
        with bank.merged([1.0]):
            whole = layer(x)
        with bank.installed(), bank.use(Gate(torch.ones(1, 1), mask)):
            part = layer(x)
        if part.dim() == 3:
            part, plain, whole = (y.transpose(1, 2).unflatten(2, (4, 4)) for y in (part, plain, whole))
        assert torch.equal(part[..., 2:], plain[..., 2:])
        torch.testing.assert_close(part[..., :2], whole[..., :2], atol=1e-6, rtol=0)
        assert (whole - plain).abs().max() > 0.05


def test_text_layers_change_only_their_own_words(base):
    path = f"{BLOCK}.attn2.to_k"
    bank = AdapterBank(base, [Adapter("a", "test", "sdxl", {path: low(16, 40)})])
    layer = base.unet.get_submodule(path.removeprefix("unet."))
    x, text = randn(1, 5, 40), torch.tensor([[[0.0, 1, 1, 0, 0]]])
    with bank.installed(), bank.use(Gate(torch.ones(1, 1), torch.zeros(1, 1, 8, 8), text)):
        moved = (layer(x) - torch.nn.functional.linear(x, layer.weight)).abs().amax((0, 2))
    assert (moved > 0).tolist() == [False, True, True, False, False]


def test_many_disjoint_regions_equal_one_region_after_the_other(base):
    """The gathered path, for matrices and for convolutions."""
    factors: list[dict[str, Factor]] = [{LINEAR: low(16, 16, seed=n), CONV: low(16, 8, 3, 3, seed=n)} for n in range(4)]
    bank = AdapterBank(base, [Adapter(f"a{n}", "test", "sdxl", f) for n, f in enumerate(factors)])
    masks = torch.stack([(torch.arange(8) // 2 == n).float().expand(8, 8) for n in range(4)])[None]
    with bank.installed(), bank.use(Gate(torch.ones(1, 4), masks)):
        for path, x in ((LINEAR, randn(1, 64, 16)), (CONV, randn(1, 8, 8, 8))):
            layer = base.unet.get_submodule(path.removeprefix("unet."))
            together = layer(x)
            with bank.use(Gate(torch.zeros(1, 4))):
                plain = layer(x)
            total = plain.clone()
            for n in range(4):
                with bank.use(Gate(torch.eye(4)[n][None], masks)):
                    total = total + layer(x) - plain
            torch.testing.assert_close(together, total, atol=1e-5, rtol=0)


def test_layers_that_are_not_named_are_left_alone(base):
    whole = every_kind(base)
    some = replace(whole, factors={f"{BLOCK}.attn2.to_k": whole.factors[f"{BLOCK}.attn2.to_k"]}, biases={})
    with AdapterBank(base, [some]).installed() as bank, bank.use(Gate(torch.ones(1, 1))):
        truth = predict(base)
    with AdapterBank(base, [whole]).installed() as bank:
        with bank.use(Gate(torch.ones(1, 1), layers=("attn2.to_k", "attn2.to_v"))):
            assert torch.equal(predict(base), truth)
        with bank.use(Gate(torch.ones(1, 1), layers=("attn9.to_k",))):
            assert torch.equal(predict(base), predict(base, rows=[0]))
    assert not torch.equal(truth, predict(base))


def test_installed_adapters_lie_in_memory_once(base, tiny_loras):
    """The bank's own adapters read their pairs from the stacks; what they change stays bit-equal."""
    adapters = [every_kind(base), load_adapter(tiny_loras[0])]
    truth = [[change.amount() for change in placed.changes] for placed in AdapterBank(base, adapters).placed]
    with AdapterBank(base, adapters).installed() as bank:
        assert bank._layers is not None
        stacks = {one.low.down.untyped_storage().data_ptr() for one in bank._layers if one.low is not None}
    for placed, amounts in zip(bank.placed, truth, strict=True):
        assert all(map(torch.equal, [change.amount() for change in placed.changes], amounts))
    pairs = [one for one in bank.placed[1].adapter.factors.values() if isinstance(one, LowRank)]
    assert len(pairs) == len(bank.placed[1].adapter.factors)
    assert {one.down.untyped_storage().data_ptr() for one in pairs} <= stacks


def test_a_gate_for_another_batch_is_an_error(base):
    bank = AdapterBank(base, [Adapter("a", "test", "sdxl", {LINEAR: low(16, 16)})])
    with bank.installed(), bank.use(Gate(torch.ones(3, 1))), pytest.raises(StudioError, match="gate is for 3 samples"):
        predict(base, 2)


def test_what_the_adapters_add_lies_where_the_base_computes(base):
    """Offloaded weights lie elsewhere between forwards."""
    elsewhere = replace(base, device=torch.device("meta"))
    bank = AdapterBank(elsewhere, [every_kind(base)])
    with bank.installed():
        assert bank._layers is not None
        stacked = [layer.low for layer in bank._layers if layer.low is not None]
        assert {one.device.type for low in stacked for one in (low.down, low.up)} == {"meta"}
        x = torch.randn(1, 64, 16, device="meta")
        linear = [layer for layer in bank._layers if isinstance(layer.module, torch.nn.Linear)]
        changes = [change for layer in linear for _, change in layer.others if layer.module.in_features == 16]
        assert {change(x, x).device.type for change in changes} == {"meta"}


def test_layers_in_one_product_with_their_adapters_predict_the_same(base, tiny_loras):
    adapters = [every_kind(base), *map(load_adapter, tiny_loras)]
    masks = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    gate = Gate(torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.3, -0.7], [0.0, 0.0, 0.0]]), masks)
    before, own = snapshot(base), [set(vars(module)) for module in base.unet.modules()]
    plain, found = predict(base, 3), []
    for extends in (False, True):
        bank = AdapterBank(base, adapters, extends)
        with bank.installed(), bank.use(gate):
            found.append(predict(base, 3))
        assert snapshot(base) == before
        assert [set(vars(module)) for module in base.unet.modules()] == own
        assert all(one.is_contiguous() for one in base.unet.parameters())
    assert close(found[1], found[0], plain)
    with AdapterBank(base, adapters, extends=True).installed() as bank:
        torch.testing.assert_close(predict(base, 3), plain, atol=1e-5, rtol=0)
        with bank.use(Gate(torch.zeros(3, 3))):
            torch.testing.assert_close(predict(base, 3), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", ["unet", "text_encoder_2"])
def test_layers_that_offloading_moves_are_not_in_one_product(base, tiny_loras, part):
    """Their own weights come to the device when they are asked; widened ones would stay behind."""
    bank = AdapterBank(base, [load_adapter(tiny_loras[0])], extends=True)
    _, hook = cpu_offload_with_hook(getattr(base.pipe, part), torch.device("cpu"))
    try:
        with bank.installed():
            assert not any(layer.extended for layer in bank.hooked)
    finally:
        hook.remove()
    with bank.installed():
        assert any(layer.extended for layer in bank.hooked)


def test_gradients_pass_through_layers_in_one_product(base, tiny_loras):
    adapters, gate = [load_adapter(one) for one in tiny_loras], Gate(torch.tensor([[0.5, 1.0]]))
    found = []
    for extends in (False, True):
        bank, inputs = AdapterBank(base, adapters, extends), noise(1)
        inputs["sample"].requires_grad_()
        with bank.installed(), bank.use(gate):
            (gradient,) = torch.autograd.grad(base.unet(**inputs).sample.square().sum(), inputs["sample"])
        found.append(gradient)
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_merging_reaches_layers_in_one_product(base, tiny_loras):
    first, second = (load_adapter(one) for one in tiny_loras)
    bank, gate = AdapterBank(base, [first], extends=True), Gate(torch.tensor([[1.0]]))
    with bank.installed(), AdapterBank(base, [second]).merged([0.5]), bank.use(gate):
        found = predict(base)
    with attach(base, [(first, 1.0), (second, 0.5)]):
        torch.testing.assert_close(found, predict(base), atol=1e-5, rtol=0)
