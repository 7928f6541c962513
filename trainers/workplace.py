"""The folder in which a concept comes into being: hidden in the library until it is finished."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from studio.concepts import Concept, file_hash, write_concept
from studio.errors import UsageError
from studio.home import Home, ensure_writable, safe_name
from studio.library import Library

RECIPE_FILE = "recipe.toml"


@dataclass(frozen=True)
class Workplace:
    """The folder of a training under way, with its recipe, checkpoints and sample pictures."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        """Where the states of the training lie until it is finished."""
        return self.folder / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where its sample pictures lie."""
        return self.folder / "samples"

    @property
    def started(self) -> bool:
        """Whether there is anything to go on from."""
        return any(place.suffix != ".tmp" for place in self.checkpoints.glob("step-*"))


def workplace_of(home: Home, name: str) -> Workplace:
    """The workplace of the training of concept `name`, whether or not there is one."""
    return Workplace(home.library / f".training-{safe_name(name, 'concept name')}")


def check_start(home: Home, name: str, resume: bool, overwrite: bool) -> None:
    """Raise UsageError where a training of `name` must not start so: the name is taken, there is a training to resume,
    or there is none."""
    workplace = workplace_of(home, name)
    if not overwrite:
        Library(home).check_free(name)
    if resume and not (workplace.folder / RECIPE_FILE).is_file():
        raise UsageError(f"There is no interrupted training of {name!r}.", "Start it without --resume.")
    if workplace.started and not resume and not overwrite:
        raise UsageError(
            f"A training of {name!r} was interrupted and can go on.",
            f"Go on: studio train-concept --name {name} --resume. Or start again with --overwrite.",
        )


@contextmanager
def claim(home: Home, name: str, resume: bool) -> Iterator[Workplace]:
    """The workplace for concept `name`, this process's alone; it is removed if no checkpoint was made in it.

    Raises UsageError where another process trains the same concept, StudioError where the disk refuses.
    """
    workplace = workplace_of(home, name)
    ensure_writable(home.library)
    ensure_writable(home.cache)
    lock = FileLock(workplace.folder.with_name(f"{workplace.folder.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(f"Another process is training {name!r}.", "Wait for it, or stop it first.") from error
    try:
        if not resume:
            shutil.rmtree(workplace.folder, ignore_errors=True)
        ensure_writable(workplace.folder)
        yield workplace
    finally:
        if not workplace.started:
            shutil.rmtree(workplace.folder, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def move_in(home: Home, workplace: Workplace, concept: Concept, overwrite: bool) -> Concept:
    """Make a finished workplace a concept of the library; one of the same name is replaced only now, if `overwrite`."""
    write_concept(replace(concept, sha256=file_hash(concept.adapter_file)))
    library = Library(home)
    present = home.library / concept.name
    aside = home.library / f".{concept.name}.{uuid.uuid4().hex[:8]}.tmp"
    if overwrite and present.exists():
        present.rename(aside)
    try:
        added = library.add(workplace.folder, concept.name)
    except BaseException:
        if aside.exists():
            aside.rename(present)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(added.folder / workplace.checkpoints.name, ignore_errors=True)
    return added
