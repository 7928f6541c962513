"""The folder in which a concept comes into being: hidden in the library until it is finished."""

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from studio.concepts import Concept, file_hash, write_concept
from studio.errors import UsageError
from studio.home import Home, ensure_writable, safe_name
from studio.library import Library

RECIPE_FILE = "recipe.toml"
SAMPLE_FILE = "sample.json"  # marks a sample of the studio's own, which it may replace


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


def check_start(home: Home, names: Sequence[str], resume: bool, overwrite: bool) -> None:
    """Raise UsageError where a training of the concepts `names` must not start so: a name is taken, there is a training
    to resume, or there is none. A training has the name of its first concept."""
    library = Library(home)
    for number, name in enumerate(names):
        workplace, going_on = workplace_of(home, name), resume and number == 0
        if not (overwrite and name in library):
            library.check_free(name, "" if overwrite else "replace it with --overwrite, ")
        if going_on and not (workplace.folder / RECIPE_FILE).is_file():
            raise UsageError(f"There is no interrupted training of {name!r}.", "Start it without --resume.")
        if workplace.started and not going_on and not overwrite:
            raise UsageError(
                f"A training of {name!r} was interrupted and can go on.",
                f"Go on: studio train-concept --name {name} --resume{home.option}. Or start again with --overwrite.",
            )


@contextmanager
def claim(home: Home, names: Sequence[str], resume: bool) -> Iterator[list[Workplace]]:
    """The workplaces for concepts `names`, this process's alone; each is removed if no checkpoint was made in it.

    Raises UsageError where another process trains one of them, StudioError where the disk refuses.
    """
    with ExitStack() as held:
        yield [held.enter_context(_claimed(home, name, resume and n == 0)) for n, name in enumerate(names)]


@contextmanager
def _claimed(home: Home, name: str, resume: bool) -> Iterator[Workplace]:
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


def move_in(home: Home, finished: Sequence[tuple[Workplace, Concept]], overwrite: bool) -> list[Concept]:
    """Make finished workplaces concepts of the library, all or none; those of the same names are replaced only now, if
    `overwrite`. The first, which has the checkpoints, comes last: a crash in between leaves them where they are."""
    for _, concept in finished:
        write_concept(replace(concept, sha256=file_hash(concept.adapter_file)))
    library = Library(home)
    added: list[tuple[Path, Path]] = []  # where each is now, and where it was
    replaced: list[tuple[Path, Path]] = []
    try:
        for workplace, concept in reversed(finished):
            present = home.library / concept.name
            if overwrite and present.exists():
                aside = home.library / f".{concept.name}.{uuid.uuid4().hex[:8]}.tmp"
                present.rename(aside)
                replaced.append((aside, present))
            added.append((library.add(workplace.folder, concept.name).folder, workplace.folder))
    except BaseException:
        for now, before in (*added, *replaced):
            now.rename(before)
        raise
    for aside, _ in replaced:
        shutil.rmtree(aside, ignore_errors=True)
    for now, before in added:
        shutil.rmtree(now / Workplace(before).checkpoints.name, ignore_errors=True)
    return [library.find(concept.name) for _, concept in finished]
