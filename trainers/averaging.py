"""Averages of what is trained, which previews and the written file take in place of the weights of the last step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from studio.trainers.cache import Tensors


class Average:
    """The exponential moving average of `parameters`, by name; it starts as they are.

    After step n (from 0) it keeps min(decay, (1 + n) / (10 + n)) of itself, so that the first steps are soon forgotten.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = parameters, decay
        self.tensors: Tensors = {name: one.detach().clone() for name, one in parameters.items()}

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the parameters as they are after `step`."""
        kept = min(self._decay, (1 + step) / (10 + step))
        for name, tensor in self.tensors.items():
            tensor.lerp_(self._parameters[name], 1 - kept)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The parameters are their averages while the block runs."""
        with _kept(self._parameters):
            _put(self._parameters, self.tensors)
            yield


@contextmanager
def schedule_free(optimizer: Any, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The parameters are the averages that schedule-free AdamW keeps (x of Defazio et al. 2024), not the points at
    which it takes gradients (y), while the block runs."""
    with _kept(parameters):  # y is not found again from x but for rounding
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


@torch.no_grad()
def _put(parameters: Mapping[str, nn.Parameter], tensors: Tensors) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


@contextmanager
def _kept(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """The parameters are bit for bit what they were when the block ends."""
    before = {name: one.detach().clone() for name, one in parameters.items()}
    try:
        yield
    finally:
        _put(parameters, before)
