import subprocess
import sys

import pytest
import torch

from studio.kernels.triton_support import compiles_for, power_of_two, wide

WITHOUT = """
import sys
sys.modules["triton"] = None
import torch
from studio.kernels import ahead, attention, attention_columns, blend, kronecker, multi_adapter, region_attention, widen
x, down, gate = torch.randn(5, 8), torch.randn(1, 16, 8), torch.rand(5, 2)
assert torch.equal(widen.widen(x, down, gate, 8), widen.reference(x, down, gate, 8))
q, k, v = (torch.randn(1, 2, n, 8) for n in (5, 7, 7))
columns = torch.tensor([[1, 3]])
both = [call(q, k, v, columns, 0.3) for call in (attention_columns.attention_columns, attention_columns.reference)]
assert all(torch.allclose(mine, own, atol=1e-6) for mine, own in zip(*both))
a, b = torch.randn(2, 2), torch.randn(3, 4)
assert torch.allclose(kronecker.kronecker_linear(x, a, b), kronecker.reference(x, a, b), atol=1e-5)
bits = torch.tensor([[0, 1, 1, 2, 2]])
found = region_attention.region_attention(q, q, q, region_attention.Regions(bits), 0.3)
assert torch.allclose(found, region_attention.reference(q, q, q, bits, 0.3), atol=1e-6)
p, w = torch.randn(2, 2, 1, 4, 3, 3), torch.rand(2, 1, 3, 3)
assert torch.allclose(blend.blend(p, w, 2.0), blend.reference(p, w, 2.0), atol=1e-6)
"""


def test_every_public_function_answers_without_triton_and_without_a_device():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_interpreter_is_never_chosen_by_itself():
    assert not compiles_for(torch.zeros(1))


@pytest.mark.parametrize(("size", "block"), [(1, 16), (16, 16), (17, 32), (77, 128), (128, 128)])
def test_blocks_are_powers_of_two(size, block):
    assert power_of_two(size) == block


def test_kernels_add_up_in_single_precision_at_least():
    assert [wide(one) for one in (torch.bfloat16, torch.float16, torch.float32, torch.float64)] == [
        torch.float32, torch.float32, torch.float32, torch.float64,
    ]  # fmt: skip
