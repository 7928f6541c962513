"""How much memory tensors take at once, and how many of them are as large as a layer's weight: counted, not guessed."""

import weakref
from collections.abc import Collection
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class TensorMemory(TorchDispatchMode):
    """Follows every tensor that operators make inside the block, on any device.

    `peak` is the most bytes that they held at once, `new_bytes` what they hold now; `shaped` counts those, views apart,
    whose shape is one of `shapes`. What an operator allocates and frees within itself is not seen.
    """

    def __init__(self, shapes: Collection[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.new_bytes = self.peak = self.shaped = 0
        self._shapes = set(shapes)
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and note what is new among its results."""
        kwargs = kwargs or {}
        given = {id(one.untyped_storage()) for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)}
        made = func(*args, **kwargs)
        for one in tree_iter(made):
            if isinstance(one, torch.Tensor) and id(one.untyped_storage()) not in given:
                self._note(one)
        return made

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def gone(_: object) -> None:
            self._storages.pop(key, None)
            self.new_bytes -= size

        self._storages[key] = weakref.ref(storage, gone)
        self.new_bytes += size
        self.peak = max(self.peak, self.new_bytes)
        self.shaped += tuple(tensor.shape) in self._shapes


def weight_bytes(*modules: torch.nn.Module) -> int:
    """What parameters and buffers hold."""
    return sum(
        one.numel() * one.element_size() for module in modules for one in (*module.parameters(), *module.buffers())
    )
