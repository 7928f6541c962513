"""What the page Library shows: cards, a concept in full, files that came in. No torch before a file is looked at."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from jinja2 import Template
from markupsafe import Markup

from studio.bases import ALIASES, EMBEDDED
from studio.concepts import Concept, file_hash
from studio.errors import StudioError
from studio.library import Library
from studio.ui.inspect_words import Inspection, facts, numbers
from studio.ui.judging import pictures_of
from studio.ui.report import template_of
from studio.ui.service import Service
from studio.ui.thumbs import Thumbs
from studio.untrusted import shown

if TYPE_CHECKING:
    from studio.adapters import Adapter

RECIPE_FILE = "recipe.toml"
HIGHLIGHTS = {  # of a recipe, as a user would call them
    "preset": "quality", "steps": "steps", "rank": "rank", "learning_rate": "learning rate", "batch_size": "batch",
    "resolution": "picture size", "optimizer": "optimizer", "seed": "seed",
}  # fmt: skip
HASHED_AT_ONCE = 64 * 2**20  # bytes; of larger files the hash is only looked at where the concept is
MEASURED_AT_ONCE = 64 * 2**20
SHEET_SIDE = 900
_hashes: dict[tuple[Path, int, int], str] = {}


@dataclass(frozen=True)
class Sought:
    """What the page shows of the library; "" for everything."""

    text: str = ""
    base: str = ""
    method: str = ""
    tag: str = ""

    @classmethod
    def of(cls, *given: str | None) -> "Sought":
        """As the fields of the page have it, which are None while nothing is in them."""
        return cls(*(one or "" for one in given))

    def fits(self, concept: Concept) -> bool:
        """Whether `concept` is to be shown."""
        told = " ".join((concept.name, concept.phrase, concept.method, base_words(concept.base), *concept.tags))
        return (
            all(word in told.casefold() for word in self.text.casefold().split())
            and self.base in ("", concept.base)
            and self.method in ("", concept.method)
            and (not self.tag or self.tag in concept.tags)
        )


def cards(service: Service, sought: Sought, chosen: str = "") -> str:
    """The concepts that fit as cards, `chosen` marked, and the damaged ones by name."""
    everything, damaged = service.library.everything()
    thumbs = Thumbs(service.home)
    shown = [
        {
            "concept": one, "picture": picture(thumbs, one), "size": size_words(one.adapter_file.stat().st_size),
            "base": base_words(one.base), "sound": is_sound(one, HASHED_AT_ONCE),
        }
        for one in everything
        if sought.fits(one)
    ]  # fmt: skip
    return _template("library.html").render(cards=shown, count=len(everything), chosen=chosen, damaged=damaged)


def detail(service: Service, name: str) -> str:
    """One concept in full; raises UsageError where there is none."""
    concept = service.library.find(name)
    thumbs = Thumbs(service.home)
    recipe = recipe_of(concept)
    files = {title: concept.folder / f"{stem}.png" for title, stem in (("Samples", "samples"), ("Loss", "loss"))}
    sheets = {title: url for title, file in files.items() if (url := thumbs.url(file, SHEET_SIDE))}
    return _template("concept.html").render(
        concept=concept, picture=picture(thumbs, concept), base=base_words(concept.base), sheets=sheets,
        size=size_words(concept.adapter_file.stat().st_size), sound=is_sound(concept),
        recipe={words: recipe[key] for key, words in HIGHLIGHTS.items() if key in recipe},
    )  # fmt: skip


def cover(concept: Concept) -> Path | None:
    """The picture that stands for a concept: the first of its last samples, else one that it was trained on."""
    return _cover(concept, concept.folder.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _cover(concept: Concept, changed: int) -> Path | None:
    samples = sorted((concept.folder / "samples").glob("step-*-0.png"))
    if samples:
        return samples[-1]
    folder = pictures_of(concept, {})
    if folder is None:
        return None
    from studio.images import find_pictures

    return find_pictures(folder)[0].path


def picture(thumbs: Thumbs, concept: Concept) -> str:
    """Where the small copy of a concept's cover is to be had; empty where there is none."""
    file = cover(concept)
    return "" if file is None else thumbs.url(file)


