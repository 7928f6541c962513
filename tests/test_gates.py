import pytest
import torch

from studio.errors import StudioError
from studio.gates import Gate, strips


def halves(height: int, width: int) -> torch.Tensor:
    """Masks [1, 2, H, W] of the left and the right."""
    left = (torch.arange(width) < width // 2).float().expand(height, width)
    return torch.stack([left, 1 - left])[None]


@pytest.mark.parametrize("size", [(24, 40), (17, 23), (24, 24)])
def test_masks_that_divide_the_canvas_divide_every_grid(size):
    gate = Gate(torch.ones(1, 2), halves(*size))
    height, width = size
    for _ in range(4):
        weights = gate.on_tokens(height * width).dense
        torch.testing.assert_close(weights.sum(1), torch.ones(height * width))
        assert torch.equal(weights, gate.on_grid(height, width).dense)
        height, width = -(-height // 2), -(-width // 2)


def test_pixels_come_in_the_order_of_the_layers_tokens():
    gate = Gate(torch.tensor([[2.0, 3.0], [0.0, 1.0]]), halves(2, 4))
    rows = gate.on_tokens(8).dense.unflatten(0, (2, 2, 4))
    assert rows[0, 0, :, 0].tolist() == [2, 2, 0, 0]
    assert rows[0, 1, :, 1].tolist() == [0, 0, 3, 3]
    assert rows[1, :, :, 0].abs().max() == 0


def test_the_first_samples_are_those_that_adapters_act_on():
    weights = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    gate = Gate(weights, halves(2, 4).expand(4, -1, -1, -1))
    assert gate.acting == 3
    assert torch.equal(gate.of([0, 1], 3).on_tokens(8).dense, gate.on_tokens(8).dense[:24])
    assert gate.of([0, 1], 4) is gate
    assert Gate(torch.zeros(2, 1)).acting == 0


def test_text_vectors_and_everything():
    text = torch.zeros(1, 2, 5)
    text[0, 0, 1:3] = 1
    gate = Gate(torch.tensor([[0.5, 2.0]]), halves(4, 4), text)
    assert gate.on_text(5).dense[:, 0].tolist() == [0, 0.5, 0.5, 0, 0]
    assert gate.on_text(5).dense[:, 1].tolist() == [0] * 5
    assert gate.on_samples().dense.tolist() == [[0.25, 1.0]]
    assert gate.everywhere(3).dense.tolist() == [[0.5, 2.0]] * 3
    assert gate.of([1]).on_samples().dense.tolist() == [[1.0]]


def test_a_grid_or_a_text_that_is_not_there_is_an_error():
    gate = Gate(torch.ones(1, 2), halves(8, 8), torch.ones(1, 2, 5))
    with pytest.raises(StudioError, match="15 image tokens"):
        gate.on_tokens(15)
    with pytest.raises(StudioError, match="5 tokens; the text has 7"):
        gate.on_text(7)


def test_strips_are_each_adapters_own_and_cover_everything():
    found = strips(3, 2, (2, 6), torch.zeros(1))
    assert found[1, :, 0].tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert torch.equal(strips(3, 2, (2, 6), torch.zeros(1), shift=1)[:, 1], found[:, 0])
