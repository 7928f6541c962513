"""`studio stylize`: the content of one concept in the style of another, each by its half of a B-LoRA."""

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.bases import BaseSource
from studio.concepts import PLACEHOLDER, Concept
from studio.errors import UsageError
from studio.events import Emit, Phase
from studio.home import Home
from studio.library import Library
from studio.pipelines.outputs import STYLIZE, describe, output_folder, save_pictures
from studio.pipelines.recall import RecalledConcept, recall
from studio.pipelines.request import check_request
from studio.pipelines.settings import GenerateSettings
from studio.ui.asking import (
    AttentionOption,
    BaseOption,
    CompileOption,
    CountOption,
    DeviceOption,
    GuidanceOption,
    HeightOption,
    NegativeOption,
    OffloadOption,
    OutOption,
    SchedulerOption,
    SeedOption,
    StepsOption,
    TilingOption,
    WidthOption,
    check_drawable,
    choose_base,
    make_settings,
)
from studio.ui.drawing import Load
from studio.ui.loading import load
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

    from studio.ui.asks import StylizeAsk

Chosen = tuple[Concept, float] | None


@dataclass(frozen=True)
class Plan:
    """What is to be drawn, all of it checked."""

    settings: GenerateSettings
    source: BaseSource
    content: Chosen
    style: Chosen
    folder: Path

    def ask(self) -> "StylizeAsk":
        """What it would be asked for by."""
        from studio.ui.asks import StylizeAsk, drawn_settings

        halves = {"content": self.content, "style": self.style}
        names: dict[str, Any] = {role: chosen[0].name for role, chosen in halves.items() if chosen}
        strengths: dict[str, Any] = {f"{role}_strength": chosen[1] for role, chosen in halves.items() if chosen}
        return StylizeAsk.model_construct(**drawn_settings(self.settings, self.source), **names, **strengths)


