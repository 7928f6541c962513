"""Pictures that were handed to the studio to learn from: sets with names of the studio's own, checked before they are
kept."""

import re
import shutil
import stat
import unicodedata
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path, PurePosixPath

from PIL import Image

from studio.errors import UsageError
from studio.folders import MASK, SUFFIXES
from studio.home import Home, ensure_free, ensure_writable, resolve_inside
from studio.images import MAX_PIXELS

MOST_FILES = 500
MOST_BYTES = 2**30  # of a set
MOST_SQUEEZED = 200  # how much larger than in its archive a file may be
CAPTION = ".txt"
_ID = re.compile(r"[0-9a-f]{12}")
_CHUNK = 2**20
_ENCRYPTED = 1  # in the flags of an archive's entry
_PLAIN_ZIP = "Pack the pictures as a plain zip without a password."


def samples() -> list[str]:
    """The sets of pictures that the studio ships."""
    return sorted(one.name for one in _shipped().iterdir() if one.is_dir())


def sample_folder(sample: str) -> Path:
    """The folder with the shipped pictures of `sample`."""
    return _shipped() / sample


def _shipped() -> Path:
    return Path(str(files("studio.assets"))) / "samples"


class Datasets:
    """The sets kept in a home's `datasets/` folder."""

    def __init__(self, home: Home) -> None:
        self.root = home.root / "datasets"

    def folder(self, name: str) -> Path:
        """Where set `name` lies; raises UsageError where there is none."""
        found = resolve_inside(self.root, name) if _ID.fullmatch(name) else None
        if found is None or not found.is_dir():
            raise UsageError(f"There is no set of pictures {name[:40]!r}.", "Upload the pictures again.")
        return found

    def add(self, files: Sequence[Path]) -> str:
        """Keep pictures, captions and archives of them as one set; returns its name.

        Nothing is kept of a set that has a file which is no picture or caption. Raises UsageError that names it.
        """
        if not files:
            raise UsageError("There are no files.", "Give 4 to 10 pictures of one thing.")
        ensure_writable(self.root)
        ensure_free(self.root, MOST_BYTES)
        name = uuid.uuid4().hex[:12]
        arriving = self.root / f".{name}.tmp"
        arriving.mkdir()
        try:
            kept = _Keeper(arriving)
            for file in files:
                if zipfile.is_zipfile(file):
                    kept.archive(file)
                else:
                    kept.file(file.name, _parts(file), file.stat().st_size)
            if not kept.pictures:
                raise UsageError("There is no picture among the files.", f"Give {', '.join(sorted(SUFFIXES))}.")
            arriving.rename(self.root / name)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
        return name


class _Keeper:
    """Writes files into `folder`, under names that are safe everywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = self.bytes = self.pictures = 0
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._stems: dict[tuple[str, str, int], str] = {}

    def archive(self, path: Path) -> None:
        """What a zip holds, folders and hidden files left out; raises UsageError for what a zip should not hold."""
        with _opened(path) as archive:
            entries = [one for one in archive.infolist() if not one.is_dir() and not _hidden(one.filename)]
            for one in entries:
                if stat.S_ISLNK(one.external_attr >> 16):
                    raise UsageError(f"{path.name} holds a link, {one.filename[:60]!r}.", "Put the files into it.")
                if one.flag_bits & _ENCRYPTED:
                    raise UsageError(f"{one.filename[:60]!r} in {path.name} is encrypted.", _PLAIN_ZIP)
                if one.file_size > MOST_SQUEEZED * max(one.compress_size, 1):
                    raise UsageError(
                        f"{one.filename[:60]!r} in {path.name} grows {MOST_SQUEEZED} times or more when unpacked.",
                        "Pictures do not; give them as they are.",
                    )
                self._room(one.file_size)
            for one in entries:
                inside = PurePosixPath(one.filename)
                self.file(inside.name, _unpacked(archive, one, path), 0, f"{path}:{inside.parent}")

    def file(self, name: str, parts: Iterable[bytes], size: int, place: str = "") -> None:
        """One file, which lay in `place`; a picture's header is read, a caption has to be text."""
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES and suffix != CAPTION:
            raise UsageError(f"{name[:60]!r} is no picture and no caption.", f"Give {', '.join(sorted(SUFFIXES))}.")
        self._room(size)
        to, written = self._path(name, suffix, place), 0
        with to.open("wb") as file:
            for part in parts:
                written += len(part)
                if self.bytes + written > MOST_BYTES:
                    raise _too_much()
                file.write(part)
        self.bytes += written
        self.count += 1
        if suffix == CAPTION:
            _check_caption(to, name)
        else:
            _check_picture(to, name)
            self.pictures += 1

    def _room(self, size: int) -> None:
        if self.count >= MOST_FILES or self.bytes + size > MOST_BYTES:
            raise _too_much()

    def _path(self, name: str, suffix: str, place: str) -> Path:
        """Files that had one name, but for its end, in one `place` keep one: a picture, its caption and its mask.

        Where several came under the very same name, the first of each kind belong together, then the second.
        """
        own = unicodedata.normalize("NFC", Path(name).stem)  # which macOS takes apart, and others do not
        mask = MASK if own.endswith(MASK) else ""
        own = own.removesuffix(MASK)
        self._seen[place, own, mask, suffix] += 1
        origin = (place, own, self._seen[place, own, mask, suffix])
        if origin not in self._stems:
            self._stems[origin] = self._unused(own)
        return self.folder / f"{self._stems[origin]}{mask}{suffix}"

    def _unused(self, own: str) -> str:
        """A safe stem that no disk takes for another one."""
        plain = unicodedata.normalize("NFKD", own).encode("ascii", "ignore").decode()
        stem = safe = re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-")[:48] or "picture"
        taken, n = {one.casefold() for one in self._stems.values()}, 1
        while safe.casefold() in taken:
            n += 1
            safe = f"{stem}-{n}"
        return safe


def _too_much() -> UsageError:
    return UsageError(
        f"That is more than {MOST_FILES} files or {MOST_BYTES // 2**20} MiB.", "Give 4 to 30 pictures of one thing."
    )


def _hidden(name: str) -> bool:
    parts = [part for part in Path(name).parts if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:
        raise _damaged(path.name, error) from error


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Iterator[bytes]:
    try:
        with archive.open(entry) as stream:
            while part := stream.read(_CHUNK):
                yield part
    except Exception as error:  # each way to squeeze has errors of its own
        raise _damaged(f"{PurePosixPath(entry.filename).name[:60]!r} in {path.name}", error) from error


def _damaged(what: str, error: Exception) -> UsageError:
    return UsageError(f"{what} cannot be unpacked: {error!s:.120}.", _PLAIN_ZIP)


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while part := stream.read(_CHUNK):
            yield part


def _check_caption(file: Path, name: str) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name[:60]!r} is no text in UTF-8.", "Save it as plain text.") from error
    if len(text) > 5000:
        raise UsageError(f"{name[:60]!r} has {len(text)} characters.", "A caption is a sentence or two.")


def _check_picture(file: Path, name: str) -> None:
    """Only the header is read: what claims to be huge is refused before anything is decoded."""
    try:
        with Image.open(file) as picture:
            width, height = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{name[:60]!r} is no picture that can be read.", "Leave it out.") from error
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"{name[:60]!r} says that it has {width} x {height} pixels.", f"At most {MAX_PIXELS // 10**6} million."
        )
