"""`studio train-concept`: a folder of pictures becomes a concept."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.errors import UsageError
from studio.home import Home
from studio.ui.options import HomeOption, JsonOption, print_json

if TYPE_CHECKING:
    from studio.images import Picture
    from studio.trainers.recipe import Recipe

BaseOption = Annotated[
    str | None, typer.Option(help="picturebook (default), sdxl, sd15, a hub id, a folder or a .safetensors file.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a concept or an interrupted training of this name.")
]
MethodOption = Annotated[
    str | None, typer.Option(help="How it is learned: lora (default), krona, lokr, loha, oft or b-lora (one picture).")
]
InitOption = Annotated[
    str | None,
    typer.Option(help="How a LoRA begins: gaussian, default, orthogonal, pissa, olora, eva or lora-ga."),
]
OptimizerOption = Annotated[
    str | None,
    typer.Option(help="adamw (default), adamw-8bit, prodigy, adafactor or adamw-schedule-free."),
]
NewWordOption = Annotated[
    bool | None,
    typer.Option(
        "--new-word/--known-word",
        help="Teach the base that word, or take a rare one that it knows. Default: a new one on small bases.",
    ),
]
PriorOption = Annotated[
    bool | None, typer.Option("--prior/--no-prior", help="Hold the class by class pictures. Default: yes.")
]
BucketsOption = Annotated[
    bool | None,
    typer.Option("--buckets/--squares", help="Keep the pictures' shapes about, or cut squares. Default: by the base."),
]
FlipOption = Annotated[
    bool | None, typer.Option("--flip/--no-flip", help="Show pictures mirrored too: only for what is symmetric.")
]
MaskedOption = Annotated[
    bool | None,
    typer.Option("--masked/--whole", help="Learn only where masks (cat1.mask.png) or alpha channels say."),
]


def _other(text: str) -> dict[str, Any]:
    """A further concept as it is given; all after the first colon is the path, whatever stands in it."""
    words, colon, path = text.partition(":")
    name, equals, class_word = words.partition("=")
    if not (colon and equals and name and class_word and path):
        raise UsageError(f"--with {text} says no name, class and path.", "Write NAME=CLASS:PATH, as in rex=dog:photos.")
    return {"name": name, "class_word": class_word, "pictures": Path(path)}


def _pair(text: str) -> tuple[int, int]:
    first, times, second = text.partition("x")
    if not (times and first.isdigit() and second.isdigit()):
        raise UsageError(f"--factors {text} are no two sizes.", "Write them as in 64x8.")
    return int(first), int(second)


ScoringOption = Annotated[
    str | None,
    typer.Option(
        "--clip",
        help="A CLIP of open_clip that reads pictures of each step that is measured, so that the best is recommended:"
        " FOLDER, MODEL=FILE, MODEL/TAG or a hub id. On picturebook: judge A.",
    ),
]
ExportOption = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT[,FORMAT]", help="Write further files for other tools: peft, diffusers, kohya, lycoris."
    ),
]
OthersOption = Annotated[
    list[Any] | None,
    typer.Option(
        "--with",
        parser=_other,
        metavar="NAME=CLASS:PATH",
        help="A further concept that the same adapter learns; may be given several times.",
    ),
]
FactorsOption = Annotated[
    Any, typer.Option(parser=_pair, metavar="A1xA2", help="KronA: sizes of its first factor, as in 64x8.")
]


def train_concept(
    context: typer.Context,
    pictures: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="The folder with the pictures, or one.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the concept is called in prompts: <NAME>.")] = None,
    class_word: Annotated[str | None, typer.Option("--class", help="What kind of thing it is, such as cat.")] = None,
    trigger: Annotated[str | None, typer.Option(help="The word it is bound to; chosen by default.")] = None,
    others: OthersOption = None,
    new_word: NewWordOption = None,
    base: BaseOption = None,
    method: MethodOption = None,
    preset: Annotated[str | None, typer.Option(help="quick, normal (default) or best.")] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe in TOML; options given here outweigh it.")] = None,
    vram: Annotated[int | None, typer.Option(help="Settings for a GPU of so many GB: 8, 12 or 24.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA, LoKr or LoHa.")] = None,
    alpha: Annotated[float | None, typer.Option(help="It acts by alpha / rank; default: the rank.")] = None,
    init: InitOption = None,
    factors: FactorsOption = None,
    parameter_count: Annotated[int | None, typer.Option("--parameters", help="KronA: at most so many.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None,
    optimizer: OptimizerOption = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step (and as many class pictures).")] = None,
    resolution: Annotated[int | None, typer.Option(help="Side of the training squares in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides every random choice.")] = None,
    prior_preservation: PriorOption = None,
    buckets: BucketsOption = None,
    flip: FlipOption = None,
    masked: MaskedOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted training of --name.")] = False,
    overwrite: OverwriteOption = False,
    export: ExportOption = None,
    clip: ScoringOption = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, mps or cpu. Default: the best there is.")] = None,
    processes: Annotated[int, typer.Option(help="Share each batch among so many: a GPU each, or one CPU.")] = 1,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Learn a concept from a few pictures. Ctrl-C saves and stops; --resume goes on.

    The class is what the pictures show (cat, mug, house). Captions in .txt files beside the pictures are used.
    """
    from studio.trainers.planning import plan_recipe, resumed_recipe
    from studio.trainers.recipe import Recipe

    if resume and vram is not None:
        raise UsageError("--vram chooses settings, and an interrupted training has its own.", "Leave it out.")
    given = {key: value for key, value in context.params.items() if key in Recipe.model_fields and value is not None}
    if not others:
        given.pop("others", None)
    place = Home.resolve(home)
    recipe = resumed_recipe(given, config, place) if resume else plan_recipe(given, config, place, vram)
    formats = tuple(one.strip() for one in export.split(",")) if export else ()
    how: dict[str, Any] = {"device": device, "processes": processes, "export": formats}
    _check_scored(recipe, clip)
    _train(recipe, place, as_json, clip, resume=resume, overwrite=overwrite, **how)


