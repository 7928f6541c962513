"""What `studio compose` is asked for, all of it checked before anything heavy is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.bases import BaseSource, source_sizes
from studio.concepts import placeholders
from studio.errors import UsageError
from studio.home import Home
from studio.library import Library
from studio.pipelines.methods import DEFAULT_METHOD, METHODS, Method, find_method
from studio.pipelines.outputs import output_folder
from studio.pipelines.recall import Recalled, RecalledConcept
from studio.pipelines.request import check_request
from studio.pipelines.settings import GenerateSettings, usual_width
from studio.regions import Layout, parse_box, read_layout
from studio.ui.asking import Strengths, check_drawable, choose_base, find_concepts, find_styles, make_settings


@dataclass(frozen=True)
class Plan:
    """What is to be drawn, all of it checked; `notices` are what the user should know of it."""

    settings: GenerateSettings
    source: BaseSource
    concepts: Strengths
    styles: Strengths
    methods: list[Method]
    layout: Layout | None
    folder: Path
    notices: list[str]


def methods_of(name: str | None, compare: bool, told: Recalled | None) -> list[Method]:
    """The one of that name, the picture's, or the usual one; all to `compare`."""
    if compare and name is not None:
        raise UsageError("--compare draws with every method.", "Leave out --method, or --compare.")
    if compare:
        return list(METHODS.values())
    return [find_method(name or (told.method if told else DEFAULT_METHOD))]


def places_of(boxes: Sequence[str], file: Path | None, told: Recalled | None, prompt: str | None) -> Layout | None:
    """The layout that is given, else the picture's: of the latter what a prompt that is given still names."""
    if boxes and file is not None:
        raise UsageError("There are boxes in --box and in --layout.", "Give one of them.")
    if file is not None:
        return read_layout(file)
    found = {}
    for name, one in map(parse_box, boxes):
        if name in found:
            raise UsageError(f"--box {name} is given twice.", "Give each concept one box.")
        found[name] = one
    if not found and told is not None and told.layout is not None:
        named = placeholders(told.prompt if prompt is None else prompt)
        found = {name: one for name, one in told.layout.boxes.items() if name in named}
    return Layout(found) if found else None


def _concepts(
    library: Library, given: Sequence[str], styles: Strengths, prompt: str, told: Recalled | None
) -> Strengths:
    """Those given, and those of the picture that the prompt names."""
    named = placeholders(prompt)
    recalled = [one for one in (told.concepts if told else ()) if one.name in named]
    return find_concepts(library, _wanted(library, given, recalled, "--concept"), prompt, styles)


def _styles(library: Library, given: Sequence[str], told: Recalled | None) -> Strengths:
    """Those given, and those of the picture."""
    return find_styles(library, _wanted(library, given, told.styles if told else (), "--style"))


def _wanted(library: Library, given: Sequence[str], recalled: Sequence[RecalledConcept], option: str) -> list[str]:
    """What is given, which outweighs what is recalled; of the latter each has to be the same as then."""
    wanted: list[str] = []
    for one in recalled:
        again = [text for text in given if text.partition("=")[0] == one.name]
        if not again:
            one.check(library.find(one.name), f"{option} {one.name}={one.strength:g}")
        wanted += again or [f"{one.name}={one.strength!r}"]
    return [*wanted, *(text for text in given if text not in wanted)]


def make_plan(
    state: Home,
    options: dict[str, Any],
    given: Sequence[str],
    styled: Sequence[str],
    base: str | None,
    methods: list[Method],
    layout: Layout | None,
    out: Path | None,
    told: Recalled | None,
) -> Plan:
    """Everything checked that can be before the base is loaded; raises UsageError."""
    if told is not None:
        options = {"prompt": told.prompt} | told.settings | {k: v for k, v in options.items() if v is not None}
    if options["prompt"] is None:
        raise UsageError("There is no prompt.", "Say what to draw, or give a picture with --from.")
    styles = _styles(Library(state), styled, told)
    concepts = _concepts(Library(state), given, styles, options["prompt"], told)
    everyone = [*concepts, *styles]
    source = choose_base(base or (told.base if told else None), [one for one, _ in everyone])
    wide = usual_width(source, len(concepts)) if not (options.get("width") or options.get("height")) else None
    settings = make_settings(options | {"width": wide} if wide else options, source)
    check_request(settings, concepts, layout, styles)
    check_drawable(settings, source, everyone)
    names = [concept.name for concept, _ in concepts]
    if layout is not None:
        sizes = source_sizes(source)
        width, height = settings.size_for(sizes)
        layout.masks(list(layout.boxes), height // sizes.factor, width // sizes.factor)
    notices = [told.notice() if told else None]
    if wide:
        notices.append(f"{len(concepts)} concepts: drawn {wide} px wide, so that each has room (else: --width).")
    able = []
    if not concepts:
        methods = [METHODS["merge"]]
        notices.append("The prompt names no concept: the style draws alone, with every method the same.")
    for method in methods:
        try:
            method.check(names, layout, settings.steps)
        except UsageError as error:
            if len(methods) == 1:
                raise
            notices.append(left_out(method, error))
            continue
        able.append(method)
        notices.append(method.notice(layout))
    folder = output_folder(state, out, settings.prompt)
    return Plan(settings, source, concepts, styles, able, layout, folder, [one for one in notices if one])


def left_out(method: Method, error: UsageError) -> str:
    """What to say of a method that cannot draw this."""
    return f"{method.name} is left out. {error.problem}"
