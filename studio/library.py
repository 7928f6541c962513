"""The library: one folder a concept, moved in whole and taken out whole."""

import errno
import shutil
import uuid
from collections.abc import Collection, Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from studio.concepts import CONCEPT_FILE, Concept, read_concept, write_concept
from studio.errors import StudioError, UsageError
from studio.home import Home, resolve_inside, safe_name


class Library:
    """The concepts kept in a home's `library/` folder. A folder's name is its concept's name."""

    def __init__(self, home: Home) -> None:
        self.root = home.library

    def concepts(self) -> list[Concept]:
        """All readable concepts by name; see `damaged` for the others."""
        return [concept for _, concept in self._read() if isinstance(concept, Concept)]

    def damaged(self) -> dict[str, str]:
        """Why each unreadable concept cannot be used, by name."""
        return {name: error.problem for name, error in self._read() if isinstance(error, StudioError)}

    def find(self, name: str) -> Concept:
        """The concept called `name`; raises UsageError where there is none, StudioError where it is damaged."""
        return replace(read_concept(self.folder(name)), name=name)

    def check_free(self, name: str) -> Path:
        """The folder that a new concept `name` will have; raises UsageError for a bad or taken name."""
        taken = {known.casefold() for known in self._names()}  # disks that ignore case are common
        if safe_name(name, "concept name").casefold() in taken:
            raise UsageError(
                f"The library has a concept {name!r} already.",
                f"Choose another --name, or remove it: studio library remove {name}",
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

    def remove(self, name: str) -> None:
        """Delete the concept called `name`, damaged or not; raises UsageError where there is none."""
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
            raise UsageError(f"The library {self.root} has no concept {name!r}.", hint)
        return resolve_inside(self.root, name)

    def _names(self) -> list[str]:
        """Folders with a concept's record; those that begin with a dot are on their way in or out."""
        if not self.root.is_dir():
            return []
        records = self.root.glob(f"*/{CONCEPT_FILE}")
        return sorted(path.parent.name for path in records if not path.parent.name.startswith("."))

    def _read(self) -> Iterator[tuple[str, Concept | StudioError]]:
        for name in self._names():
            try:
                yield name, self.find(name)
            except StudioError as error:
                yield name, error


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