def stylize(
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; <milo> stands for the content milo. With --from: the picture's.")
    ] = None,
    content: Annotated[str | None, typer.Option(help="The concept whose content half acts.")] = None,
    style: Annotated[str | None, typer.Option(help="The concept whose style half acts.")] = None,
    content_strength: Annotated[float | None, typer.Option(help="Linear. Default: 1.")] = None,
    style_strength: Annotated[float | None, typer.Option(help="Linear. Default: 1.")] = None,
    blora_compat: Annotated[
        bool, typer.Option("--blora-compat", help="Strengths as B-LoRA's own code takes them: they act squared.")
    ] = False,
    from_picture: Annotated[
        Path | None, typer.Option("--from", help="Take everything that is not given from a PNG of studio stylize.")
    ] = None,
    base: BaseOption = None,
    width: WidthOption = None,
    height: HeightOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    negative: NegativeOption = None,
    scheduler: SchedulerOption = None,
    seed: SeedOption = None,
    count: CountOption = None,
    out: OutOption = None,
    vae_tiling: TilingOption = None,
    offload: OffloadOption = False,
    attention: AttentionOption = None,
    compiled: CompileOption = False,
    device: DeviceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the content of one concept in the style of another: both, or one of them with words for the other."""
    state = Home.resolve(home)
    options: dict[str, Any] = {
        "prompt": prompt, "width": width, "height": height, "steps": steps, "guidance": guidance, "seed": seed,
        "negative_prompt": negative, "scheduler": scheduler, "count": count, "vae_tiling": vae_tiling,
        "offload": offload, "attention": attention, "compiled": compiled,
    }  # fmt: skip
    wanted = {"content": (content, content_strength), "style": (style, style_strength)}
    if blora_compat:
        wanted = {role: (name, None if s is None else s * s) for role, (name, s) in wanted.items()}
    plan = plan_of(state, options, wanted, base, out, from_picture)
    from studio.ui.recording import recorded

    with progress() as shown, recorded(state, plan.ask().order(device), shown) as job:
        job.result = draw(plan, load, device, job)
    if as_json:
        print_json(job.result)
        return
    for one in job.result["pictures"]:
        typer.echo(one["path"])


def plan_of(
    state: Home,
    options: dict[str, Any],
    wanted: dict[str, tuple[str | None, float | None]],
    base: str | None,
    out: Path | None,
    picture: Path | None,
) -> Plan:
    """Everything checked that can be before the base is loaded; raises UsageError."""
    recalled: dict[str, RecalledConcept] = {}
    if picture is not None:
        told = recall(picture)
        if told.method != STYLIZE:
            raise UsageError(f"{picture} was not drawn by studio stylize.", f"Use: studio compose --from {picture}")
        recalled = {role: one for role, ones in (("content", told.concepts), ("style", told.styles)) for one in ones}
        renamed = _renamed(recalled, wanted)
        texts = {"prompt": told.prompt, "negative_prompt": told.settings["negative_prompt"]}
        texts = {key: PLACEHOLDER.sub(lambda one: renamed.get(one[1], one[0]), text) for key, text in texts.items()}
        options = told.settings | texts | {k: v for k, v in options.items() if v is not None}
        base = base or told.base
    if options["prompt"] is None:
        raise UsageError("There is no prompt.", "Say what to draw, or give a picture with --from.")
    library = Library(state)
    content, style = (_choose(library, role, *wanted[role], recalled.get(role)) for role in ("content", "style"))
    concepts, styles = [content] if content else [], [style] if style else []
    source = choose_base(base, [one for one, _ in (*concepts, *styles)])
    settings = make_settings(options, source)
    from studio.adapters import load_concept
    from studio.pipelines.stylize import halves_of

    halves_of(source, content, style, partial(load_concept, values=False))
    check_request(settings, concepts, None, [one for one in styles if not content or one[0].name != content[0].name])
    check_drawable(settings, source, [*concepts, *styles])
    return Plan(settings, source, content, style, output_folder(state, out, settings.prompt))


def _renamed(
    recalled: dict[str, RecalledConcept], wanted: dict[str, tuple[str | None, float | None]]
) -> dict[str, str]:
    """What the picture's prompt now says for each concept whose roles all went to others: the content's first, as the
    words of a style are added where they are missing."""
    now = {role: wanted[role][0] or one.name for role, one in recalled.items()}
    kept = {one.name for role, one in recalled.items() if now[role] == one.name}
    return {one.name: f"<{now[role]}>" for role, one in reversed(recalled.items()) if one.name not in kept}


def _choose(
    library: Library, role: str, name: str | None, strength: float | None, recalled: RecalledConcept | None
) -> Chosen:
    """The concept of that name with its strength; what is not given is as in the picture."""
    if strength is not None and not math.isfinite(strength):
        raise UsageError(f"--{role}-strength {strength} is no strength.", "Give a number; 1 is usual.")
    wanted = name or (recalled and recalled.name)
    if not wanted:
        if strength is not None:
            raise UsageError(f"--{role}-strength is given without --{role}.", f"Say whose {role} it is: --{role} NAME")
        return None
    concept = library.find(wanted)
    if not name and recalled is not None:
        recalled.check(concept, f"--{role} {recalled.name}")
    usual = 1.0 if recalled is None else recalled.strength
    return concept, usual if strength is None else strength


def draw(plan: Plan, load: Load, device: str | None, emit: Emit) -> dict[str, Any]:
    """Draw and save; returns a report of it."""
    began, settings = time.monotonic(), plan.settings
    emit(Phase("Loading the base model"))
    model = load(plan.source, device, settings.offload)
    from studio.pipelines.stylize import stylize as halves

    pictures: list[Image] = halves(model, settings, emit, plan.content, plan.style)
    content, style = ([one] if one else [] for one in (plan.content, plan.style))
    description = describe(settings, plan.source, content, STYLIZE, styles=style)
    paths = save_pictures(pictures, plan.folder, description)
    made = [{"path": path, "seed": settings.seed + n} for n, path in enumerate(paths)]
    size = {"width": pictures[0].width, "height": pictures[0].height}
    return {"pictures": made, "seconds": round(time.monotonic() - began, 2)} | description | size
