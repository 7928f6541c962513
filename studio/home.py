"""Where the studio keeps its state, and how it writes: safe names, and whole files or none."""

import os
import re
import shutil
import unicodedata
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import platformdirs

from studio.errors import StudioError, UsageError

NAME_LIMIT = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# How safetensors and torch.save word a disk that refuses: they raise errors of their own kind.
_DISK_WORDS = re.compile(r"\(os error \d+\)|inline_container")
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10)}


@dataclass(frozen=True)
class Home:
    """The state folder: `library/`, `cache/` and `outputs/` below one root."""

    root: Path

    @classmethod
    def resolve(cls, override: Path | None = None) -> "Home":
        """`override`, else `$STUDIO_HOME`, else the platform's user-data folder."""
        chosen = override or os.environ.get("STUDIO_HOME") or platformdirs.user_data_path("concept-studio")
        return cls(Path(chosen).expanduser().absolute())

    @property
    def option(self) -> str:
        """What a command needs to find this home; nothing where it finds it by itself."""
        return "" if self == Home.resolve() else f" --home {quote(str(self.root))}"

    @property
    def library(self) -> Path:
        """One folder a concept."""
        return self.root / "library"

    @property
    def cache(self) -> Path:
        """Latents, text embeddings and class pictures; may be deleted at any time."""
        return self.root / "cache"

    @property
    def outputs(self) -> Path:
        """Pictures that were asked for without a place to put them."""
        return self.root / "outputs"


def safe_name(name: str, what: str = "name") -> str:
    """`name` unchanged where it can be a folder's name on every platform.

    Raises UsageError otherwise (path parts, control characters, look-alike letters, reserved or overlong names).
    """
    if len(name) > NAME_LIMIT:
        raise UsageError(f"The {what} has {len(name)} characters.", f"Use at most {NAME_LIMIT}.")
    plain = unicodedata.normalize("NFKC", name) == name and _NAME.fullmatch(name) and not name.endswith(".")
    if not plain or name.split(".")[0].lower() in _WINDOWS_DEVICES:
        raise UsageError(
            f"The {what} {name!r} cannot be used as a file name everywhere.",
            "Use letters, digits, '-', '_' and '.', beginning with a letter or a digit.",
        )
    return name


def resolve_inside(root: Path, name: str) -> Path:
    """The path of `name` in `root`; raises UsageError where it would lie outside."""
    path = (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise UsageError(f"{name!r} lies outside {root}.", "Give a plain name.")
    return path


def ensure_writable(folder: Path) -> None:
    """Create `folder` and prove that a file can be written there; raises StudioError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StudioError(
            f"Cannot write in {folder}: {error.strerror or error}.",
            "Choose another folder (--home or $STUDIO_HOME for the studio's own), or mend its permissions.",
        ) from error


def ensure_free(folder: Path, needed: int) -> None:
    """Raise StudioError where the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StudioError(
            f"The disk of {folder} has {free / 2**20:.0f} MiB free; {needed / 2**20:.0f} MiB are needed.",
            "Free some space, or choose another disk with --home or $STUDIO_HOME.",
        )


def write_atomic(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then give it its name: the whole file or none.

    Raises StudioError where the disk is full or not writable; the old file, if any, is then intact. What else `write`
    raises goes on to the caller, and leaves no file behind either.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        if not (isinstance(error, OSError) or _DISK_WORDS.search(str(error))):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise StudioError(f"Cannot write {path}: {reason}.", "Free some space or choose another place.") from error
    finally:
        with suppress(OSError):  # a parent that is no folder; the error above says so
            temporary.unlink(missing_ok=True)
    return path


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Like `write_atomic`, for a folder; one that is there already is replaced."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = draft.with_suffix(".old")
    try:
        draft.mkdir(parents=True)
        write(draft)
        if path.exists():
            path.rename(old)
        draft.rename(path)
    except OSError as error:
        with suppress(OSError):
            old.rename(path)
        raise StudioError(
            f"Cannot write {path}: {error.strerror or error}.", "Free some space or choose another place."
        ) from error
    finally:
        for rest in (draft, old):
            shutil.rmtree(rest, ignore_errors=True)
