"""What the page Train makes of its fields: the table of pictures, method cards, settings, checks, the command."""

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from studio.bases import EMBEDDED, find_base, source_sizes
from studio.buckets import training_sizes
from studio.errors import StudioError, UsageError
from studio.images import Finding, dataset_notices, survey
from studio.trainers.presets import read_facts
from studio.trainers.recipe import Recipe
from studio.ui.fragments import render
from studio.ui.progress import duration
from studio.ui.service import Service, TrainAsk
from studio.ui.thumbs import Thumbs


@dataclass(frozen=True)
class MethodCard:
    """A way to learn: what it is for, and on the embedded base, preset normal, seconds a step (two slow CPU cores),
    what a step holds in memory beside the libraries (GB, as `trainers.estimate` has it), and the file (MB)."""

    name: str
    title: str
    does: str
    seconds: float
    memory: float
    megabytes: float


CARDS = (
    MethodCard(
        "lora", "LoRA", "The usual way. One thing from 4 to 10 pictures; every tool reads the file.", 0.76, 0.15, 4.7
    ),
    MethodCard(
        "krona",
        "DiffuseKronA",
        "Kronecker products: a third of the file, a little less like the thing.",
        0.77,
        0.17,
        1.5,
    ),
    MethodCard(
        "b-lora", "B-LoRA", "One picture, split into what it shows and how it is drawn: for Stylize.", 0.13, 0.04, 0.2
    ),
)
KINDS = ("person", "animal", "object", "character", "style")
_HIDDEN = ("name", "pictures", "class_word", "trigger", "method", "preset", "base")  # which have fields of their own


def picture_table(service: Service, dataset: str, base: str | None) -> str:
    """Every picture with its caption, sizes and problems; raises UsageError where there is no set."""
    if not dataset:
        return (
            '<div class="empty"><strong>No pictures yet</strong>'
            "Drop 4 to 10 pictures of one thing, or take a sample set.</div>"
        )
    findings, notices = _surveyed(service, dataset, base)
    thumbs = Thumbs(service.home)
    rows = [
        {
            "name": one.name,
            "url": thumbs.url(one.picture.path, 160) if one.picture else "",
            "pixels": f"{one.picture.width} x {one.picture.height}" if one.picture else "",
            "size": f"{one.size[0]} x {one.size[1]}" if one.size else "",
            "caption": (one.picture.caption or "") if one.picture else "",
            "problem": one.problem or "",
            "notes": "; ".join(one.notes),
        }
        for one in findings
    ]
    captioned = sum(1 for one in rows if one["caption"])
    usable = sum(1 for one in rows if not one["problem"])
    return render("dataset.html", rows=rows, captioned=captioned, usable=usable, notices=notices)


def _surveyed(service: Service, dataset: str, base: str | None) -> tuple[list[Finding], list[str]]:
    service.check_base(base)
    source = find_base(base or EMBEDDED)
    facts = read_facts(source)
    folder = service.pictures(dataset)
    findings = survey(folder, training_sizes(source_sizes(source), facts.native_size, not facts.own))
    usable = [one.picture for one in findings if one.picture is not None]
    return findings, dataset_notices(folder, usable) if usable else []


def method_cards(service: Service, chosen: str, recipe: Recipe | None) -> str:
    """A card a method, with its time on this machine, memory and file as far as they are known."""
    cards = []
    for card in CARDS:
        seconds = _seconds_a_step(service, card, recipe)
        steps = recipe.steps if recipe is not None else None
        time = f"about {duration(seconds * steps)}" if seconds and steps else ""
        ours = recipe is None or recipe.base == EMBEDDED
        sizes = f"{card.memory:g} GB of memory, a file of {card.megabytes:g} MB" if ours else ""
        cards.append({"card": card, "facts": ", ".join(one for one in (time, sizes) if one)})
    return render("methods.html", cards=cards, chosen=chosen)


def _seconds_a_step(service: Service, card: MethodCard, recipe: Recipe | None) -> float | None:
    """From the last training of this kind that ended here; else what was measured on the embedded base."""
    base = EMBEDDED if recipe is None else recipe.base
    for job in service.store.jobs(("done",)):
        told = job.arguments.get("recipe", {})
        alike = job.kind == "train" and told.get("method") == card.name and told.get("base") == base
        if alike and job.started and job.ended and told.get("steps"):
            return (job.ended - job.started) / told["steps"]
    return card.seconds if base == EMBEDDED else None


