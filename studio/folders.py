"""Which files of a user's folder are pictures, and how often each counts; one level of subfolders is read."""

import re
from pathlib import Path

from studio.errors import UsageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PHONES = frozenset({".heic", ".heif"})  # what phones may save, and Pillow cannot read
MASK = ".mask"  # how the name of a mask's file ends
_REPEATED = re.compile(r"([0-9]{1,3})_")  # how a subfolder's name begins whose pictures count several times, as kohya's


def picture_files(path: Path) -> list[tuple[Path, str]]:
    """The picture files of folder `path` in order of name, each with the name of its subfolder, "" (first) for none; or
    the single file `path`.

    Raises UsageError where there are none, or those of a subfolder would count 0 times.
    """
    if path.is_file():
        return [(path, "")]
    if not path.is_dir():
        raise UsageError(f"There is no folder or picture {path}.", "Give the folder that holds the pictures.")
    files = [
        (file, subfolder) for file, subfolder in _visible(path)
        if file.suffix.lower() in SUFFIXES and not file.stem.endswith(MASK) and not file.is_dir()
    ]  # fmt: skip
    if not files and (phones := [file for file, _ in _visible(path) if file.suffix.lower() in PHONES]):
        raise UsageError(
            f"The folder {path} holds no pictures but {len(phones)} in HEIC, which cannot be read.",
            "Save them as JPEG first, with any program that shows them; or let the phone do so (camera format: most"
            " compatible).",
        )
    if not files:
        raise UsageError(
            f"The folder {path} holds no pictures.", f"Put 4 to 10 pictures there ({', '.join(sorted(SUFFIXES))})."
        )
    for subfolder in dict.fromkeys(subfolder for _, subfolder in files):
        if times_shown(subfolder) == 0:
            raise UsageError(f"The pictures of subfolder {subfolder} would be shown 0 times.", "Move it elsewhere.")
    return files


def times_shown(subfolder: str) -> int:
    """How often an epoch shows a picture of `subfolder`: N times for the name `N_anything` of up to three digits, else
    once."""
    found = _REPEATED.match(subfolder)
    return int(found[1]) if found else 1


def named(file: Path, subfolder: str) -> str:
    """The name of `file` after that of its subfolder."""
    return f"{subfolder}/{file.name}" if subfolder else file.name


def unused(path: Path) -> list[str]:
    """A sentence for each kind of thing in folder `path` that is of no use beside its pictures."""
    stems = {named(file, subfolder).rpartition(".")[0] for file, subfolder in picture_files(path)}
    names: dict[str, list[str]] = {
        "Captions without a picture of the same name": [], "Pictures in HEIC, to be saved as JPEG first,": [],
        "Files of other kinds": [], "Folders in subfolders": [],
    }  # fmt: skip
    captions, phones, others, deeper = names.values()
    for file, subfolder in _visible(path):
        name, suffix = named(file, subfolder), file.suffix.lower()
        if file.is_dir():
            deeper += [name] if subfolder else []
        elif suffix == ".txt":
            captions += [name] if name.rpartition(".")[0] not in stems else []
        elif suffix in PHONES:
            phones.append(name)
        elif suffix not in SUFFIXES:
            others.append(name)
    return [f"{what} are not used: {', '.join(listed)}." for what, listed in names.items() if listed]


def _visible(path: Path) -> list[tuple[Path, str]]:
    """What lies in folder `path`, then what lies in each of its subfolders, in order of name; hidden things do not
    count."""
    found = [one for one in sorted(path.iterdir()) if not one.name.startswith(".")]
    inside = [(one, place.name) for place in found if place.is_dir() for one in sorted(place.iterdir())]
    return [(one, "") for one in found] + [(one, sub) for one, sub in inside if not one.name.startswith(".")]
