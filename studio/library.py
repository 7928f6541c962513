"""The library: one folder a concept, moved in whole and taken out whole."""

import errno
import re
import shutil
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from studio.concepts import CONCEPT_FILE, Concept, read_concept, write_concept
from studio.errors import StudioError, UsageError
from studio.home import Home, resolve_inside, safe_name

TRASH = ".trash"  # in the library's folder
_STAMP = "%Y%m%dT%H%M%S%f"
_ENTRY = re.compile(r"(\d{8}T\d{12})-[0-9a-f]{8}")


@dataclass(frozen=True)
class Trashed:
    """A concept in the trash: its entry there, its name, when it went in (seconds since 1970) and its bytes."""

    entry: str
    name: str
    when: float
    bytes: int


class Library:
    """The concepts kept in a home's `library/` folder. A folder's name is its concept's name."""

    def __init__(self, home: Home) -> None:
        self.root = home.library

    def __contains__(self, name: object) -> bool:
        """Whether there is a concept called `name`, readable or not."""
        return name in self._names()

    def everything(self) -> tuple[list[Concept], dict[str, str]]:
        """The readable concepts, and why each of the others cannot be used, both by name and from one look."""
        concepts, damaged = [], {}
        for name in self._names():
            try:
                folder = resolve_inside(self.root, safe_name(name, "concept name"))
                concepts.append(replace(read_concept(folder), name=name))
            except StudioError as error:
                damaged[name] = error.problem
        return concepts, damaged

    def concepts(self) -> list[Concept]:
        """All readable concepts by name; see `damaged` for the others."""
        return self.everything()[0]

    def damaged(self) -> dict[str, str]:
        """Why each unreadable concept cannot be used, by name."""
        return self.everything()[1]

    def find(self, name: str) -> Concept:
        """The concept called `name`; raises UsageError where there is none, StudioError where it is damaged."""
        return replace(read_concept(self.folder(name)), name=name)

    def check_free(self, name: str, instead: str = "") -> Path:
        """The folder that a new concept `name` will have; raises UsageError for a bad or taken name, whose remedy also
        says what can be done `instead`."""
        taken = {known.casefold(): known for known in self._names()}  # disks that ignore case are common
        if known := taken.get(safe_name(name, "concept name").casefold()):
            raise UsageError(
                f"The library has a concept {known!r} already.",
                f"Choose another name, {instead}or remove it: studio library remove {known}",
            )
        return resolve_inside(self.root, name)

    def add(self, folder: Path, name: str) -> Concept:
        """Move the finished concept in `folder` into the library as `name`: whole or not at all.

        Raises UsageError for a bad or taken name, StudioError for an unfinished folder or a disk that refuses.
        """
        read_concept(folder)
        target = self.check_free(name)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            _move(folder, target)
        except OSError as error:
            raise StudioError(
                f"Cannot keep {name!r} in {self.root}: {error.strerror or error}.",
                f"Free some space or mend the folder's permissions; {folder} is still there.",
            ) from error
        return self.find(name)

    def tag(self, name: str, add: Collection[str], take: Collection[str]) -> Concept:
        """Give the concept called `name` some tags and take others away.

        Raises UsageError for a tag that is no safe name, or that is to be taken and is not there.
        """
        concept = self.find(name)
        for tag in (*add, *take):
            safe_name(tag, "tag")
        if absent := [tag for tag in take if tag not in concept.tags]:
            raise UsageError(f"{name} has no tag {absent[0]!r}.", f"It has: {', '.join(concept.tags) or 'none'}.")
        tags = sorted({*concept.tags, *add} - {*take})
        write_concept(replace(concept, tags=tuple(tags)))
        return self.find(name)

    def rename(self, name: str, new: str) -> Concept:
        """Call the concept `name` from now on `new`; raises UsageError for a bad or taken name.

        The folder gives the name: moving it is the whole change, and its record has the new name before.
        """
        concept, target = self.find(name), self.check_free(new)
        write_concept(replace(concept, name=new))
        try:
            concept.folder.rename(target)
        except OSError as error:
            with suppress(StudioError):
                write_concept(concept)
            raise StudioError(f"Cannot rename {name!r}: {error}.", "Mend the folder's permissions.") from error
        return self.find(new)

    def trash(self, name: str) -> Trashed:
        """Move the concept called `name`, damaged or not, into the trash; raises UsageError where there is none."""
        folder = self.folder(name)
        entry = self.root / TRASH / f"{datetime.now(UTC):{_STAMP}}-{uuid.uuid4().hex[:8]}"
        try:
            entry.mkdir(parents=True)
            folder.rename(entry / name)
        except OSError as error:
            with suppress(OSError):
                entry.rmdir()
            raise StudioError(f"Cannot move {name!r} to the trash: {error}.", "Mend its permissions.") from error
        return next(one for one in self.trashed() if one.entry == entry.name)

    def trashed(self) -> list[Trashed]:
        """What is in the trash, the latest first."""
        found = []
        for entry in sorted((self.root / TRASH).glob("*"), reverse=True):
            inside = [one for one in entry.glob("*") if one.is_dir()]
            if (stamp := _ENTRY.fullmatch(entry.name)) and len(inside) == 1:
                when = datetime.strptime(stamp[1], _STAMP).replace(tzinfo=UTC).timestamp()
                size = sum(one.stat().st_size for one in inside[0].rglob("*") if one.is_file())
                found.append(Trashed(entry.name, inside[0].name, when, size))
        return found

    def restore(self, entry: str, name: str | None = None) -> str:
        """Bring what `entry` of the trash holds back, damaged or not, as `name` or as it was called; returns the name.

        Raises UsageError for an entry that is not there and for a name that is taken.
        """
        found = next((one for one in self.trashed() if one.entry == entry), None)
        if found is None:
            raise UsageError("That is not in the trash any more.", "Look at what is: studio library trash")
        target = self.check_free(name or found.name)
        place = self.root / TRASH / found.entry
        try:
            (place / found.name).rename(target)
        except OSError as error:
            raise StudioError(f"Cannot restore {found.name!r}: {error}.", "Mend the folder's permissions.") from error
        with suppress(OSError):
            place.rmdir()
        return target.name

    def empty_trash(self) -> int:
        """Delete for good what is in the trash; returns how many concepts that were."""
        count, trash = len(self.trashed()), self.root / TRASH
        if trash.exists():
            leaving = _hidden(trash)
            try:
                trash.rename(leaving)
                shutil.rmtree(leaving)
            except OSError as error:
                raise StudioError(f"Cannot empty the trash: {error}.", "Mend the folder's permissions.") from error
        return count

    def remove(self, name: str) -> None:
        """Delete the concept called `name` for good, damaged or not; raises UsageError where there is none."""
        folder = self.folder(name)
        leaving = _hidden(folder)
        try:
            folder.rename(leaving)
            shutil.rmtree(leaving)
        except OSError as error:
            raise StudioError(f"Cannot remove {name!r}: {error}.", "Mend the folder's permissions.") from error

    def folder(self, name: str) -> Path:
        """The folder of the concept called `name`, readable or not; raises UsageError where there is none."""
        names = self._names()
        if safe_name(name, "concept name") not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It holds: {', '.join(names) or 'nothing yet'}."
            raise UsageError(f"There is no concept {name!r} in {self.root}.", hint)
        return resolve_inside(self.root, name)

    def _names(self) -> list[str]:
        """Folders with a concept's record; those that begin with a dot are on their way in or out."""
        if not self.root.is_dir():
            return []
        records = self.root.glob(f"*/{CONCEPT_FILE}")
        return sorted(path.parent.name for path in records if not path.parent.name.startswith("."))


def _move(source: Path, target: Path) -> None:
    """Rename; where the two lie on different disks, copy beside `target` first, so that it appears whole."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        arriving = _hidden(target)
        try:
            shutil.copytree(source, arriving)
            arriving.rename(target)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        shutil.rmtree(source, ignore_errors=True)


def _hidden(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
