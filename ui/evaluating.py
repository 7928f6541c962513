"""Evaluations as they are asked for, all checked before anything heavy is loaded, and carried out."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.bases import EMBEDDED, BaseSource
from studio.concepts import ADAPTER_FILE, Concept, placeholders
from studio.errors import UsageError
from studio.events import Emit, Notice, Phase
from studio.home import Home, write_atomic
from studio.library import Library
from studio.pipelines.evaluation_plan import (
    PROTOCOLS,
    SCENES,
    Case,
    alone,
    as_told,
    by_captions,
    groups_of,
    over_time,
    side_by_side,
)
from studio.pipelines.methods import DEFAULT_METHOD, Method, find_method
from studio.pipelines.protocols import composlora_sets, joined, of_category
from studio.pipelines.settings import usual_width
from studio.regions import Layout
from studio.ui.asking import choose_base, make_settings
from studio.ui.asks import EvaluateAsk
from studio.ui.benching import keep_json
from studio.ui.drawing import Load
from studio.ui.judging import Eyes, known_pictures, pictures_of, scorers_of

if TYPE_CHECKING:
    from studio.images import Picture
    from studio.pipelines.evaluation import Found
    from studio.pipelines.settings import GenerateSettings

CAPTIONS, COMPOSLORA = "captions", "composlora"
STEPS = "steps"  # as a training leaves them in its concept's folder
_CABINET = "evaluations"  # in the cache


@dataclass(frozen=True)
class Evaluation:
    """What is to be scored, all of it checked."""

    concepts: Sequence[Concept]
    prompts: Sequence[str]
    together: int | None
    protocol: str | None
    checkpoints: bool
    methods: Sequence[Method]
    layout: Layout | None
    settings: "GenerateSettings"
    folders: dict[str, Path]  # of pictures, by name, where they are given
    eyes: Eyes
    source: BaseSource
    cases: Sequence[Case] = ()


def plan_evaluation(state: Home, ask: EvaluateAsk, folders: Mapping[str, Path], eyes: Eyes) -> Evaluation:
    """Everything checked that can be before the base is loaded; raises UsageError."""
    _check_effects(ask)
    concepts = asked_concepts(Library(state), ask.names, ask.prompts, ask.protocol)
    source = choose_base(ask.base, concepts)
    options = {"prompt": "", "steps": ask.steps, "guidance": ask.guidance, "seed": ask.seed, "count": ask.seeds}
    wanted = Evaluation(
        concepts, ask.prompts, ask.together, ask.protocol, ask.checkpoints,
        [find_method(one) for one in ask.methods or (DEFAULT_METHOD,)], ask.layout(),
        make_settings(options, source), dict(folders), eyes, source,
    )  # fmt: skip
    return replace(wanted, cases=[_with_room(case, source) for case in _cases(wanted, source, state)])


def _check_effects(ask: EvaluateAsk) -> None:
    """Raise UsageError for a setting that what is drawn would leave out of account."""
    drawn = {"--prompt": ask.prompts, "--together": ask.together, "--protocol": ask.protocol}
    if len(said := [option for option, given in drawn.items() if given]) > 1:
        raise UsageError(f"{said[0]} and {said[1]} do not go together: each says what is drawn.", "Leave one out.")
    if ask.methods and (ask.checkpoints or not (ask.prompts or ask.together or ask.protocol == COMPOSLORA)):
        raise UsageError(
            "--methods has no effect: concepts are drawn one by one.", "Leave it out, or give --prompt or --together."
        )
    if ask.boxes and not ask.prompts:
        raise UsageError("--box has no effect: boxes are for prompts of your own.", "Leave it out, or give --prompt.")
    called = [name for prompt in ask.prompts for name in placeholders(prompt)]
    if unknown := [name for name in ask.boxes if name not in called]:
        named = ", ".join(dict.fromkeys(called)) or "none"
        raise UsageError(
            f"There is a box for {unknown[0]!r}, which no prompt names.", f"Concepts that the prompts name: {named}."
        )


def asked_concepts(
    library: Library, names: Sequence[str], prompts: Sequence[str], protocol: str | None
) -> list[Concept]:
    """Those named, those that the prompts call, or all that the protocol is about; raises UsageError for none."""
    called = [name for prompt in prompts for name in placeholders(prompt)]
    if protocol == COMPOSLORA and not names:
        names = [name for several in of_category(library.concepts()).values() for name in several]
    found = [library.find(name) for name in dict.fromkeys([*names, *called])]
    if not found:
        there = ", ".join(one.name for one in library.concepts())
        raise UsageError("There is nothing to evaluate.", f"Name concepts; the library has: {there or 'none yet'}.")
    return found


def _cases(wanted: Evaluation, source: BaseSource, state: Home) -> list[Case]:
    """Rows and prompts; raises UsageError for what does not go together."""
    concepts, settings = wanted.concepts, wanted.settings
    protocol = wanted.protocol or ("scenes" if source.name == EMBEDDED else "dreambooth")
    if protocol not in PROTOCOLS:
        raise UsageError(f"There is no protocol {protocol!r}.", f"Use one of: {', '.join(PROTOCOLS)}.")
    if wanted.checkpoints:
        if len(concepts) > 1 or wanted.prompts or wanted.together:
            raise UsageError("--checkpoints is about one concept, by a protocol.", "Name one; leave the rest out.")
        return over_time(concepts[0], _steps(concepts[0], state), protocol, source, settings)
    if wanted.prompts:
        return as_told(wanted.prompts, concepts, wanted.methods, wanted.layout, settings)
    if protocol == COMPOSLORA:
        sets = composlora_sets(of_category(concepts))
        if not sets:
            raise UsageError(
                "No set of ComposLoRA can be made of these concepts.",
                "Tag one as character and others: studio library tag NAME +character",
            )
        return as_told([joined(names) for names in sets], concepts, wanted.methods, None, settings)
    if wanted.together:
        scenes = SCENES if source.name == EMBEDDED else ("",)
        return side_by_side(groups_of(concepts, wanted.together), scenes, wanted.methods, settings)
    if protocol == CAPTIONS:
        return [case for one in concepts for case in by_captions(one, _pictures(one, wanted.folders), settings)]
    return alone(concepts, protocol, source, settings)


def _with_room(case: Case, source: BaseSource) -> Case:
    """On the canvas that `studio compose` would take for as many concepts."""
    return replace(case, settings=replace(case.settings, width=usual_width(source, len(case.concepts))))


def _pictures(concept: Concept, folders: dict[str, Path]) -> "list[Picture]":
    from studio.images import find_pictures

    folder = pictures_of(concept, folders)
    if folder is None:
        raise UsageError(
            f"The pictures of {concept.name} are not at hand.", f"Give them: --references {concept.name}=FOLDER"
        )
    return find_pictures(folder)


def _steps(concept: Concept, state: Home) -> list[Concept]:
    """The concept as it was at each step that its training kept."""
    files = sorted((concept.folder / STEPS).glob("step-*.safetensors"))
    if not files:
        raise UsageError(
            f"The training of {concept.name!r} kept no steps.", "Those with validate_every in their recipe do."
        )
    found = []
    for file in files:
        folder = state.cache / _CABINET / "steps" / concept.name / f"step {int(file.stem.partition('-')[2])}"
        write_atomic(folder / ADAPTER_FILE, lambda to, file=file: shutil.copyfile(file, to))
        found.append(replace(concept, folder=folder, sha256=None))
    return found


def evaluate(wanted: Evaluation, state: Home, load: Load, device: str | None, emit: Emit) -> "Found":
    """Draw what is missing and score all of it; raises StudioError for what cannot be drawn."""
    emit(Phase("Load the base and what scores"))
    from studio.pipelines.evaluation import Cabinet
    from studio.pipelines.evaluation import evaluate as score
    from studio.pipelines.scorers import Watch

    library = Library(state).concepts()
    known = known_pictures(wanted.concepts, library, wanted.folders, emit)
    classes = {one.name: one.class_word for one in (*library, *wanted.concepts)}
    scorers = scorers_of(known, classes, wanted.source, wanted.eyes, device)
    if wanted.source.name != EMBEDDED and wanted.eyes == Eyes():
        emit(Notice("No --clip, --dino or --detector is given, so nothing says what the pictures show."))
    base = load(wanted.source, device, False)
    return score(base, wanted.cases, [*scorers, Watch()], Cabinet(state.cache / _CABINET), emit)


def keep_evaluation(found: "Found", folder: Path) -> dict[str, Any]:
    """Write report.html, report.json and pictures.csv into `folder`; returns the report."""
    from studio.pipelines.evaluation_table import as_csv, report_of
    from studio.ui.evaluate_page import write_page

    report = report_of(found)
    keep_json(folder, "report", report)
    text = as_csv(found)
    write_atomic(folder / "pictures.csv", lambda file: file.write_text(text, encoding="utf-8"))
    write_page(found, folder / "report.html")
    return report