def recipe_of(concept: Concept) -> dict[str, Any]:
    """What its training's recipe says; empty for one that was not trained here."""
    try:
        return tomllib.loads((concept.folder / RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def is_sound(concept: Concept, limit: float = float("inf")) -> bool | None:
    """Whether the adapter's file is the one that the library took in; None where nothing is known, or the file is
    larger than `limit` and was not looked at yet."""
    about = concept.adapter_file.stat()
    key = (concept.adapter_file, about.st_size, about.st_mtime_ns)
    if concept.sha256 is None or (key not in _hashes and about.st_size > limit):
        return None
    if key not in _hashes:
        _hashes[key] = file_hash(concept.adapter_file)
    return _hashes[key] == concept.sha256


def bases_of(library: Library) -> list[tuple[str, str]]:
    """The bases that an adapter may be said to be for, as (words, name): the usual ones, and those of the library."""
    known = dict.fromkeys([EMBEDDED, *ALIASES, *(one.base for one in library.concepts())])
    return [(base_words(name), name) for name in known]


def inspected(concept: Concept) -> str:
    """What the adapter of `concept` holds, as HTML; a sentence where it cannot be read."""
    try:
        found = _inspection(concept.adapter_file, concept.adapter_file.stat().st_mtime_ns)
    except StudioError as error:
        return str(Markup('<div class="message bad" role="alert">{}</div>').format(error.problem))
    return inspection(found)


def inspection(found: Inspection) -> str:
    """An inspected file in plain words, with a bar for each block where it was measured."""
    norms = found.block_norms or {}
    top = max((norm for norm in norms.values() if norm < float("inf")), default=0.0)
    bars = [
        {"block": block, "norm": f"{norm:.3g}", "share": round(100 * norm / top, 1) if 0 < norm <= top else 0}
        for block, norm in norms.items()
    ]
    return _template("inspected.html").module.inspection(found, _spoken(found), bars)  # type: ignore[attr-defined]


def arrived(file: Path) -> Inspection:
    """An uploaded file inspected without its values; raises StudioError for what is no adapter."""
    from studio.adapter_report import report_on
    from studio.adapters import load_adapter

    return Inspection(file, report_on(load_adapter(file, values=False), file), None)


def receipt(concept: Concept, adapter: "Adapter") -> str:
    """What came of an import, as HTML."""
    from studio.adapters import unsaid_words

    return _template("inspected.html").module.receipt(  # type: ignore[attr-defined]
        concept, base_words(concept.base), adapter.format, len(adapter.layers),
        [shown(key, 80) for key in adapter.unread],
        [shown(word, 60) for word in unsaid_words(adapter, concept)[:3]],
    )  # fmt: skip


def base_words(base: str) -> str:
    """A base's name without the folder that a local one lies in."""
    return PurePath(base).name if PurePath(base).is_absolute() else base


def size_words(size: int) -> str:
    """`4.5 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 100 * factor else f"{size / factor:.0f} {unit}"
    return f"{size} bytes"


@lru_cache(maxsize=64)
def _inspection(file: Path, changed: int) -> Inspection:
    from studio import adapter_norms as measures
    from studio.adapter_report import report_on
    from studio.adapters import load_adapter

    small = file.stat().st_size <= MEASURED_AT_ONCE
    adapter = load_adapter(file, values=small)
    found = Inspection(file, report_on(adapter, file), None)
    if not small:
        return found
    norms = measures.layer_norms(adapter)
    said = (*found.report.suspicious, *measures.suspicious_values(adapter, norms))
    return replace(found, report=replace(found.report, suspicious=said), block_norms=measures.block_norms(norms))


def _spoken(found: Inspection) -> Mapping[str, str]:
    """The facts that a user reads: of the training's own notes there are up to hundreds."""
    told = facts(found)
    ranks: Sequence[int | None] = sorted({one for block in found.report.blocks for one in block.ranks if one})
    wanted = ("format", "made for", "kinds", "B-LoRA", "layers", "trigger words", "embeddings", "frequent tags")
    rows = {key: told[key] for key in wanted if key in told}
    return rows | ({"ranks": numbers(ranks)} if ranks else {}) | {"size": size_words(found.report.bytes)}


@cache
def _template(name: str) -> Template:
    return template_of(name, {}, "web")
