"""What jobs do, by import string: each takes the arguments that its ask wrote down, and a bench."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.bases import EMBEDDED, find_base
from studio.home import Home
from studio.job_worker import Bench
from studio.library import Library
from studio.ui.asks import ComposeAsk, EvaluateAsk, GenerateAsk, StylizeAsk
from studio.ui.drawing import BestOf, draw_and_save
from studio.ui.judging import Eyes
from studio.ui.loading import Warm

if TYPE_CHECKING:
    from studio.trainers.recipe import Recipe


def get_ready(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Import and load what a first picture would otherwise wait for; nothing on an accelerator, which another job may
    have for itself."""
    import studio.judge
    import studio.pipelines.compose  # noqa: F401
    from studio.devices import pick_device

    if pick_device(bench.device).type == "cpu":
        Warm(bench)(find_base(EMBEDDED), bench.device, False)
    return {}


def compose(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Draw several concepts together; of several concepts on the embedded base also say who looks like whom where."""
    ask = ComposeAsk.read(arguments)
    plan = ask.plan(bench.home)
    folders = {name: Path(folder) for name, folder in ask.references.items()}
    chosen = BestOf.planned(ask.best_of, ask.clip, folders, plan, Library(bench.home))
    warm = Warm(bench, keep_bank=True)
    drawn = draw_and_save(plan, chosen, warm, warm.bank_of, bench.device, bench.emit, sheet=ask.compare)
    from studio.ui.leaking import leaks_of

    return drawn.report() | {"leaks": leaks_of(drawn, Library(bench.home), bench.emit)}


def generate(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Draw a prompt, concepts merged."""
    from studio.ui.cmd_generate import draw, plan_of

    ask = GenerateAsk.read(arguments)
    chosen = [f"{name}={strength!r}" for name, strength in ask.concepts.items()]
    return draw(plan_of(bench.home, ask.options(), chosen, ask.base, None), Warm(bench), bench.device, bench.emit)


def stylize(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Draw the content of one concept in the style of another."""
    from studio.ui.cmd_stylize import draw, plan_of

    ask = StylizeAsk.read(arguments)
    wanted = {"content": (ask.content, ask.content_strength), "style": (ask.style, ask.style_strength)}
    plan = plan_of(bench.home, ask.options(), wanted, ask.base, None, None)
    return draw(plan, Warm(bench), bench.device, bench.emit)


def evaluate(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Score concepts or methods, and keep the report among the outputs."""
    from studio.ui import evaluating

    ask = EvaluateAsk.read(arguments)
    folders = {name: Path(folder) for name, folder in ask.references.items()}
    wanted = evaluating.plan_evaluation(bench.home, ask, folders, Eyes(ask.clip, ask.dino, ask.detector))
    found = evaluating.evaluate(wanted, bench.home, Warm(bench), bench.device, bench.emit)
    folder = bench.home.outputs / f"evaluation-{bench.number}"
    return evaluating.keep_evaluation(found, folder) | {"report": folder / "report.html"}


def train(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Train a concept by the recipe that was planned; one that was interrupted goes on."""
    from studio.trainers.dreambooth import train_concept
    from studio.trainers.recipe import build_recipe

    recipe = build_recipe([arguments["recipe"]])
    concept = train_concept(
        recipe, bench.home, bench.emit, resume=_begun(recipe, bench.home), overwrite=bool(arguments.get("overwrite")),
        device=bench.device, export=tuple(arguments.get("export", ())),
        processes=arguments.get("processes", 1), scorer=_scorer(arguments.get("clip"), recipe.triggers),
    )  # fmt: skip
    return {"concept": concept.name, "folder": concept.folder}


def _begun(recipe: "Recipe", home: Home) -> bool:
    """Whether a training by exactly this recipe was interrupted, and can go on."""
    from studio.trainers.recipe import build_recipe, read_toml
    from studio.trainers.workplace import RECIPE_FILE, workplace_of

    place = workplace_of(home, recipe.name)
    return place.started and build_recipe([read_toml(place.folder / RECIPE_FILE)]) == recipe


def _scorer(clip: str | None, triggers: Sequence[str]) -> Any:
    if clip is None:
        return None
    from studio.encoders import load_clip
    from studio.trainers.scoring import ByClip

    return ByClip(load_clip(clip), *triggers)
