"""Nine pictures of one content in one style, each half in three strengths: one job, and what the page Stylize shows."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import Emit, Event, Notice, Phase, Step
from studio.home import Home
from studio.job_records import BEST, Order
from studio.job_worker import Bench
from studio.jobs import Job
from studio.pipelines.outputs import STYLIZE, describe, save_pictures
from studio.ui.asks import StylizeAsk
from studio.ui.cmd_stylize import Plan, plan_of
from studio.ui.fragments import found, pictures, render, standing
from studio.ui.library_parts import base_words, picture
from studio.ui.loading import Warm
from studio.ui.service import Service
from studio.ui.thumbs import Thumbs

STRENGTHS = (0.5, 1.0, 1.5)


class GridAsk(StylizeAsk):
    """A content and a style, of which every strength of STRENGTHS is drawn with every other, from one seed."""

    def plan(self, home: Home) -> Plan:
        """All of it checked against the library; raises UsageError."""
        if not self.content or not self.style:
            raise UsageError("A grid needs both a content and a style.", "Choose both, or take the grid away.")
        wanted: dict[str, tuple[str | None, float | None]] = {
            "content": (self.content, None), "style": (self.style, None)
        }  # fmt: skip
        return plan_of(home, self.options() | {"count": 1}, wanted, self.base, None, None)

    def order(self, device: str | None = None) -> Order:
        """The job that does this."""
        title = f"{self.prompt} (content x style)"
        return Order("stylize", title, "studio.ui.stylizing:stylize_grid", self.arguments(), device or BEST, warm=True)


def submit_grid(service: Service, ask: GridAsk) -> Job:
    """Queue a grid; raises UsageError for what cannot be drawn."""
    plan = ask.plan(service.home)
    return service.submit(ask.model_copy(update={"seed": plan.settings.seed}).order())


def stylize_grid(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Draw the nine pictures that a GridAsk asks for."""
    plan = GridAsk.read(arguments).plan(bench.home)
    assert plan.content
    assert plan.style
    bench.emit(Phase("Loading the base model"))
    base = Warm(bench)(plan.source, bench.device, plan.settings.offload)
    from studio.pipelines.stylize import stylize as halves

    pairs = list(product(STRENGTHS, STRENGTHS))
    bench.emit(Phase("Drawing", len(pairs) * plan.settings.steps))
    made, description = [], {}
    for n, (content, style) in enumerate(pairs):
        chosen, riding = (plan.content[0], content), (plan.style[0], style)
        drawn = halves(base, plan.settings, _as_one(bench.emit, n, len(pairs)), chosen, riding)
        description = describe(plan.settings, plan.source, [chosen], STYLIZE, styles=[riding])
        (path,) = save_pictures(drawn, plan.folder, description)
        told = {"content": content, "style": style, "method": f"content {content:g}, style {style:g}"}
        made.append({"path": path, "seed": plan.settings.seed} | told)
    shared = {key: value for key, value in description.items() if key not in ("concepts", "styles")}
    return {"pictures": made, "grid": list(STRENGTHS)} | shared


def _as_one(emit: Emit, number: int, count: int) -> Emit:
    """A listener that lets `count` drawings, of which this is `number`, sound like one."""

    def hear(event: Event) -> None:
        match event:
            case Step(step, total, left):
                more = None if left is None else left * (count - number)
                emit(Step(number * total + step, count * total, more))
            case Notice():
                emit(event)

    return hear


def can_be_stylized(concept: Concept) -> bool:
    """Whether its base is of a family of which it is known which block carries content, and which style."""
    return concept.family == "sdxl"


def sentence(content: Concept | None, style: Concept | None) -> str:
    """What to ask for where nobody said: the content in the style."""
    thing = f"a <{content.name}>" if content else "a cat"
    return f"{thing} in <{style.name}>" if style else thing


def well(service: Service, name: str | None, role: str) -> str:
    """What was chosen for a role, with its picture."""
    concept = service.library.find(name) if name else None
    return render(
        "well.html", concept=concept, role=role, base=base_words(concept.base) if concept else "",
        picture=picture(Thumbs(service.home), concept) if concept else "",
    )  # fmt: skip


def stylized(service: Service, number: int | None) -> str:
    """The job of that number as its page shows it; an invitation where there is none."""
    job = found(service, number)
    told = standing(
        service, job, "Your picture will stand here", "Choose a content, a style or both, and press Stylize."
    )
    if job is None:
        return render("stylize.html", standing=told, grid=None, pictures=None)
    grid = _grid(service, job)
    return render(
        "stylize.html", standing=told, grid=grid, strengths=job.result.get("grid", []),
        pictures=None if grid else pictures(service, job), prompt=job.result.get("prompt", job.title),
    )  # fmt: skip


def _grid(service: Service, job: Job) -> Sequence[Mapping[str, Any]]:
    """A row a strength of the content, a picture a strength of the style."""
    thumbs, made = Thumbs(service.home), job.result.get("pictures", [])
    cells = [
        {"url": thumbs.url(Path(one["path"])), "full": f"/studio/pictures/{job.id}/{n}"} | one
        for n, one in enumerate(made)
        if "content" in one
    ]
    return [
        {"strength": strength, "cells": [one for one in cells if one["content"] == strength]}
        for strength in (job.result.get("grid") or [])
    ]
