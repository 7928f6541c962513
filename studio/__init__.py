"""Concept Studio: from a handful of photos to pictures in which several concepts appear together.

The public names below are imported when they are first used: `import studio` is cheap and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from studio.threads import wait_briefly
from studio.torchvision_guard import Watch

wait_briefly()
Watch.begin()

if TYPE_CHECKING:
    from studio.bases import BaseSource, find_base
    from studio.concepts import Concept, expand_prompt
    from studio.errors import StudioError, UsageError
    from studio.home import Home
    from studio.library import Library
    from studio.models import BaseModel, load_base
    from studio.pipelines.compose import Composer, compose
    from studio.pipelines.composed_pipeline import ComposedPipeline
    from studio.pipelines.generate import generate
    from studio.pipelines.settings import GenerateSettings
    from studio.pipelines.stylize import stylize
    from studio.regions import Box, Layout
    from studio.trainers.dreambooth import train_concept
    from studio.trainers.recipe import Recipe

_PLACES = {
    "BaseModel": "studio.models",
    "BaseSource": "studio.bases",
    "Box": "studio.regions",
    "ComposedPipeline": "studio.pipelines.composed_pipeline",
    "Composer": "studio.pipelines.compose",
    "Concept": "studio.concepts",
    "GenerateSettings": "studio.pipelines.settings",
    "Home": "studio.home",
    "Layout": "studio.regions",
    "Library": "studio.library",
    "Recipe": "studio.trainers.recipe",
    "StudioError": "studio.errors",
    "UsageError": "studio.errors",
    "compose": "studio.pipelines.compose",
    "expand_prompt": "studio.concepts",
    "find_base": "studio.bases",
    "generate": "studio.pipelines.generate",
    "load_base": "studio.models",
    "stylize": "studio.pipelines.stylize",
    "train_concept": "studio.trainers.dreambooth",
}

__all__ = [
    "BaseModel",
    "BaseSource",
    "Box",
    "ComposedPipeline",
    "Composer",
    "Concept",
    "GenerateSettings",
    "Home",
    "Layout",
    "Library",
    "Recipe",
    "StudioError",
    "UsageError",
    "compose",
    "expand_prompt",
    "find_base",
    "generate",
    "load_base",
    "stylize",
    "train_concept",
]


def __getattr__(name: str) -> object:
    """A public name, imported from where it lives (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module 'studio' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
