"""On a CUDA device every kernel errs, against double precision, at most twice as much as the framework's own way."""
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

import pytest
import torch
import torch.nn.functional as F
from fixtures_models import build_lora

from studio.adapters import load_adapter
from studio.bank import AdapterBank
from studio.gates import Gate
from studio.kernels import attention_columns, blend, kronecker, region_attention, widen
from studio.kernels.attention import missing, plain
from studio.models import find_base, load_base

pytestmark = pytest.mark.gpu
HALVES = [torch.bfloat16, torch.float16]


def randn(*shape, dtype, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def errs_no_more(found, framework, truth):
    """Twice the framework's error, and what one rounding of the largest number is."""
    least = float(truth.abs().max()) * torch.finfo(found.dtype).eps / 2
    error, theirs = ((one.double() - truth).abs().max() for one in (found, framework))
    assert float(error) <= max(2 * float(theirs), least)


def doubled(*given):
    return [one.double() if torch.is_tensor(one) and one.is_floating_point() else one for one in given]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("pixels", "words", "heads", "width"), [(4096, 77, 10, 64), (1024, 77, 20, 64), (100, 128, 8, 40)]
)
def test_attention_with_columns(cuda, dtype, pixels, words, heads, width):
    q, k, v = (randn(2, heads, n, width, dtype=dtype, seed=n) for n in (pixels, words, words + 1))
    v = v[:, :, :words]
    columns = torch.arange(8, device="cuda").expand(2, -1)
    inputs = [one.detach().requires_grad_() for one in (q, k, v)]
    exact = [one.detach().double().requires_grad_() for one in inputs]
    found = attention_columns.attention_columns(*inputs, columns, width**-0.5)
    truth = attention_columns.reference(*exact, columns, width**-0.5)
    own = F.scaled_dot_product_attention(*inputs, scale=width**-0.5)
    errs_no_more(found[0], own, truth[0])
    own_mass = attention_columns.reference(*inputs, columns, width**-0.5)[1]
    assert float((found[1].double() - truth[1]).abs().max()) <= max(
        2 * float((own_mass.double() - truth[1]).abs().max()), 1e-6
    )
    seed = randn(*own.shape, dtype=dtype, seed=7)
    zero = torch.zeros_like(found[1])
    theirs = torch.autograd.grad(own, inputs, seed)
    true = torch.autograd.grad(truth, exact, [seed.double(), zero.double()])
    for mine, framework, right in zip(torch.autograd.grad(found, inputs, [seed, zero]), theirs, true, strict=True):
        errs_no_more(mine, framework, right)
    again = attention_columns.attention_columns(*inputs, columns, width**-0.5)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_with_columns_and_a_bias(cuda, dtype):
    q, k, v = (randn(2, 8, n, 40, dtype=dtype, seed=n) for n in (1024, 77, 77))
    columns, bias = torch.arange(4, device="cuda").expand(2, -1), randn(2, 1, 1024, 77, dtype=dtype, seed=5)
    found = attention_columns.attention_columns(q, k, v, columns, 0.16, bias)
    truth = attention_columns.reference(*doubled(q, k, v), columns, 0.16, bias.double())
    errs_no_more(found[0], F.scaled_dot_product_attention(q, k, v, bias, scale=0.16), truth[0])
    torch.testing.assert_close(found[1].double(), truth[1], atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layers", [1, 3])
def test_layers_and_adapters_in_one_product(cuda, dtype, layers):
    k, rank, rows, width, tokens = 5, 16, 80, 640, 4096
    x, gate = randn(tokens, width, dtype=dtype), torch.rand(tokens, k, device="cuda").to(dtype)
    down = randn(layers, rows, width, dtype=dtype, seed=1) / width**0.5
    wide = widen.widen(x, down, gate, rank)
    for layer in range(layers):
        weight = randn(width, width, dtype=dtype, seed=2) / width**0.5
        up = randn(rows, width, dtype=dtype, seed=3) * 0.1
        both, _, _ = widen.extended(weight, up, layer, layers)
        found = F.linear(wide[:, widen.span(layer, layers, width, rows)], both)
        spread = widen.spread(gate, rank, rows)
        own = F.linear(x, weight) + (F.linear(x, down[layer]) * spread) @ up
        x2, w2, d2, u2, s2 = doubled(x, weight, down[layer], up, spread)
        errs_no_more(found, own, x2 @ w2.T + (x2 @ d2.T * s2) @ u2)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("layout", ["kron", "ibm"])
def test_kronecker_products(cuda, dtype, layout):
    for a1, a2 in ((64, 4), (16, 16), (32, 32)):
        a, b = randn(a1, a2, dtype=dtype), randn(1280 // a1, 1280 // a2, dtype=dtype, seed=1)
        x = randn(300, 1280, dtype=dtype, seed=2)
        found, own = kronecker.kronecker_linear(x, a, b, layout), kronecker.reference(x, a, b, layout)
        errs_no_more(found, own, kronecker.reference(*doubled(x, a, b), layout))


@pytest.mark.parametrize("dtype", HALVES)
def test_kronecker_factors_are_trained_in_float32(cuda, dtype):
    a = randn(4, 4, dtype=torch.float32).requires_grad_()
    b = randn(320, 320, dtype=torch.float32, seed=1).requires_grad_()
    x, gradients = randn(300, 1280, dtype=dtype, seed=2), []
    for call in (kronecker.fused, kronecker.product):
        with torch.autocast("cuda", dtype):
            y = call(x, a, b, "kron")
        gradients.append(torch.autograd.grad(y.float().square().mean(), (a, b)))
    for found, own in zip(*gradients, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, own, atol=0.02 * float(own.abs().max()), rtol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_blending(cuda, dtype):
    predictions, weights = randn(6, 2, 1, 4, 128, 128, dtype=dtype), torch.rand(6, 1, 128, 128, device="cuda")
    found, own = (call(predictions, weights, 5.0) for call in (blend.blend, blend.reference))
    errs_no_more(found, own, blend.reference(*doubled(predictions, weights), 5.0))


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_in_regions(cuda, dtype):
    q, k, v = (randn(2, 10, 1024, 64, dtype=dtype, seed=n) for n in range(3))
    bits = (2 ** (torch.arange(1024, device="cuda") * 3 // 1024)).expand(2, -1).contiguous()
    regions = region_attention.Regions(bits)
    found = region_attention.region_attention(q, k, v, regions, 0.125)
    own = F.scaled_dot_product_attention(q, k, v, regions.bias(dtype), scale=0.125)
    errs_no_more(found, own, region_attention.reference(*doubled(q, k, v), bits, 0.125))


@pytest.mark.parametrize("dtype", HALVES)
def test_xformers(cuda, dtype):
    if why := missing("xformers", torch.device("cuda")):
        pytest.skip(why)
    q, k, v = (randn(2, 10, 1024, 64, dtype=dtype, seed=n) for n in range(3))
    found, own = plain(q, k, v, 0.125, backend="xformers"), plain(q, k, v, 0.125)
    errs_no_more(found, own, plain(*doubled(q, k, v), 0.125))


def test_a_bank_on_a_device_predicts_as_on_the_cpu(cuda, tiny_sdxl, tmp_path):
    files = [build_lora(tiny_sdxl, tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2)]
    masks = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    found = []
    for device in ("cpu", cuda):
        base = load_base(find_base(str(tiny_sdxl)), device, torch.float32)
        gate = Gate(torch.tensor([[0.5, 1.0], [0.0, 0.7]], device=device), masks.to(device))
        drawn = torch.Generator().manual_seed(1)
        sample, text = torch.randn(2, 4, 8, 8, generator=drawn), torch.randn(2, 5, 40, generator=drawn)
        added = {"text_embeds": torch.randn(2, 24, generator=drawn), "time_ids": torch.full((2, 6), 32.0)}
        added = {name: one.to(device) for name, one in added.items()}
        bank = AdapterBank(base, [load_adapter(one) for one in files])
        with bank.installed(), bank.use(gate), torch.no_grad():
            given = (sample.to(device), torch.tensor(500, device=device), text.to(device))
            found.append(base.unet(*given, added_cond_kwargs=added).sample.cpu())
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=1e-3)