def _check_scored(recipe: "Recipe", clip: str | None) -> None:
    if clip is not None and not (recipe.validate_every and recipe.score_prompts):
        raise UsageError(
            "--clip reads pictures of the steps that are measured, and this recipe measures none.",
            "Set validate_every and score_prompts in a --config file, or take --preset best.",
        )


def _train(
    recipe: "Recipe", home: Home, as_json: bool, clip: str | None, *, resume: bool, overwrite: bool, **how: Any
) -> None:
    from studio.library import Library
    from studio.trainers.captions import pictures_of
    from studio.trainers.workplace import check_start
    from studio.ui.asks import train_order
    from studio.ui.progress import progress
    from studio.ui.recording import recorded

    check_start(home, recipe.names, resume, overwrite)
    _show(recipe, pictures_of(recipe))
    order = train_order(recipe, overwrite=overwrite, clip=clip, **how)
    with progress() as shown, recorded(home, order, shown) as job:
        from studio.trainers.dreambooth import Stopped
        from studio.trainers.dreambooth import train_concept as train  # torch: only now that the request is sound

        if clip is not None:
            from studio.encoders import load_clip
            from studio.trainers.scoring import ByClip

            how["scorer"] = ByClip(load_clip(clip), *recipe.triggers)
        try:
            concept = train(recipe, home, job, resume=resume, overwrite=overwrite, **how)
        except Stopped as stop:
            raise Stopped(stop.problem, stop.remedy + (f" --clip {quote(clip)}" if clip else "")) from None
        job.result = {"concept": concept.name, "folder": concept.folder}
    others = [Library(home).find(name) for name in recipe.names[1:]]
    if as_json:
        more = {"others": [asdict(one) | {"phrase": one.phrase} for one in others]} if others else {}
        told = asdict(concept) | {"phrase": concept.phrase} | more
        print_json(told | {"recipe": recipe.model_dump(mode="json")})
    else:
        folders = "\n".join(str(one.folder) for one in (concept, *others))
        typer.echo(f"{folders}\nTry it: {_trial(recipe)}")


def _trial(recipe: "Recipe") -> str:
    """The command that draws with what was trained."""
    if recipe.method == "b-lora":
        return f'studio stylize "a cat in <{recipe.name}>" --style {recipe.name}'
    prompt = " and ".join(f"a <{name}>" for name in recipe.names)
    return f'studio generate "{prompt}" ' + " ".join(f"--concept {name}" for name in recipe.names)


def _show(recipe: "Recipe", pictures: "list[list[Picture]]") -> None:
    """The data table and the settings that matter, on stderr."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from studio.trainers.captions import prompt_for

    console = Console(stderr=True, soft_wrap=True)
    table = Table("picture", "pixels", "trained with", box=None)
    for view, those in zip(recipe.views, pictures, strict=True):
        for picture in those:
            name = f"{view.name}: {picture.name}" if recipe.others else picture.name
            table.add_row(Text(name), f"{picture.width} x {picture.height}", Text(prompt_for(picture, view)))
    console.print(table)
    count = recipe.prior_count * len({view.class_word for view in recipe.views})
    prior = f"{count} class pictures" if recipe.prior_preservation else "no class pictures"
    console.print(
        f"{sum(map(len, pictures))} pictures, {prior}; {recipe.steps} steps of {recipe.batch_size}"
        f" at {recipe.resolution} px, learning rate {recipe.learning_rate:g}, on {recipe.base}",
        markup=False,
        highlight=False,
    )
