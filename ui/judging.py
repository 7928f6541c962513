"""What the commands that score have in common: which pictures a concept is held against, and by what."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.bases import EMBEDDED, BaseSource
from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import Emit, Notice

if TYPE_CHECKING:
    from studio.pipelines.evaluation import Scorer
    from studio.pipelines.scorers import Reference

ClipOption = Annotated[
    str | None,
    typer.Option(
        help="A CLIP to score by, of open_clip: FOLDER, MODEL=FILE, MODEL/TAG or a hub id. On picturebook: its own."
    ),
]
ReferencesOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=FOLDER: pictures of a concept, where those it was trained on are not at hand."),
]
BestOfOption = Annotated[
    int,
    typer.Option(
        "--best-of",
        min=1,
        help="Draw so many candidates for each picture and keep the one in which the concepts are most themselves, by"
        " judge A on picturebook, on other bases by --clip.",
    ),
]


def reference_folders(concepts: Sequence[Concept], given: Sequence[str]) -> dict[str, Path]:
    """By name the folders of `--references`; raises UsageError for what is given wrongly."""
    from studio.images import find_pictures

    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or name not in [one.name for one in concepts]:
            raise UsageError(f"--references {text}: {name!r} is none of the concepts.", "Write NAME=FOLDER.")
        find_pictures(Path(folder))
        found[name] = Path(folder)
    return found


def known_pictures(
    concepts: Sequence[Concept], library: Sequence[Concept], folders: dict[str, Path], emit: Emit
) -> "dict[str, Reference]":
    """The pictures of `concepts`, and of what of the library they could be taken for: all of their family. Says for
    which of `concepts` there are none."""
    from studio.images import find_pictures, load_rgb
    from studio.pipelines.scorers import Reference

    known: dict[str, Reference] = {}
    families = {one.family for one in concepts}
    for one in [*concepts, *(other for other in library if other.family in families)]:
        folder = pictures_of(one, folders)
        if one.name in known:
            continue
        if folder is not None:
            known[one.name] = Reference(one.class_word, tuple(load_rgb(each.path) for each in find_pictures(folder)))
        elif one in concepts:
            emit(
                Notice(
                    f"The pictures of {one.name} are not at hand, so nothing says how like them it is: give them with"
                    f" --references {one.name}=FOLDER."
                )
            )
    return known


@dataclass(frozen=True)
class Eyes:
    """The networks that are given to look at pictures, as the command line names them."""

    clip: str | None = None
    dino: str | None = None
    detector: str | None = None


def scorers_of(
    known: "dict[str, Reference]", classes: dict[str, str], source: BaseSource, eyes: Eyes, device: str | None
) -> "list[Scorer]":
    """On the embedded base judge A and the embedded CLIP; on others what is given."""
    from studio.detectors import load_detector
    from studio.devices import pick_device
    from studio.encoders import embedded_clip, load_clip, load_dino
    from studio.pipelines.scorers import Arranged, JudgeA, Likeness

    own, place = source.name == EMBEDDED, str(pick_device(device))
    found: list[Scorer] = [JudgeA(known)] if own else []
    if eyes.clip is not None or own:
        found.append(Likeness("CLIP", load_clip(eyes.clip, place) if eyes.clip else embedded_clip(), known, classes))
    if eyes.dino is not None:
        found.append(Likeness("DINO", load_dino(eyes.dino, place), known, classes))
    if eyes.detector is not None:
        found.append(Arranged(load_detector(eyes.detector, place), classes))
    return found


def pictures_of(concept: Concept, folders: dict[str, Path]) -> Path | None:
    """The folder of `--references`, or that of the pictures that it was trained on, where it still is."""
    from studio.images import find_pictures
    from studio.trainers.workplace import RECIPE_FILE

    if concept.name in folders:
        return folders[concept.name]
    try:
        recipe: dict[str, Any] = tomllib.loads((concept.folder / RECIPE_FILE).read_text(encoding="utf-8"))
        taught = {one["trigger"]: one["pictures"] for one in recipe.get("others", [])}
        folder = Path(taught.get(concept.trigger, recipe["pictures"]))
        find_pictures(folder)
    except (OSError, ValueError, LookupError, TypeError, UsageError):
        return None
    return folder
