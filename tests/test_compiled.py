import shutil
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from composing import HALVES, SETTINGS, latents

from studio.adapters import load_concept
from studio.bank import AdapterBank
from studio.errors import StudioError, UsageError
from studio.events import Notice, silent
from studio.factors import Kronecker, LowRank
from studio.gates import Gate
from studio.models import find_base, load_base
from studio.pipelines import compiled
from studio.pipelines.compose import draw, opened
from studio.pipelines.generate import generate
from studio.pipelines.methods import METHODS
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout

COMPILED = replace(SETTINGS, compiled=True)
LOOKING = ("clora", "lora-composer")  # they look into the network, or keep regions apart, in every step


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    """What was compiled: traced and guarded as ever, but run by PyTorch, since to compile C++ takes a minute."""
    made = []
    monkeypatch.setattr(compiled, "BACKEND", lambda graph, _: (made.append(graph), graph.forward)[1])
    monkeypatch.setenv("CXX", sys.executable)
    return made


def worst(one, other):
    return max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in LOOKING])
def test_compiled_blocks_draw_the_same_by_every_method(base, concepts, method, graphs):
    layout = None if METHODS[method].boxes == "ignores" else HALVES
    settings = replace(COMPILED, steps=11)
    truth, _ = latents(base, concepts, METHODS[method].make(), replace(settings, compiled=False), (0.7, -0.4), layout)
    found, run = latents(base, concepts, METHODS[method].make(), settings, (0.7, -0.4), layout)
    assert graphs
    assert run.denoiser.compiled
    assert run.denoiser.compiled.forwards > settings.steps // 2
    torch.testing.assert_close(found, truth, atol=1e-4 * float(truth.abs().max()), rtol=0)


def test_and_plainly_on_sd15(tiny_sd15, graphs):
    base = load_base(find_base(str(tiny_sd15)), "cpu")
    settings = GenerateSettings("a cat", steps=4, seed=1)
    truth, found = (generate(base, replace(settings, compiled=one), [], silent)[0] for one in (False, True))
    assert graphs
    assert worst(found, truth) <= 1


def test_nothing_is_compiled_again_for_other_concepts_strengths_boxes_and_steps(base, concepts, graphs):
    def drawn(which, strengths, layout, **changes):
        return latents(base, which, METHODS["regional"].make(), replace(COMPILED, **changes), strengths, layout)[0]

    first = drawn(concepts, (1.0, 1.0), HALVES)
    assert len(graphs) == 2  # the widths and grids of the network
    others = [replace(one, trigger="zwx") for one in concepts[::-1]]
    aside = Layout({"milo": Box(0.6, 0, 1, 0.5), "rex": Box(0, 0.3, 0.5, 1)})
    for again in (
        drawn(concepts, (0.2, -0.9), HALVES),
        drawn(concepts, (1.0, 1.0), aside),
        drawn(others, (1.0, 1.0), HALVES),
        drawn(concepts[:1], (1.0,), Layout({"milo": HALVES.boxes["milo"]}), prompt="a <milo>"),  # fewer ranks
        drawn(concepts, (1.0, 1.0), HALVES, steps=5),
    ):
        assert not torch.equal(again, first)
    assert len(graphs) == 2


