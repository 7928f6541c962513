"""Deep features of a UNet kept from an earlier step, so that a step can run the shallow layers alone."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from studio.errors import StudioError

Tensor = torch.Tensor


class FeatureCache:
    """The input of the last `shallow` up blocks of a UNet, by row (Ma et al. 2023, "DeepCache").

    A forward inside `storing` is a full one and keeps the features; one inside `reusing` computes what is no deeper
    than `shallow` levels and takes the rest from the cache: at the same inputs, the same bits. Between the forwards
    the UNet is untouched. Raises StudioError for a UNet that is not built in pairs of down and up blocks.
    """

    def __init__(self, unet: Any, shallow: int = 1) -> None:
        self._unet, self._shallow = unet, shallow
        self._features: dict[Hashable, Tensor] = {}
        down, up = list(unet.down_blocks)[:shallow], list(unet.up_blocks)[-shallow:]
        if not 1 <= shallow < len(unet.up_blocks) or 1 + sum(map(_outputs, down)) - len(
            down[-1].downsamplers or ()
        ) != sum(len(block.resnets) for block in up):
            raise StudioError(
                f"This UNet of {len(unet.up_blocks)} up blocks cannot be cut {shallow} blocks from its end.",
                "Use a method without a feature cache.",
            )

    @contextmanager
    def storing(self, rows: Sequence[Hashable]) -> Iterator[None]:
        """Keep the features of the rows [B] of the forward in this block."""

        def keep(module: nn.Module, args: Any, hidden: Tensor) -> None:
            for row, features in zip(rows, hidden, strict=True):
                self._features[row] = features.clone()  # without the rest of the batch, and safe from changes in place

        handle = self._unet.up_blocks[-self._shallow - 1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def reusing(self, rows: Sequence[Hashable]) -> Iterator[None]:
        """Take the deep features of the rows [B] from the cache; raises StudioError where one was never stored."""
        if missing := [row for row in rows if row not in self._features]:
            raise StudioError(
                f"No full forward has stored features of {missing[0]} before the cached one.",
                "Ask for the same branches and the same batch without the cache first.",
            )
        features = torch.stack([self._features[row] for row in rows])
        unet: Any = self._unet
        with ExitStack() as undo:
            for block in unet.down_blocks[self._shallow :]:
                _replace(block, _skipped(_outputs(block)), undo)
            for downsampler in unet.down_blocks[self._shallow - 1].downsamplers or ():
                _replace(downsampler, _passed, undo)
            if unet.mid_block is not None:
                _replace(unet.mid_block, _passed, undo)
            for block in unet.up_blocks[: -self._shallow]:
                _replace(block, lambda *_, **__: features, undo)
            yield

    def clear(self) -> None:
        """Forget all features."""
        self._features.clear()


def _outputs(block: Any) -> int:
    """How many skip connections a down block gives."""
    return len(block.resnets) + len(block.downsamplers or ())


def _passed(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _skipped(outputs: int) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
    """A down block that hands its input on; the UNet counts its skip connections and gives them to skipped blocks."""

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        return hidden_states, (hidden_states,) * outputs

    return forward


def _replace(module: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    """Let the module call `forward` instead of its own, or of one that others had put in its place."""
    if "forward" in vars(module):
        undo.callback(vars(module).__setitem__, "forward", vars(module)["forward"])
    else:
        undo.callback(vars(module).__delitem__, "forward")
    vars(module)["forward"] = forward


def shallowest_with_words(unet: Any) -> int:
    """The fewest up blocks at the end of `unet` that read the text: with fewer, a cached forward hardly sees it."""
    reads = [bool(getattr(block, "attentions", None)) for block in reversed(unet.up_blocks)]
    return 1 + (reads.index(True) if True in reads else 0)
