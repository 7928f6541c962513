"""Where a command takes an adapter from: a file, a folder of PEFT, or a concept by its name."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.concepts import Concept
from studio.errors import UsageError
from studio.home import Home
from studio.library import Library

if TYPE_CHECKING:
    from studio.adapters import Adapter


@dataclass(frozen=True)
class AdapterSource:
    """An adapter's file or folder, and the concept of the library whose it is, if it is one's."""

    path: Path
    concept: Concept | None = None

    def load(self, *, values: bool = True, allow_pickle: bool = False) -> "Adapter":
        """Read it; raises UsageError for what is no adapter, StudioError for content that cannot be used."""
        from studio.adapters import load_adapter, load_concept

        if self.concept is not None:
            return load_concept(self.concept, values=values)
        return load_adapter(self.path, values=values, allow_pickle=allow_pickle)

    def new_file(self, ending: str) -> Path:
        """Where something made of it goes: beside it, or of a concept into the working folder."""
        return Path(self.concept.name + ending) if self.concept else self.path.with_name(self.path.stem + ending)


def find_adapter(given: str, home: Path | None) -> AdapterSource:
    """What `given` means: a concept of that name, else a path (./milo is always one); raises UsageError for neither."""
    library, path = Library(Home.resolve(home)), Path(given)
    if given in library:
        concept = library.find(given)
        return AdapterSource(concept.adapter_file, concept)
    if not path.exists():
        raise UsageError(
            f"There is no adapter file {given}, and no concept of that name.",
            "Check the path, or give a concept's name: studio library list",
        )
    return AdapterSource(path.resolve() if path.is_dir() else path)  # "." has no name
