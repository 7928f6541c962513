"""Attention by another library than PyTorch, for those who have it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from studio.errors import StudioError, UsageError
from studio.kernels.attention import Asked, missing
from studio.models import BaseModel
from studio.pipelines.probe import tap


@contextmanager
def attending(base: BaseModel, backend: str) -> Iterator[None]:
    """Let the UNet's plain attention be computed by `backend` in this block; attention with a bias stays PyTorch's.

    Raises UsageError where the backend is not there, StudioError where it has nothing for what a layer asks.
    """
    if why := missing(backend, base.device):
        raise UsageError(why, "Leave out --attention: PyTorch's own is the default.")
    if backend == "sdpa":
        yield
        return

    def choose(asked: Asked) -> None:
        asked.backend = backend

    with ExitStack() as undo:
        for name, module in base.unet.named_modules():
            if name.endswith(("attn1", "attn2")):
                tap(name, module, choose, undo)
        try:
            yield
        except NotImplementedError as error:
            raise StudioError(
                f"{backend} has no kernel for this attention: {str(error).splitlines()[0]}",
                "Leave out --attention: PyTorch's own is the default.",
            ) from error
