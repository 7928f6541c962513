"""What a picture tells of how it was made, read back. Its text may come from a stranger."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from studio.concepts import Concept, file_hash
from studio.errors import UsageError
from studio.pipelines.outputs import TEXT_KEY
from studio.regions import Layout, layout_of
from studio.untrusted import shown

# What `describe` writes, and what may stand there; a float may be a whole number.
_KINDS: dict[str, type] = {
    "prompt": str, "negative_prompt": str, "seed": int, "steps": int, "guidance": float, "scheduler": str,
    "vae_tiling": bool, "width": int, "height": int, "base": str, "method": str, "concepts": list, "studio": str,
}  # fmt: skip
SETTINGS = ("negative_prompt", "seed", "steps", "guidance", "scheduler", "vae_tiling", "width", "height")


@dataclass(frozen=True)
class RecalledConcept:
    """A concept as a picture names it."""

    name: str
    strength: float
    sha256: str

    def check(self, concept: Concept, option: str) -> None:
        """Raise UsageError where the library's concept of this name has another adapter; `option` asks for that one."""
        now = file_hash(concept.adapter_file)
        if now != self.sha256:
            raise UsageError(
                f"The concept {self.name!r} is not the one of the picture: its SHA-256 was {shown(self.sha256[:12])}..."
                f" and is {now[:12]}...",
                f"To draw with what the library holds now, say so: {option}",
            )


@dataclass(frozen=True)
class Recalled:
    """How a picture was made; `settings` are those of GenerateSettings by name, without the prompt."""

    prompt: str
    settings: dict[str, Any]
    base: str
    method: str
    concepts: tuple[RecalledConcept, ...]
    layout: Layout | None
    styles: tuple[RecalledConcept, ...]
    studio: str

    def notice(self) -> str | None:
        """What to say where another version of the studio drew the picture."""
        if self.studio == (now := version("concept-studio")):
            return None
        return f"The picture was drawn by studio {shown(self.studio)}; this is {now}, which may draw another one."


def recall(path: Path) -> Recalled:
    """What the PNG in `path` tells; raises UsageError where it is no picture, tells nothing, or not all of it."""
    from PIL import Image  # which `studio --help` need not wait for

    try:
        with Image.open(path) as picture:
            text = picture.info.get(TEXT_KEY)
    except OSError as error:
        reason = error.strerror or "it is no picture"
        raise UsageError(f"Cannot read {path}: {reason}.", "Give a PNG that studio compose drew.") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} is no picture that can be read: {error}.", "Give another PNG.") from error
    if not isinstance(text, str):
        raise UsageError(
            f"{path} does not tell how it was made.",
            "Give a PNG that studio compose or generate drew and no other program saved; a compared sheet tells"
            " nothing, the single pictures beside it do.",
        )
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise _unusable(path, "is no JSON object")
    return _recalled(path, told)


def _recalled(path: Path, told: dict[str, Any]) -> Recalled:
    for key, kind in _KINDS.items():
        if key not in told:
            raise _unusable(path, f"has no {key!r}: a studio of another version wrote it")
        if not _is(told[key], kind):
            raise _unusable(path, f"says {shown(repr(told[key]), 60)} for {key!r}")
    return Recalled(
        prompt=told["prompt"],
        settings={key: told[key] for key in SETTINGS},
        base=told["base"],
        method=told["method"],
        concepts=_concepts(path, told["concepts"]),
        layout=layout_of(told["layout"], f"The layout in {path}") if "layout" in told else None,
        styles=_concepts(path, told.get("styles", [])),
        studio=told["studio"],
    )


def _concepts(path: Path, told: object) -> tuple[RecalledConcept, ...]:
    """The concepts or the styles that the picture names."""
    if not isinstance(told, list):
        raise _unusable(path, f"says {shown(repr(told), 60)} for 'styles'")
    for one in told:
        facts = {"name": str, "strength": float, "sha256": str}
        if not isinstance(one, dict) or not all(_is(one.get(key), kind) for key, kind in facts.items()):
            raise _unusable(path, f"says {shown(repr(one), 60)} of a concept")
    return tuple(RecalledConcept(one["name"], one["strength"], one["sha256"]) for one in told)


def _is(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _unusable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"What {path} tells of how it was made cannot be used: it {why}.", "Give the settings as options instead."
    )
