"""What the page Compose shows of its last job: progress, pictures, the comparison with merging, and who leaked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from studio.jobs import Job
from studio.ui.fragments import found, pictures, render, standing
from studio.ui.marks import marks
from studio.ui.service import Service
from studio.ui.thumbs import Thumbs


def composed(service: Service, number: int | None) -> str:
    """The job `number` as its page shows it; an invitation where there is none."""
    job = found(service, number)
    invited = ("Your picture will stand here", "Choose concepts, draw a box for each if you like, and press Compose.")
    told = standing(service, job, *invited)
    if job is None:
        return render("composed.html", standing=told, pairs=[], pictures=None, leaks=None)
    pairs, method = _pairs(service, job)
    return render(
        "composed.html", standing=told, pairs=pairs, method=method,
        prompt=job.result.get("prompt", job.title), pictures=pictures(service, job), leaks=_leaks(job, method),
    )  # fmt: skip


def _pairs(service: Service, job: Job) -> tuple[list[dict[str, Any]], str]:
    """Pictures of the chosen method and of merging that have a seed in common, and the method's name."""
    made: dict[str, dict[int, str]] = {}
    thumbs = Thumbs(service.home)
    for one in job.result.get("pictures", []):
        made.setdefault(one["method"], {})[one["seed"]] = one["path"]
    others = [name for name in made if name != "merge"]
    method = others[0] if others else "merge"
    if "merge" not in made or not others:
        return [], method
    shared = [seed for seed in made[method] if seed in made["merge"]]
    return [
        {
            "seed": seed,
            "composed": thumbs.url(Path(made[method][seed])),
            "merged": thumbs.url(Path(made["merge"][seed])),
        }
        for seed in shared[:1]
    ], method


def _leaks(job: Job, method: str) -> Markup | None:
    """The matrix of the first picture of `method`."""
    told = job.result.get("leaks") or {}
    matrices = told.get("matrices", {}).get(method)
    return Markup(leak_matrix(told["names"], matrices[0])) if matrices else None


def leak_matrix(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> str:
    """A row a place, a column a concept; a place that is more like another than its own concept is marked."""
    signs = marks(names)

    def cell(place: int, concept: int) -> Mapping[str, str]:
        value, own = matrix[place][concept], matrix[place][place]
        if place == concept:
            best = own >= max(matrix[place])
            return {"text": f"{value:.2f}", "look": "own" if best else ""}
        return {"text": f"{value:.2f}", "look": "leaks" if value > own else ""}

    rows = [
        {"mark": mark, "cells": [cell(place, concept) for concept in range(len(names))]}
        for place, mark in enumerate(signs)
    ]
    return render("leaks.html", marks=signs, rows=rows)
