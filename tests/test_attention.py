"""What is asked of one attention, and who answers; xformers is played by a formula that tells what it was given."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

import sys
from types import ModuleType

import pytest
import torch

from studio.errors import StudioError, UsageError
from studio.kernels import attention
from studio.kernels.attention import Asked, missing, plain
from studio.kernels.region_attention import Regions, SeenTexts
from studio.models import find_base, load_base
from studio.pipelines.attention_backend import attending
from studio.pipelines.settings import GenerateSettings


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(pixels=12, keys=12):
    return [randn(2, 3, count, 8, seed=n) for n, count in enumerate((pixels, keys, keys))]


@pytest.fixture
def xformers(monkeypatch):
    """A library of that name with one function, by the formula."""
    asked = []

    def memory_efficient_attention(query, key, value, scale):
        asked.append(query.shape)
        weights = torch.einsum("bnhd,bmhd->bhnm", scale * query, key).softmax(-1)
        return torch.einsum("bhnm,bmhd->bnhd", weights, value)

    package, operators = ModuleType("xformers"), ModuleType("xformers.ops")
    operators.memory_efficient_attention = memory_efficient_attention
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)
    monkeypatch.setattr(attention, "missing", lambda backend, device: None)
    return asked


def test_xformers_is_plain_attention_in_its_own_layout(xformers):
    torch.testing.assert_close(plain(*given(), 0.3, backend="xformers"), plain(*given(), 0.3), atol=1e-12, rtol=0)
    assert xformers == [(2, 12, 3, 8)]
    plain(*given(), 0.3, bias=torch.zeros(1, 1, 12, 12, dtype=torch.float64), backend="xformers")
    assert len(xformers) == 1


def test_every_way_of_hiding_is_one_bias():
    bits, share = torch.tensor([[0, 1, 2] * 4] * 2), randn(2, 12, 2, seed=5).abs()
    bias = randn(2, 1, 12, 12, seed=6)
    for options in ({"regions": Regions(bits)}, {"texts": SeenTexts(share)}, {"bias": bias}):
        every = Asked(*given(), 0.3, **options)
        together = Asked(*given(), 0.3, bias=bias, **{k: v for k, v in options.items() if k != "bias"})
        scores = 0.3 * every.query @ every.key.transpose(2, 3)
        with torch.no_grad():
            truth = (scores + every.whole_bias).softmax(3) @ every.value
            torch.testing.assert_close(every.answer(), truth, atol=1e-12, rtol=0)
            truth = (scores + together.whole_bias).softmax(3) @ every.value
            torch.testing.assert_close(together.answer(), truth, atol=1e-12, rtol=0)
        torch.testing.assert_close(every.all_mass(), (scores + every.whole_bias).softmax(3).mean(1), atol=1e-12, rtol=0)


def test_columns_are_kept_whoever_answers():
    columns, kept = torch.tensor([[1, 3], [2, 0]]), []
    for options in ({}, {"texts": SeenTexts(torch.ones(2, 12, 1, dtype=torch.float64))}):
        Asked(*given(), 0.3, columns=columns, keep=kept.append, **options).answer()
    torch.testing.assert_close(kept[0], kept[1], atol=1e-12, rtol=0)


def test_what_is_missing_is_said():
    assert missing("sdpa", torch.device("cpu")) is None
    assert "not installed" in str(missing("xformers", torch.device("cuda")))
    with pytest.raises(UsageError, match="xformers is not installed"):
        GenerateSettings("a cat", attention="xformers")
    with pytest.raises(UsageError, match="no attention 'flash'"):
        GenerateSettings("a cat", attention="flash")


def test_a_library_that_computes_on_other_devices_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    assert missing("xformers", torch.device("cpu")) == "xformers computes on CUDA devices, not on cpu."
    assert missing("xformers", torch.device("cuda")) is None


def test_a_unet_attends_by_the_library_and_nothing_stays(tiny_sdxl, xformers, monkeypatch):
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    monkeypatch.setattr("studio.pipelines.attention_backend.missing", lambda backend, device: None)
    added = {"text_embeds": torch.zeros(1, 24), "time_ids": torch.full((1, 6), 32.0)}
    inputs = (randn(1, 4, 8, 8).float(), torch.tensor(500), randn(1, 5, 40).float())
    own = [set(vars(module)) for module in base.unet.modules()]
    with torch.no_grad():
        truth = base.unet(*inputs, added_cond_kwargs=added).sample
        with attending(base, "xformers"):
            found = base.unet(*inputs, added_cond_kwargs=added).sample
    torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)
    layers = [name for name, _ in base.unet.named_modules() if name.endswith(("attn1", "attn2"))]
    assert len(xformers) == len(layers)
    assert [set(vars(module)) for module in base.unet.modules()] == own


def test_a_library_without_a_kernel_is_an_error_in_a_sentence(tiny_sdxl, monkeypatch):
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    monkeypatch.setattr("studio.pipelines.attention_backend.missing", lambda backend, device: None)
    said = "xformers has no kernel for this attention: No operator found"
    with pytest.raises(StudioError, match=said), attending(base, "xformers"):
        raise NotImplementedError("No operator found for\n  query: shape=(1, 2)")
