"""Pictures as files: where they go, what they are called, and what they tell about themselves."""

import json
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.bases import BaseSource
from studio.concepts import Concept, file_hash
from studio.errors import UsageError
from studio.home import Home, ensure_writable, write_atomic
from studio.pipelines.settings import GenerateSettings
from studio.regions import Layout

if TYPE_CHECKING:
    from PIL.Image import Image

TEXT_KEY = "studio"
STYLIZE = "stylize"  # the method of pictures that studio stylize draws
SLUG_LIMIT = 40


def output_folder(home: Home, out: Path | None, prompt: str) -> Path:
    """`out`, else a new folder of the home named by time and prompt; proven to be writable.

    Raises UsageError where `out` is no folder, StudioError where nothing can be written there.
    """
    if out is not None:
        if out.is_file() or out.suffix.lower() == ".png":
            what = "a file" if out.is_file() else "the name of a picture"
            raise UsageError(f"--out {out} is {what}.", "Give a folder: each picture gets a name of its own in it.")
        ensure_writable(out)
        return out
    ensure_writable(home.outputs)
    return home.outputs / f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}-{slug(prompt)}"


def slug(prompt: str) -> str:
    """The words of `prompt` as part of a file name."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:SLUG_LIMIT].strip("-") or "picture"


def describe(
    settings: GenerateSettings,
    source: BaseSource,
    concepts: Sequence[tuple[Concept, float]],
    method: str = "merge",
    layout: Layout | None = None,
    styles: Sequence[tuple[Concept, float]] = (),
) -> dict[str, Any]:
    """All that is needed to make the pictures again, as plain JSON values; the seed is that of the first."""
    places = {} if layout is None else {"layout": {name: box.sides for name, box in layout.boxes.items()}}
    riding = {"styles": _records(styles)} if styles else {}
    return (
        places
        | riding
        | {
            "prompt": settings.prompt,
            "negative_prompt": settings.negative_prompt,
            "seed": settings.seed,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "scheduler": settings.scheduler,
            "vae_tiling": settings.vae_tiling,
            "method": method,
            "base": source.name,
            "family": source.family,
            "concepts": _records(concepts),
            "studio": version("concept-studio"),
        }
    )


def _records(concepts: Sequence[tuple[Concept, float]]) -> list[dict[str, Any]]:
    return [
        {
            "name": concept.name,
            "phrase": concept.phrase,
            "strength": strength,
            "sha256": file_hash(concept.adapter_file),
        }
        for concept, strength in concepts
    ]


def save_pictures(
    pictures: "Sequence[Image]", folder: Path, description: dict[str, Any], seeds: Sequence[int] | None = None
) -> list[Path]:
    """Write each picture as a PNG with its description as the text "studio"; never over another file. Where `seeds` are
    not given, they rise by one from that of the description.

    Raises StudioError where a picture cannot be written; those before it are kept.
    """
    paths = []
    first = description["seed"]
    for picture, seed in zip(pictures, seeds or range(first, first + len(pictures)), strict=True):
        text = json.dumps(description | {"seed": seed, "width": picture.width, "height": picture.height})
        paths.append(_save(picture, _unused(folder, f"{slug(description['prompt'])}-{seed}"), text))
    return paths


def save_sheet(sheet: "Image", folder: Path, description: dict[str, Any]) -> Path:
    """Write a sheet of many pictures, which themselves say how they were made; raises StudioError."""
    return _save(sheet, _unused(folder, f"compared-{slug(description['prompt'])}-{description['seed']}"), None)


def _save(picture: "Image", path: Path, text: str | None) -> Path:
    from PIL.PngImagePlugin import PngInfo  # which `studio --help` need not wait for

    info = PngInfo()
    if text is not None:
        info.add_itxt(TEXT_KEY, text)
    return write_atomic(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=info))


def _unused(folder: Path, stem: str) -> Path:
    path, n = folder / f"{stem}.png", 1
    while path.exists():
        n += 1
        path = folder / f"{stem}-{n}.png"
    return path