def settings_table(recipe: Recipe) -> list[list[str]]:
    """(setting, value) of everything that has no field of its own, values as JSON."""
    told = recipe.model_dump(mode="json")
    return [[name, json.dumps(value)] for name, value in told.items() if name not in _HIDDEN]


def with_edits(
    rows: Sequence[Sequence[Any]], before: Sequence[Sequence[str]], usual: Sequence[Sequence[str]]
) -> list[list[str]]:
    """The `usual` settings, but with what a user made of those that the table began with `before`."""
    was = {row[0]: row[1] for row in before}
    edits = {name: text for name, text, *_ in rows or [] if name in was and str(text) != was[name]}
    return [[name, edits.get(name, value)] for name, value in usual]


def changed_settings(rows: Sequence[Sequence[Any]], recipe: Recipe) -> dict[str, Any]:
    """Those of the table that are not as the preset has them; raises UsageError for what is no value."""
    usual, changed = recipe.model_dump(mode="json"), {}
    for name, text, *_ in rows or []:
        if name not in usual or name in _HIDDEN:
            continue
        try:
            value = json.loads(str(text))
        except ValueError as error:
            raise UsageError(
                f"{name} is {str(text)[:40]!r}.", 'Write a number, true, false, "text" or [a, b].'
            ) from error
        if value != usual[name]:
            changed[name] = value
    return changed


def train_ask(values: Mapping[str, Any], settings: dict[str, Any]) -> TrainAsk:
    """The training that the fields ask for; raises UsageError for what is missing."""
    needed = {"dataset": "Choose pictures in step 1.", "name": "Name the concept in step 2.",
              "class_word": "Say in step 2 what it is, in a word such as cat."}  # fmt: skip
    for key, remedy in needed.items():
        if not values[key]:
            raise UsageError(f"The {key.replace('_', ' ')} is missing.", remedy)
    given = {key: value for key, value in values.items() if value not in (None, "")}
    return TrainAsk.read(given | {"settings": settings})


def command_of(service: Service, ask: TrainAsk) -> str:
    """What a terminal would be told to do the same."""
    words = ["studio", "train-concept", str(service.pictures(ask.dataset)), "--name", ask.name]
    words += ["--class", ask.class_word, "--method", ask.method, "--preset", ask.preset]
    for option in ("base", "trigger"):
        value = getattr(ask, option)
        words += [f"--{option}", value] if value else []
    words += ["--overwrite"] if ask.overwrite else []
    words += ["--config", "settings.toml"] if ask.settings else []
    line = shlex.join(words)
    if not ask.settings:
        return line
    plain = {key: value for key, value in ask.settings.items() if value is not None}
    return f"cat > settings.toml <<'END'\n{tomli_w.dumps(plain)}END\n{line}"


def checks(service: Service, ask: TrainAsk) -> tuple[str, bool]:
    """(rows of a pre-flight list, whether the training may start)."""
    rows: list[tuple[str, str, str]] = []
    try:
        recipe = service.recipe(ask)
        service.check_start(recipe, ask.overwrite)
        rows.append(("good", f"{recipe.name} can be learned as <{recipe.name}>, {recipe.steps} steps.", ""))
    except StudioError as error:
        rows.append(("bad", error.problem, error.remedy))
        return render("checks.html", rows=rows), False
    findings, notices = _surveyed(service, ask.dataset, ask.base)
    broken = [one for one in findings if one.problem]
    rows += [("bad", f"{one.name}: {one.problem}", "Leave it out and upload the others.") for one in broken]
    if not broken:
        rows.append(("good", f"{len(findings)} pictures can be used.", ""))
    rows += [("warn", notice, "") for notice in notices]
    free = shutil.disk_usage(_existing(service.home.root)).free
    if free < 2**30:
        rows.append(("warn", f"The disk has {free / 2**20:.0f} MiB free.", "Checkpoints may not find room."))
    if waiting := [one for one in service.store.jobs(("running", "waiting")) if not one.terminal]:
        rows.append(("warn", f"{len(waiting)} jobs are before it.", "It waits for its turn."))
    return render("checks.html", rows=rows), not broken


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
