"""What the page Evaluate shows of an evaluation: the table, the worst pictures, and those that there were before."""

from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

from studio.errors import UsageError
from studio.jobs import Job
from studio.pipelines.evaluation_plan import SCENES
from studio.ui.asks import EvaluateAsk
from studio.ui.figures import figure
from studio.ui.fragments import found, job_list, render, standing, times
from studio.ui.service import Service
from studio.ui.thumbs import Thumbs

WORST = 12  # pictures that are shown
# As studio.pipelines.evaluation_table.SENSES has it, without the torch that stands behind that.
LOWER_IS_BETTER = frozenset(("leak", "CLIP-leak", "DINO-leak", "CLIP-drift", "DINO-drift", "seconds"))
NEITHER_IS_BETTER = frozenset(("sharpness", "saturation"))
SCENES_ASKED, DREAMBOOTH, OWN, TOGETHER, CHECKPOINTS = "scenes", "dreambooth", "own", "together", "checkpoints"
QUESTIONS = {
    "four scenes each (picturebook)": SCENES_ASKED, "DreamBooth's 25 prompts each": DREAMBOOTH,
    "my own prompts": OWN, "all pairs, side by side": TOGETHER, "one concept, as its training went": CHECKPOINTS,
}  # fmt: skip
METHODS_MATTER = (OWN, TOGETHER)


def ask_of(
    names: Sequence[str], question: str, prompts: str | None, methods: Sequence[str], **numbers: Any
) -> EvaluateAsk:
    """What the fields of the page ask for; raises UsageError."""
    if question not in QUESTIONS.values():
        raise UsageError("It is not said what is asked.", "Choose one of the list.")
    given: dict[str, Any] = {"names": tuple(names)} | {k: v for k, v in numbers.items() if v is not None}
    if question == OWN:
        given["prompts"] = _lines(prompts)
        if not given["prompts"]:
            raise UsageError("There is no prompt yet.", "Write one a line, with <name> where a concept belongs.")
    elif not names:
        raise UsageError("No concept is chosen.", "Choose one or more.")
    if question in METHODS_MATTER:
        given["methods"] = tuple(methods)
    if question in (SCENES_ASKED, DREAMBOOTH):
        given["protocol"] = question
    more = {TOGETHER: {"together": 2}, CHECKPOINTS: {"checkpoints": True}}
    return EvaluateAsk.read(given | more.get(question, {}))


def _lines(text: str | None) -> tuple[str, ...]:
    """What is written in a field, which is None while it is hidden."""
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def amount(names: Sequence[str], question: str, prompts: str | None, methods: Sequence[str], seeds: int) -> str:
    """How many pictures that will be, in words; "" where it is not known before."""
    lines = len(_lines(prompts))
    ways = max(1, len(methods))
    each = {
        SCENES_ASKED: len(SCENES) * len(names), DREAMBOOTH: 25 * len(names), OWN: lines * ways,
        TOGETHER: comb(len(names), 2) * ways,
    }  # fmt: skip
    count = each.get(question, 0) * seeds
    return f"{count:,} pictures; what was drawn before is not drawn again." if count else ""


def evaluation(service: Service, number: int | None) -> str:
    """The job of that number; an invitation where there is none."""
    job = found(service, number, "evaluate")
    told = standing(
        service, job, "The scores will stand here", "Choose concepts and what is asked of them, and press Start."
    )
    if job is None:
        return render("evaluation.html", standing=told, table=None)
    return render(
        "evaluation.html", standing=told, job=job, table=_table(job.result), worst=_worst(service, job.result),
        main=job.result.get("worst first by"),
    )  # fmt: skip


def evaluations(service: Service, chosen: int | None) -> str:
    """All evaluations that the list of jobs has, the latest first."""
    jobs = of_kind(service)
    empty = ("No evaluation yet", "What is scored here is kept, and can be looked at again.")
    return job_list(jobs, chosen, "Evaluations", {job.id: _size(job) for job in jobs}, empty)


def _size(job: Job) -> str:
    if not job.result.get("rows"):
        return times(job)
    return f"{times(job)} · {len(job.result['rows'])} rows, {len(job.result['pictures'])} pictures"


def of_kind(service: Service) -> list[Job]:
    """The evaluations among the jobs."""
    return [job for job in service.store.jobs() if job.kind == "evaluate"]


def best_rows(rows: Mapping[str, Mapping[str, Any]], score: str) -> set[str]:
    """The rows with the best mean of a score; none where all are alike, or neither way is better."""
    means = {name: told[score]["value"] for name, told in rows.items() if score in told}
    if not means or score in NEITHER_IS_BETTER:
        return set()
    top = min(means.values()) if score in LOWER_IS_BETTER else max(means.values())
    best = {name for name, value in means.items() if value == top}
    return best if len(best) < len(means) else set()


def _table(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """A line a row of the evaluation, a cell a score."""
    rows, scores = result.get("rows"), result.get("scores")
    if not rows or not scores:
        return None
    best = {score: best_rows(rows, score) for score in scores}

    def cell(row: str, score: str) -> dict[str, Any] | None:
        mean = rows[row].get(score)
        if mean is None:
            return None
        between = "" if mean["low"] is None else f"{figure(mean['low'])} to {figure(mean['high'])}"
        return {"mean": figure(mean["value"]), "between": between, "best": row in best[score]}

    def better(score: str) -> str:
        return "" if score in NEITHER_IS_BETTER else "lower" if score in LOWER_IS_BETTER else "higher"

    return {
        "heads": [{"score": score, "says": says, "better": better(score)} for score, says in scores.items()],
        "rows": [
            {"name": row, "pictures": told["pictures"], "cells": [cell(row, score) for score in scores]}
            for row, told in rows.items()
        ],
    }  # fmt: skip


def _worst(service: Service, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first pictures of the report, which has them worst first; they lie in the cache under plain names."""
    folder, thumbs, main = (
        service.home.cache / "evaluations" / "pictures",
        Thumbs(service.home),
        result.get("worst first by"),
    )
    return [
        {
            "url": thumbs.url(folder / Path(str(one["file"])).name, 256), "row": one["row"], "prompt": one["prompt"],
            "seed": one["seed"], "score": figure(one[main]) if main in one else "",
        }
        for one in result.get("pictures", [])[:WORST]
    ]  # fmt: skip
