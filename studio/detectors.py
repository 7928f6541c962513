"""Finds things that words name, by any zero-shot detector of transformers (OWL-ViT, OWLv2, Grounding DINO)."""

from typing import Any

import torch
from PIL import Image

from studio.errors import StudioError, UsageError
from studio.models import module_id
from studio.regions import Box


class Detector:
    """A detector, named by what it was loaded from."""

    def __init__(self, name: str, pipe: Any) -> None:
        self.name, self._pipe = name, pipe

    @property
    def weights(self) -> str:
        """A fingerprint of its weights."""
        return module_id(self._pipe.model)

    @torch.no_grad()
    def find(self, picture: Image.Image, words: str) -> list[Box]:
        """Where `words` could be, the likeliest first."""
        found = self._pipe(picture.convert("RGB"), candidate_labels=[words], threshold=0.0)
        boxes = []
        for one in sorted(found, key=lambda one: -one["score"]):
            sides = [one["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
            sizes = (picture.width, picture.height) * 2
            left, top, right, bottom = (min(max(at / size, 0.0), 1.0) for at, size in zip(sides, sizes, strict=True))
            if left < right and top < bottom:
                boxes.append(Box(left, top, right, bottom))
        return boxes


def load_detector(where: str, device: str = "cpu") -> Detector:
    """The detector of a folder or hub id, such as google/owlv2-base-patch16; raises StudioError where it cannot be
    loaded, UsageError for a model of another kind."""
    from transformers import pipeline

    try:
        pipe = pipeline("zero-shot-object-detection", model=where, device=device)
    except (OSError, RuntimeError) as error:
        raise StudioError(
            f"The detector {where} could not be loaded: {str(error).splitlines()[0]}",
            "Give a folder or hub id of transformers; the hub may not be at hand.",
        ) from error
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{where} is no zero-shot detector: {str(error).splitlines()[0]}", "Take an OWL-ViT or a Grounding DINO."
        ) from error
    return Detector(where, pipe)
