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
from studio.events import Emit, Event, Loss, Notice
from studio.home import Home, write_atomic
from studio.images import find_pictures
from studio.library import Library
from studio.picturebook import SAMPLE_SUBJECTS, Subject
from studio.trainers.cache import file_id
from studio.trainers.dreambooth import train_concept
from studio.trainers.planning import plan_recipe
from studio.trainers.recipe import Recipe, build_recipe, read_toml
from studio.trainers.stopping import Stopped
from studio.trainers.workplace import RECIPE_FILE, workplace_of

RECORD_FILE = "sample.json"
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

    It is taken where it was made from the same pictures, settings and base, unless `anew`. A concept of its name that
    did not come from here is left alone: the sample is then called `milo-2`. An interrupted training goes on.
    """
    plan = partial(_plan, sample, preset, config, home)
    wanted = _made_from(plan(sample))
    name = next(name for name in _names(sample) if _is_ours(plan(name), home))
    if name != sample:
        emit(Notice(f"The library has a {sample!r} of its own; the sample is called {name!r}."))
    present = home.library / name
    record = _read_record(present)
    if record and record["made_from"] == wanted and not anew:
        emit(Notice(f"{name} was learned before and is reused."))
        return _found(name, sample, home, record)
    if record and not anew:
        emit(Notice(f"{name} was made from another base, other settings or pictures: it is learned anew."))
    _train(plan(name), wanted, home, emit, anew)
    record = _read_record(present)
    assert record is not None
    return _found(name, sample, home, record, reused=False)


def _plan(sample: str, preset: str, config: Path | None, home: Home, name: str) -> Recipe:
    given = {"pictures": sample_folder(sample), "name": name, "class_word": SAMPLE_SUBJECTS[sample].kind}
    return plan_recipe(given | {"preset": preset, "base": EMBEDDED}, config, home)


def _names(sample: str) -> Iterator[str]:
    yield sample
    yield from (f"{sample}-{n}" for n in count(2))


def _is_ours(recipe: Recipe, home: Home) -> bool:
    """Whether nothing has the recipe's name, finished or interrupted, but what was learned here."""
    present = home.library / recipe.name
    if present.exists():
        return (present / RECORD_FILE).is_file()
    return not workplace_of(home, recipe.name).started or _interrupted(recipe, home) is not None


def _train(recipe: Recipe, made_from: str, home: Home, emit: Emit, anew: bool) -> None:
    begun = None if anew else _interrupted(recipe, home)
    losses: list[tuple[int, float]] = []

    def listen(event: Event) -> None:
        if isinstance(event, Loss):
            losses.append((event.step, round(event.loss, 5)))
        emit(event)

    began = time.monotonic()
    try:
        concept = train_concept(begun or recipe, home, listen, resume=begun is not None, overwrite=True)
    except Stopped as stop:
        raise Stopped(stop.problem, "The same command goes on from there.") from None
    seconds = None if begun else round(time.monotonic() - began, 2)
    text = json.dumps({"made_from": made_from, "seconds": seconds, "losses": losses})
    write_atomic(concept.folder / RECORD_FILE, lambda file: file.write_text(text, encoding="utf-8"))


def _interrupted(recipe: Recipe, home: Home) -> Recipe | None:
    """The recipe of an interrupted training that would give the same concept."""
    workplace = workplace_of(home, recipe.name)
    if not workplace.started:
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
    file = folder / RECORD_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _found(name: str, sample: str, home: Home, record: dict[str, Any], reused: bool = True) -> Learned:
    concept = Library(home).find(name)
    recipe = build_recipe([read_toml(concept.folder / RECIPE_FILE)])
    losses = tuple((step, loss) for step, loss in record["losses"])
    return Learned(sample, concept, SAMPLE_SUBJECTS[sample], recipe, record["seconds"], losses, reused)
