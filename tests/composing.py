"""Small compositions for the tests of all methods: a base and concepts, one request, and the loop with its run."""

from collections.abc import Callable, Sequence

import pytest
import torch

from studio.concepts import Concept
from studio.events import silent
from studio.models import BaseModel, find_base, load_base
from studio.pipelines.compose import Composer, Run, denoise, opened
from studio.pipelines.settings import GenerateSettings
from studio.regions import Box, Layout

SETTINGS = GenerateSettings("a <milo> and an <rex> on the grass", "night", steps=4, guidance=4.0, seed=7, count=2)
HALVES = Layout({"milo": Box(0, 0, 0.5, 1), "rex": Box(0.5, 0, 1, 1)})


@pytest.fixture(scope="module")
def base(tiny_sdxl) -> BaseModel:
    """The tiny base of the embedded one's kind, loaded."""
    return load_base(find_base(str(tiny_sdxl)), "cpu")


@pytest.fixture
def concepts(tiny_concepts) -> list[Concept]:
    """milo and rex."""
    return tiny_concepts


def latents(
    base: BaseModel,
    concepts: Sequence[Concept],
    composer: Composer,
    settings: GenerateSettings = SETTINGS,
    strengths: Sequence[float] = (1.0, 1.0),
    layout: Layout | None = None,
) -> tuple[torch.Tensor, Run]:
    """What the loop makes before decoding, and the run."""
    chosen = list(zip(concepts, strengths, strict=True))
    with opened(base, settings, chosen, composer, silent, layout) as run, torch.no_grad():
        return denoise(run, composer, settings, silent), run


def most_kept(call: Callable[[], object]) -> int:
    """The most bytes that `call` kept for gradients at one time."""
    now, most = 0, 0

    class Kept:
        def __init__(self, value: torch.Tensor) -> None:
            nonlocal now, most
            self.value = value
            now += value.nbytes
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.value.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.value):
        call()
    return most
