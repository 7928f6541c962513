"""What a benchmark of compositions found: by method, for pairs, for those of one class among them, and for triples.

Shares have Wilson intervals; means, ceilings and differences bootstrap intervals that draw whole groups of concepts.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Any

from studio.pipelines.bench_store import Result
from studio.pipelines.compose_arms import ALONE, BASE, WITH_BOXES, YARDSTICKS
from studio.pipelines.compose_bench import same_class
from studio.pipelines.methods import AS_PUBLISHED, PUBLISHED
from studio.stats import Mean, Share

MERGE = "merge"
Rows = Mapping[str, Sequence[Result]]  # by arm


def sections_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Pairs, those of one class apart, and triples; what there is none of is left out."""
    asked: dict[str, Callable[[tuple[str, ...]], bool]] = {
        "pairs": lambda group: len(group) == 2,
        "pairs of one class": lambda group: len(group) == 2 and same_class(group),
        "triples": lambda group: len(group) == 3,
    }
    found = {name: [one for one in results if wanted(one.group)] for name, wanted in asked.items()}
    return {name: several for name, several in found.items() if several}


def section_report(results: Sequence[Result]) -> dict[str, Any]:
    """The table of groups of one kind: yardsticks, methods, and differences of every two methods' success."""
    rows: dict[str, list[Result]] = {}
    for one in results:
        rows.setdefault(one.arm, []).append(one)
    yardsticks = {arm.name for arm in YARDSTICKS}
    methods = {name: several for name, several in rows.items() if name not in yardsticks}
    ceiling = _ceiling(rows)
    report: dict[str, Any] = {
        "groups": ["+".join(group) for group in dict.fromkeys(one.group for one in results)],
        "yardsticks": {name: _row(several) for name, several in rows.items() if name in yardsticks},
        "ceiling": ceiling.rounded(),
        "methods": {name: _row(several) for name, several in methods.items()},
        "differences": {
            f"{b} - {a}": difference(methods[b], methods[a]).rounded() for a, b in combinations(methods, 2)
        },
    }
    published = [name for name in methods if name.removesuffix(WITH_BOXES) in PUBLISHED]
    authors = [name for name in methods if name in {one.name for one in AS_PUBLISHED.values()}]
    unchanged = [name for name in published if name not in AS_PUBLISHED]
    best, best_as_published = (
        max(those, key=lambda name: report["methods"][name]["success"]["value"], default=None)
        for those in (published, unchanged + authors)
    )
    report["best of the published"], report["best as published"] = best, best_as_published
    for name, row in report["methods"].items():
        row["share of the ceiling"] = round(row["success"]["value"] / ceiling.value, 3) if ceiling.value else None
        others = {
            "over merge": MERGE,
            "over the best of the published": best,
            "over the best as published": best_as_published,
        }
        for title, other in others.items():
            if other in methods and other != name:
                row[title] = difference(methods[name], methods[other]).rounded()
    return report


def difference(ours: Sequence[Result], theirs: Sequence[Result]) -> Mean:
    """How much more often the first succeed than the second, on the groups and seeds that both have drawn."""
    known = {(one.group, one.seed): one.marks.success for one in theirs}
    paired = [one for one in ours if (one.group, one.seed) in known]
    moved = [float(one.marks.success) - known[one.group, one.seed] for one in paired]
    return Mean.of(moved, [one.group for one in paired])


def _ceiling(rows: Rows) -> Mean:
    """By group: how often the base puts things that it knows in place, times how often each concept alone is itself."""
    shares = []
    groups = list(dict.fromkeys(one.group for one in rows[BASE]))
    for group in groups:
        base = [all(one.marks.in_place) for one in rows[BASE] if one.group == group]
        alone = [one.marks.in_place for one in rows[ALONE] if one.group == group]
        shares.append(sum(base) / len(base) * prod(sum(own) / len(own) for own in zip(*alone, strict=True)))
    return Mean.of(shares, groups)


def _row(results: Sequence[Result]) -> dict[str, Any]:
    marks = [one.marks for one in results]
    groups = [one.group for one in results]
    row: dict[str, Any] = {
        "success": Share.of([one.success for one in marks]).rounded(),
        "all in place": Share.of([all(one.in_place) for one in marks]).rounded(),
        "in place": Share.of([own for one in marks for own in one.in_place]).rounded(),
        "identity": Share.of([seen for one in marks for seen in one.seen]).rounded(),
        "background": Share.of([one.background for one in marks]).rounded(),
        "by group": {
            "+".join(group): round(
                sum(one.marks.success for one in results if one.group == group) / groups.count(group), 3
            )
            for group in dict.fromkeys(groups)
        },
    }
    if marks[0].margins:
        own = [group for one, group in zip(marks, groups, strict=True) for _ in one.margins]
        row["margin"] = Mean.of([margin for one in marks for margin in one.margins], own).rounded()
        row["by concept"] = _by_concept(results)
    if marks[0].leaks:
        row["leak"] = Share.of([one.leak for one in marks]).rounded()
        row["leaks"] = _leaks(results)
    return row


def _by_concept(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    found: dict[str, list[tuple[bool, bool, float, tuple[str, ...]]]] = {}
    for one in results:
        marks = one.marks
        for name, here, seen, margin in zip(one.group, marks.in_place, marks.seen, marks.margins, strict=True):
            found.setdefault(name, []).append((here, seen, margin, one.group))
    return {
        name: {
            "in place": Share.of([here for here, *_ in several]).rounded(),
            "identity": Share.of([seen for _, seen, *_ in several]).rounded(),
            "margin": Mean.of([margin for *_, margin, _ in several], [group for *_, group in several]).rounded(),
        }
        for name, several in sorted(found.items())
    }


def _leaks(results: Sequence[Result]) -> dict[str, Any]:
    """`matrix[a][b]`: how often the place of b shows something of a, where both are in the picture; `fields`: how often
    the place of one shows that of another."""
    matrix: dict[str, dict[str, list[bool]]] = {}
    fields: dict[str, int] = {}
    places = 0
    for one in results:
        for place, into in enumerate(one.group):
            for of, taken in zip(one.group, one.marks.leaks[place], strict=True):
                if of != into:
                    places += 1
                    matrix.setdefault(of, {}).setdefault(into, []).append(bool(taken))
                    for field in taken:
                        fields[field] = fields.get(field, 0) + 1
    return {
        "matrix": {
            of: {into: round(sum(hits) / len(hits), 3) for into, hits in sorted(row.items())}
            for of, row in sorted(matrix.items())
        },
        "fields": {field: round(hits / places, 3) for field, hits in sorted(fields.items(), key=lambda one: -one[1])},
    }
