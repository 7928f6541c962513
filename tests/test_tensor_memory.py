import torch

from studio.tensor_memory import TensorMemory, weight_bytes


def test_the_peak_is_what_was_alive_at_once():
    with TensorMemory() as memory:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b * 2
        assert memory.new_bytes == 8000
        del b, c
    assert (memory.new_bytes, memory.peak) == (0, 8000)


def test_views_and_changes_in_place_take_nothing():
    with TensorMemory({(10, 10), (100,)}) as memory:
        a = torch.zeros(100)
        a.view(10, 10).add_(1)
        a[:50].mul_(2)
    assert (memory.peak, memory.shaped) == (400, 1)


def test_what_was_there_before_is_not_counted_but_what_is_kept_for_gradients_is():
    layer = torch.nn.Linear(64, 64)
    x = torch.ones(8, 64)
    with TensorMemory() as memory:
        with torch.no_grad():
            layer(layer(x))
        without, memory.peak = memory.peak, 0
        y = layer(layer(layer(x)).relu())
        y.sum().backward()
    assert without == 2 * 8 * 64 * 4
    assert memory.peak > 3 * 8 * 64 * 4
    assert weight_bytes(layer) == (64 * 64 + 64) * 4


def test_tensors_shaped_like_weights_are_counted():
    layer = torch.nn.Linear(6, 4)
    with TensorMemory({tuple(layer.weight.shape)}) as memory:
        moved = layer.weight + 1
        torch.nn.functional.linear(torch.ones(2, 6), moved)
        torch.nn.functional.linear(torch.ones(2, 6), layer.weight)
    assert memory.shaped == 1
