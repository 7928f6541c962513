"""The shipped samples as trained concepts: each is learned once, and anew where what it is made from has changed."""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from studio.bases import EMBEDDED, find_base
from studio.concepts import Concept
from studio.datasets import sample_folder
from studio.events import Emit, Event, Loss, Notice, Phase
from studio.home import Home, write_atomic
from studio.images import find_pictures
from studio.library import Library
from studio.picturebook import SAMPLE_SUBJECTS, Subject
from studio.trainers.cache import file_id
from studio.trainers.checkpoint import latest_checkpoint
from studio.trainers.dreambooth import train_concept
from studio.trainers.planning import plan_recipe
from studio.trainers.recipe import Recipe, build_recipe, read_toml
from studio.trainers.stopping import Stopped
from studio.trainers.workplace import RECIPE_FILE, SAMPLE_FILE, workplace_of

_PERSONAL = {"name", "trigger", "sample_prompts"}  # what may differ from home to home


@dataclass(frozen=True)
class Learned:
    """A sample concept in the library, and how it came there.

    `seconds` is the whole training (None where it was interrupted in between); `losses` are (step, loss);
    `reused` says that it was there already.
    """

    sample: str
    concept: Concept
    subject: Subject
    recipe: Recipe
    seconds: float | None
    losses: tuple[tuple[int, float], ...]
    reused: bool


def learn_sample(
    sample: str, preset: str, home: Home, emit: Emit, *, anew: bool = False, config: Path | None = None
) -> Learned:
    """The sample concept, trained on the embedded base with `preset` and the settings of the file `config`, or taken
    from the library.

    It is taken where it was made from the same pictures, settings and base, unless `anew`; an interrupted training of
    the same goes on. A concept or a training of its name that did not come from here is left alone: the sample is then
    called `milo-2`.
    """
    plan = partial(_plan, sample, preset, config, home)
    wanted = _made_from(plan(sample))
    name = next(name for name in _names(sample) if _is_ours(name, home))
    if name != sample:
        emit(Notice(f"The name {sample!r} is taken by something of your own; the sample is called {name!r}."))
    present, recipe = home.library / name, plan(name)
    record = _read_record(present)
    begun = None if anew else _interrupted(recipe, wanted, home)
    if not (anew or begun):
        if record and record["made_from"] == wanted:
            emit(Notice(f"{name} was learned before and is reused."))
            return _found(name, sample, home, record)
        if present.exists():
            emit(Notice(f"{name} is not known to be of this base, these settings and pictures: it is learned anew."))
        elif workplace_of(home, name).started:
            emit(Notice(f"The training of {name} was interrupted with other settings, pictures or base: begun again."))
    try:
        _train(begun or recipe, wanted, home, emit, resume=begun is not None)
    except Stopped as stop:
        without = " without --fresh" * anew
        raise Stopped(stop.problem, f"The same command{without} goes on from there.") from None
    record = _read_record(present)
    assert record is not None
    return _found(name, sample, home, record, reused=False)


def _plan(sample: str, preset: str, config: Path | None, home: Home, name: str) -> Recipe:
    given = {"pictures": sample_folder(sample), "name": name, "class_word": SAMPLE_SUBJECTS[sample].kind}
    return plan_recipe(given | {"preset": preset, "base": EMBEDDED}, config, home)


def _names(sample: str) -> Iterator[str]:
    yield sample
    yield from (f"{sample}-{n}" for n in count(2))


def _is_ours(name: str, home: Home) -> bool:
    """Whether nothing has the name, neither a concept nor an interrupted training, but what was learned here."""
    present, workplace = home.library / name, workplace_of(home, name)
    there = [present] * present.exists() + [workplace.checkpoints] * workplace.started
    return all((place / SAMPLE_FILE).is_file() for place in there)


def _train(recipe: Recipe, made_from: str, home: Home, emit: Emit, resume: bool) -> None:
    """Learn `recipe`; a mark lies among the checkpoints until it is done, and the record moves in with the concept."""
    workplace, began = workplace_of(home, recipe.name), time.monotonic()
    found = latest_checkpoint(workplace.checkpoints, lambda text: None) if resume else None
    losses = [(step, round(loss, 5)) for step, loss in enumerate(found.losses if found else (), 1)]

    def record(folder: Path) -> None:
        seconds = None if resume else round(time.monotonic() - began, 2)
        text = json.dumps({"made_from": made_from, "seconds": seconds, "losses": losses})
        write_atomic(folder / SAMPLE_FILE, lambda file: file.write_text(text, encoding="utf-8"))

    def listen(event: Event) -> None:
        match event:
            case Phase("train"):
                record(workplace.checkpoints)
            case Loss(step, loss):
                losses.append((step, round(loss, 5)))
            case Phase("write the concept"):
                record(workplace.folder)
        emit(event)

    concept = train_concept(recipe, home, listen, resume=resume, overwrite=True)
    record(concept.folder)  # now with the whole time


def _interrupted(recipe: Recipe, made_from: str, home: Home) -> Recipe | None:
    """The recipe of an interrupted training that would give the same concept."""
    workplace = workplace_of(home, recipe.name)
    mark = _read_record(workplace.checkpoints)
    if not workplace.started or mark is None or mark["made_from"] != made_from:
        return None
    begun = build_recipe([read_toml(workplace.folder / RECIPE_FILE)])
    same = begun.model_dump(exclude=_PERSONAL) == recipe.model_dump(exclude=_PERSONAL)
    return begun if same else None


def _made_from(recipe: Recipe) -> str:
    """A fingerprint of all that decides a concept but its words: settings, pictures and the base's weights."""
    settings = recipe.model_dump(mode="json", exclude=_PERSONAL | {"pictures"})
    pictures = [file_id(picture.path) for picture in find_pictures(recipe.pictures)]
    weights = [file_id(path) for path in sorted(Path(find_base(recipe.base).location).rglob("*.safetensors"))]
    return hashlib.sha256(json.dumps([settings, pictures, weights]).encode()).hexdigest()


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What the record in `folder` tells; None where there is none, or it is damaged or only a mark."""
    try:
        record = json.loads((folder / SAMPLE_FILE).read_text(encoding="utf-8"))
        return {key: record[key] for key in ("made_from", "seconds", "losses")}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _found(name: str, sample: str, home: Home, record: dict[str, Any], reused: bool = True) -> Learned:
    concept = Library(home).find(name)
    recipe = build_recipe([read_toml(concept.folder / RECIPE_FILE)])
    losses = tuple((step, loss) for step, loss in record["losses"])
    return Learned(sample, concept, SAMPLE_SUBJECTS[sample], recipe, record["seconds"], losses, reused)