def test_the_network_is_as_before_also_after_an_exception(base, concepts):
    names = [(name, id(one)) for name, one in base.unet.named_modules()]
    state = [sorted(vars(one)) for one in base.unet.modules()]
    latents(base, concepts, METHODS["auto"].make(), COMPILED)
    with pytest.raises(KeyboardInterrupt):
        draw(base, COMPILED, [(one, 1.0) for one in concepts], METHODS["regional"].make(), silent, HALVES,
             after_step=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # fmt: skip
    assert [(name, id(one)) for name, one in base.unet.named_modules()] == names
    assert [sorted(vars(one)) for one in base.unet.modules()] == state


def test_blocks_of_other_adapters_run_as_they_are(base, concepts):
    """A Kronecker product in one block, and a LoRA elsewhere."""
    mixed = load_concept(concepts[0])
    path = next(name for name in mixed.factors if name.endswith("attn1.to_q"))
    factor = mixed.factors[path]
    assert isinstance(factor, LowRank)
    mixed.factors[path] = Kronecker(torch.randn(4, 4), torch.randn(factor.up.shape[0] // 4, factor.down.shape[1] // 4))
    told: list[str] = []

    def drawn(settings):
        bank_of = partial(AdapterBank.of, load=lambda one: mixed if one.name == "milo" else load_concept(one))
        emit = lambda event: told.append(event.message) if isinstance(event, Notice) else None  # noqa: E731
        chosen = [(one, 0.7) for one in concepts]
        return draw(base, settings, chosen, METHODS["auto"].make(), emit, HALVES, bank_of=bank_of)

    truth, found = drawn(SETTINGS), drawn(COMPILED)
    torch.testing.assert_close(found, truth, atol=1e-4 * float(truth.abs().max()), rtol=0)
    assert [one for one in told if one.startswith("1 blocks are not compiled")]


@pytest.mark.parametrize("method", LOOKING)
def test_where_every_step_looks_into_the_network_it_is_said_that_nothing_was_compiled(base, concepts, method, graphs):
    told: list[str] = []
    emit = lambda event: told.append(event.message) if isinstance(event, Notice) else None  # noqa: E731
    chosen = [(one, 1.0) for one in concepts]
    draw(base, COMPILED, chosen, METHODS[method].make(), emit, HALVES if method == "lora-composer" else None)
    assert told[-1].startswith("Nothing was compiled")
    assert not graphs


def test_a_gate_that_does_not_reach_a_layer_leaves_it_alone(base, concepts):
    bank = AdapterBank.of(base, concepts)
    with opened(base, COMPILED, [(one, 1.0) for one in concepts], METHODS["regional"].make(), silent, HALVES) as run:
        layer = next(one for one in run.denoiser.bank.hooked if one.name.endswith("attn1.to_q"))
    gate = Gate(torch.ones(2, bank.count), layers=("attn2.to_q",))
    assert not compiled._share(layer, gate, (2, 2), 3).any()
    assert compiled._share(layer, replace(gate, layers=None), (2, 2), 3).shape == (2, 4, compiled.ROWS)


def test_merged_concepts_are_drawn_through_compiled_blocks(base, concepts, graphs):
    settings = GenerateSettings("a <milo>", steps=3, seed=1)
    truth = generate(base, settings, [(concepts[0], 0.7)], silent)[0]
    found = generate(base, replace(settings, compiled=True), [(concepts[0], 0.7)], silent)[0]
    assert graphs
    assert worst(found, truth) <= 1


@pytest.mark.parametrize(("other", "said"), [({"offload": True}, "--offload"), ({"attention": "xformers"}, "xformers")])
def test_what_moves_weights_or_computes_attention_otherwise_does_not_go_with_it(other, said):
    with pytest.raises(UsageError, match=f"--compile and .*{said}"):
        GenerateSettings("a cat", compiled=True, **other)


def test_a_missing_compiler_is_named_before_anything_is_drawn(base, concepts, monkeypatch):
    monkeypatch.setattr(compiled.shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"C\+\+ compiler.*none was found"):
        draw(base, COMPILED, [(one, 1.0) for one in concepts], METHODS["auto"].make(), silent)
    for device in ("mps", "meta"):
        with pytest.raises(UsageError, match=f"not for {device}"):
            compiled.check_compiler(torch.device(device))


def test_what_torch_cannot_compile_is_told_in_a_sentence(base, concepts, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(compiled, "BACKEND", refuse)
    with pytest.raises(StudioError, match="torch could not compile the network"):
        latents(base, concepts, METHODS["auto"].make(), COMPILED)


@pytest.mark.slow
def test_what_is_really_compiled_draws_the_same(base, concepts, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.delenv("CXX")
    if not any(map(shutil.which, compiled._COMPILERS)):
        pytest.skip("no C++ compiler")
    truth, _ = latents(base, concepts, METHODS["regional"].make(), SETTINGS, layout=HALVES)
    found, _ = latents(base, concepts, METHODS["regional"].make(), COMPILED, layout=HALVES)
    torch.testing.assert_close(found, truth, atol=1e-4 * float(truth.abs().max()), rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["auto", "composite"])
def test_a_gpu_draws_the_same_through_compiled_blocks(tiny_sdxl, concepts, cuda, monkeypatch, method):
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    on_gpu = load_base(find_base(str(tiny_sdxl)), cuda, torch.float32)
    truth, _ = latents(on_gpu, concepts, METHODS[method].make(), SETTINGS)
    found, _ = latents(on_gpu, concepts, METHODS[method].make(), COMPILED)
    torch.testing.assert_close(found, truth, atol=1e-3 * float(truth.abs().max()), rtol=0)
