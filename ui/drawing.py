"""Drawing what a plan asks for, by one method or by several, and saving it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.bases import EMBEDDED, BaseSource
from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import Emit, Event, Notice, Phase
from studio.library import Library
from studio.pipelines.evaluation_plan import Case
from studio.pipelines.methods import Method
from studio.pipelines.outputs import describe, save_pictures, save_sheet
from studio.pipelines.settings import GenerateSettings
from studio.ui.composing import Plan, left_out
from studio.ui.judging import Eyes, known_pictures, scorers_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.models import BaseModel
    from studio.pipelines.best_of import Candidate
    from studio.pipelines.compose import BankOf
    from studio.pipelines.evaluation import Scorer

Load = Callable[["BaseSource", "str | None", bool], "BaseModel"]  # source, device, offload


@dataclass(frozen=True)
class BestOf:
    """How many candidates a picture is chosen from, and by what."""

    number: int
    clip: str | None
    folders: dict[str, Path]
    library: Sequence[Concept]

    @classmethod
    def planned(cls, number: int, clip: str | None, folders: dict[str, Path], plan: Plan, library: Library) -> "BestOf":
        """What the command line says; raises UsageError where nothing could choose."""
        if number > 1 and not plan.concepts:
            raise UsageError("--best-of chooses by concepts, and the prompt names none.", "Leave it out.")
        if number > 1 and clip is None and plan.source.name != EMBEDDED:
            raise UsageError(
                f"Nothing is given that could choose among pictures of {plan.source.name}.",
                "Give a CLIP with --clip, as in --clip ViT-B-32/laion2b_s34b_b79k.",
            )
        return cls(number, clip, folders, library.concepts())

    def scorers(self, plan: Plan, device: str | None, emit: Emit) -> "list[Scorer]":
        """None where nothing is chosen."""
        if self.number == 1:
            return []
        concepts = [one for one, _ in plan.concepts]
        classes = {one.name: one.class_word for one in (*self.library, *concepts)}
        known = known_pictures(concepts, self.library, self.folders, emit)
        return scorers_of(known, classes, plan.source, Eyes(self.clip), device)


@dataclass(frozen=True)
class Drawn:
    """Pictures by method, as they were drawn and where they are."""

    plan: Plan
    candidates: "dict[str, list[Candidate]]"
    paths: dict[str, list[Path]]
    sheet: Path | None
    seconds: float

    def report(self) -> dict[str, Any]:
        """All of it as plain values: pictures with their seeds and scores, and what was asked for."""
        made = [
            {"path": path, "seed": one.seed, "method": name} | ({"scores": one.scores} if one.scores else {})
            for name, several in self.paths.items()
            for path, one in zip(several, self.candidates[name], strict=True)
        ]
        first = next(iter(self.candidates.values()))[0].picture
        size = {"width": first.width, "height": first.height}
        head = {"pictures": made, "sheet": self.sheet, "seconds": round(self.seconds, 2)}
        return head | _description(self.plan, ", ".join(self.paths)) | size


def draw_and_save(
    plan: Plan, best_of: BestOf, load: Load, bank_of: "BankOf", device: str | None, emit: Emit, *, sheet: bool = False
) -> Drawn:
    """Draw what `plan` asks for with a base that `load` gives and adapters that `bank_of` does; each method's pictures
    get a folder of their own where there are several, and a `sheet` shows all side by side."""
    began = time.monotonic()
    for notice in plan.notices:
        emit(Notice(notice))
    drawn = _draw(plan, best_of, load, bank_of, device, emit)
    apart = len(plan.methods) > 1 or sheet
    paths: dict[str, list[Path]] = {}
    for name, several in drawn.items():
        folder = plan.folder / name if apart else plan.folder
        told, seeds = _description(plan, name), [one.seed for one in several]
        paths[name] = save_pictures([one.picture for one in several], folder, told, seeds)
    saved = None
    if sheet:
        from studio.pipelines.contact_sheet import contact_sheet

        rows = {name: [one.picture for one in several] for name, several in drawn.items()}
        description = _description(plan, ", ".join(drawn))
        saved = save_sheet(contact_sheet(rows, columns=plan.settings.count), plan.folder, description)
    return Drawn(plan, drawn, paths, saved, time.monotonic() - began)


def _description(plan: Plan, method: str) -> dict[str, Any]:
    return describe(plan.settings, plan.source, plan.concepts, method, plan.layout, plan.styles)


def _draw(
    plan: Plan, best_of: BestOf, load: Load, bank_of: "BankOf", device: str | None, emit: Emit
) -> "dict[str, list[Candidate]]":
    """Pictures by method; of several methods those are left out that cannot draw this."""
    emit(Phase("Loading the base model"))
    model = load(plan.source, device, plan.settings.offload)
    scorers = best_of.scorers(plan, device, emit)
    drawn: dict[str, list[Candidate]] = {}
    refused: list[UsageError] = []
    said: set[Event] = set()

    def once(event: Event) -> None:
        if event not in said or not isinstance(event, Notice):
            emit(event)
        said.add(event)

    for method in plan.methods:
        if len(plan.methods) > 1:
            emit(Phase(f"Method {method.name}"))
        try:
            drawn[method.name] = _candidates(model, plan, method, best_of.number, scorers, bank_of, once)
        except UsageError as error:
            if len(plan.methods) == 1:
                raise
            refused.append(error)
            emit(Notice(left_out(method, error)))
    if not drawn:
        raise refused[0]
    return drawn


def _candidates(
    model: "BaseModel",
    plan: Plan,
    method: Method,
    number: int,
    scorers: "Sequence[Scorer]",
    bank_of: "BankOf",
    emit: Emit,
) -> "list[Candidate]":
    """A picture for each that is asked for: the best of its candidates."""
    from studio.pipelines.best_of import Candidate, best_of
    from studio.pipelines.compose import compose as draw

    def pictures(settings: GenerateSettings) -> "list[Image]":
        return draw(model, settings, plan.concepts, method.make(), emit, plan.layout, plan.styles, bank_of)

    if number == 1:
        made = pictures(plan.settings)
        return [Candidate(plan.settings.seed + n, one, {}) for n, one in enumerate(made)]
    case = Case(method.name, plan.settings, tuple(one for one, _ in plan.concepts), method, plan.layout)
    groups = best_of(number, case, model.sizes, pictures, scorers, emit)
    for n, group in enumerate(groups):
        emit(Notice(f"Picture {n + 1} is seed {group[0].seed} of {number} candidates{_told(group[0].scores)}."))
    return [group[0] for group in groups]


def _told(scores: dict[str, float]) -> str:
    from studio.pipelines.best_of import MERITS

    said = ", ".join(f"{name} {scores[name]:.2f}" for name in MERITS if name in scores)
    return f" ({said})" if said else ""
