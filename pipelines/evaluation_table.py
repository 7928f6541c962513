"""An evaluation as a table, as plain values for JSON, and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from studio.pipelines.evaluation import Found, Scored
from studio.stats import Mean, Share


@dataclass(frozen=True)
class Sense:
    """What a score says, which way is better ("" where neither is), and whether it is yes or no of a picture."""

    says: str
    better: Literal["higher", "lower", ""]
    share: bool = False


SENSES = {
    "success": Sense("all of the following are right, by judge A", "higher", share=True),
    "itself": Sense("every concept is itself, in its place, by judge A", "higher", share=True),
    "leak": Sense("a place shows something of another concept, by judge A", "lower", share=True),
    "background": Sense("the prompt's background, by judge A", "higher", share=True),
    "judge-margin": Sense("how much nearer to itself than to any other, by judge A", "higher"),
    "CLIP-T": Sense("how well the picture fits the prompt, 100 times a cosine", "higher"),
    "CLIP-I": Sense("how like its own pictures a concept is, a cosine", "higher"),
    "CLIP-margin": Sense("how much more like its own than like another concept's", "higher"),
    "CLIP-leak": Sense("by how much a place is more like another concept than its own", "lower"),
    "DINO-I": Sense("as CLIP-I, by DINO", "higher"),
    "DINO-margin": Sense("as CLIP-margin, by DINO", "higher"),
    "DINO-leak": Sense("as CLIP-leak, by DINO", "lower"),
    "layout": Sense("how well things found by a detector fill their places: shared over whole area", "higher"),
    "CLIP-pair": Sense("how like the picture is to that whose caption was drawn, a cosine", "higher"),
    "CLIP-drift": Sense("how far pictures that call no concept are from the base's, 1 less a cosine", "lower"),
    "DINO-pair": Sense("as CLIP-pair, by DINO", "higher"),
    "DINO-drift": Sense("as CLIP-drift, by DINO", "lower"),
    "diversity": Sense("how far the pictures of one prompt are apart", "higher"),
    "sharpness": Sense("falls where pictures blur", ""),
    "saturation": Sense("rises where pictures are burnt", ""),
    "seconds": Sense("to draw a picture", "lower"),
}
MAIN = (
    "judge-margin",
    "CLIP-margin",
    "DINO-margin",
    "CLIP-I",
    "DINO-I",
    "CLIP-T",
)  # by which pictures are put worst first


def report_of(found: Found) -> dict[str, Any]:
    """Rows with the mean of every score and its 95 % interval (Wilson's for shares; else bootstrap over pictures, whose
    seeds all differ, `diversity` over prompts), the differences to the first row, paired where the same was asked, and
    every picture."""
    rows = {name: [one for one in found.pictures if one.row == name] for name in _names(found)}
    first = next(iter(rows))
    return {
        "rows": {name: _means(found, name, several) for name, several in rows.items()},
        f"over {first}": {
            name: over for name, several in rows.items() if name != first and (over := _over(several, rows[first]))
        },
        "scores": {name: SENSES[name].says for name in scores_of(found)},
        "worst first by": main_score(found),
        "pictures": [
            {"row": one.row, "prompt": one.prompt, "seed": one.seed, "file": one.file.name, **one.scores}
            for one in worst_first(found)
        ],
        "drawn now": found.drawn,
    }


def scores_of(found: Found) -> list[str]:
    """All that there are, in the order of SENSES."""
    there = {name for one in found.pictures for name in one.scores}
    there |= {name for scores in found.together.values() for name in scores}
    return [name for name in SENSES if name in there]


def main_score(found: Found) -> str | None:
    """The first of MAIN that any picture has."""
    return next((name for name in MAIN if any(name in one.scores for one in found.pictures)), None)


def worst_first(found: Found) -> list[Scored]:
    """The pictures by their main score; those without one last, as they came."""
    main = main_score(found)
    return sorted(found.pictures, key=lambda one: inf if main is None else one.scores.get(main, inf))


def as_csv(found: Found) -> str:
    """A line a picture, in the order in which they were asked for."""
    names = [name for name in scores_of(found) if any(name in one.scores for one in found.pictures)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "prompt", "seed", "file", *names))
    for one in found.pictures:
        writer.writerow((one.row, one.prompt, one.seed, one.file.name, *(one.scores.get(name, "") for name in names)))
    return text.getvalue()


def _names(found: Found) -> list[str]:
    return list(dict.fromkeys(one.row for one in found.pictures))


def _means(found: Found, row: str, pictures: Sequence[Scored]) -> dict[str, Any]:
    told = [scores for (name, _), scores in found.together.items() if name == row]
    means: dict[str, Any] = {"pictures": len(pictures)}
    for name in scores_of(found):
        values = [one.scores[name] for one in pictures if name in one.scores]
        values += [scores[name] for scores in told if name in scores]
        if values:
            means[name] = _mean(values, SENSES[name].share)
    return means


def _mean(values: Sequence[float], share: bool) -> dict[str, float]:
    """With Wilson's interval for a share: a bootstrap of none in forty says that there are none at all."""
    if share:
        return Share.of([value == 1 for value in values]).rounded()
    return Mean.of(values, range(len(values))).rounded()


def _over(pictures: Sequence[Scored], first: Sequence[Scored]) -> dict[str, Any]:
    known = {(one.prompt, one.seed): one.scores for one in first}
    found: dict[str, Any] = {}
    for name in SENSES:
        moved = [
            one.scores[name] - known[one.prompt, one.seed][name]
            for one in pictures
            if name in one.scores and name in known.get((one.prompt, one.seed), {})
        ]
        if moved:
            found[name] = Mean.of(moved, range(len(moved))).rounded()
    return found
