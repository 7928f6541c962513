"""Pictures from a user's disk: found, checked before anything heavy starts, and read the same way everywhere."""

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from studio.buckets import Size, kept_share, nearest_size
from studio.errors import UsageError
from studio.folders import MASK, PHONES, named, picture_files, times_shown, unused

MAX_PIXELS = 50_000_000
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
_MOSTLY = 2 / 3  # what is left of a picture that is cut, below which it is worth a word
_REMEDY = "Mend or remove what is named above, then start again."


@dataclass(frozen=True)
class Picture:
    """A picture file: its size in pixels as it is seen (after EXIF rotation), the text of its .txt file, if any, and
    the subfolder where it lies, "" for none."""

    path: Path
    width: int
    height: int
    caption: str | None = None
    subfolder: str = ""

    @property
    def name(self) -> str:
        """The file's name, after that of its subfolder."""
        return named(self.path, self.subfolder)

    @property
    def repeats(self) -> int:
        """How often an epoch shows it."""
        return times_shown(self.subfolder)


@dataclass(frozen=True)
class Finding:
    """A file that should be a picture: the picture and the `size` that it is trained at, or the `problem` for which it
    cannot be used; and `notes`, what the user may not expect."""

    name: str
    picture: Picture | None
    problem: str | None
    size: Size | None = None
    notes: tuple[str, ...] = ()


class _Unusable(Exception):
    """Why one file cannot be used, in a few words."""


def find_pictures(path: Path) -> list[Picture]:
    """The pictures of folder `path` in order of name, then those of its subfolders, or the single picture file `path`;
    only headers are read.

    Raises UsageError that names every file which is no picture, empty or too large, or says that there are none.
    """
    files = picture_files(path)
    pictures: list[Picture] = []
    problems: list[str] = []
    for file, subfolder in files:
        try:
            pictures.append(replace(_read_header(file), subfolder=subfolder))
        except _Unusable as reason:
            problems.append(f"{named(file, subfolder)}: {reason}")
    _refuse(problems, len(files))
    return pictures


def check_decodable(pictures: list[Picture]) -> None:
    """Decode every picture once; raises UsageError that names those which are truncated or damaged inside."""
    problems: list[str] = []
    for picture in pictures:
        try:
            _decode(picture.path)
        except _Unusable as reason:
            problems.append(f"{picture.name}: {reason}")
    _refuse(problems, len(pictures))


def survey(path: Path, sizes: Sequence[Size]) -> list[Finding]:
    """Every picture of `path`, decoded once, with what is wrong with it and what will be done to it to be of one of the
    `sizes`.

    Raises UsageError only where there is no picture file at all, or a subfolder's number is 0.
    """
    findings: list[Finding] = []
    known: dict[str, str] = {}
    for file, subfolder in picture_files(path):
        try:
            picture = replace(_read_header(file), subfolder=subfolder)
            _decode(file)
        except _Unusable as reason:
            findings.append(Finding(named(file, subfolder), None, str(reason)))
            continue
        twin = known.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), picture.name)
        notes = [f"the same file as {twin}"] if twin != picture.name else []
        size = nearest_size(picture.width, picture.height, sizes)
        sides = ((picture.width, size[0]), (picture.height, size[1]))
        has, needed = max(sides, key=lambda side: side[1] / side[0])
        if has < needed:
            which = "shorter" if has == min(picture.width, picture.height) else "longer"
            notes.append(f"enlarged: its {which} side has {has} pixels of {needed}")
        if (kept := kept_share(picture.width, picture.height, size)) < _MOSTLY:
            notes.append(f"{1 - kept:.0%} of it are cut away")
        findings.append(Finding(picture.name, picture, None, size, tuple(notes)))
    return findings


def load_rgb(path: Path) -> Image.Image:
    """The picture in 8-bit RGB: upright by EXIF, transparency on white, 16 bits scaled to 8, first frame of many.

    Raises UsageError naming the file where it cannot be read.
    """
    try:
        _read_header(path)
        return _decode(path)
    except _Unusable as reason:
        raise UsageError(f"{path.name}: {reason}", _REMEDY) from reason


def mask_file(path: Path) -> Path:
    """Where the mask of the picture `path` lies, if it has one: cat.mask.png beside cat.jpg."""
    return path.with_name(f"{path.stem}{MASK}.png")


def load_mask(path: Path) -> Image.Image | None:
    """What of the picture `path` is meant, white, in 8 bits and as large as it: its mask's file, or else its alpha
    channel; None where it has neither.

    Raises UsageError where the mask cannot be read, is of another size, or leaves nothing.
    """
    file = mask_file(path)
    name = file.name if file.is_file() else f"alpha channel of {path.name}"
    try:
        picture = _read_header(path)
        if file.is_file():
            with _open(file) as image:
                mask = ImageOps.exif_transpose(image).convert("L")
        else:
            with _open(path) as image:
                if not image.has_transparency_data:
                    return None
                mask = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    except (_Unusable, OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"The mask {name} cannot be read: {error}", _REMEDY) from error
    if mask.size != (picture.width, picture.height):
        size = f"{mask.width} x {mask.height} pixels, its picture {picture.width} x {picture.height}"
        raise UsageError(f"The mask {name} has {size}.", "Make it as large as its picture.")
    if mask.getextrema()[1] == 0:
        raise UsageError(f"The {name} is black: nothing of the picture would be learned.", "White is what is learned.")
    return mask


def check_masks(pictures: list[Picture]) -> list[str]:
    """Read all masks; the names of pictures that have none. Raises UsageError where no picture has one, or as
    `load_mask` does."""
    without = [picture.name for picture in pictures if load_mask(picture.path) is None]
    if len(without) == len(pictures):
        raise UsageError(
            "No picture has a mask or an alpha channel.",
            f"Put masks beside the pictures ({mask_file(pictures[0].path).name}, white where the subject is), or leave"
            " out --masked.",
        )
    return without


def dataset_notices(path: Path, pictures: list[Picture], least: int = 2) -> list[str]:
    """What the user should know about a usable set of pictures: fewer than `least`, captions missing or without a
    picture, what its subfolders count."""
    notices: list[str] = []
    if len(pictures) < least:
        notices.append("There is one picture only: its pose and background will be learned too. 4 to 10 are better.")
    captioned = sum(picture.caption is not None for picture in pictures)
    if 0 < captioned < len(pictures):
        notices.append(f"{captioned} of {len(pictures)} pictures have captions; the others use the plain prompt.")
    for subfolder in dict.fromkeys(picture.subfolder for picture in pictures if picture.subfolder):
        inside = [picture for picture in pictures if picture.subfolder == subfolder]
        times = "once" if inside[0].repeats == 1 else f"{inside[0].repeats} times"
        notices.append(f"Subfolder {subfolder}: each picture ({len(inside)}) is shown {times} in an epoch.")
    if path.is_dir():
        notices += unused(path)
    return notices


def _refuse(problems: list[str], total: int) -> None:
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise UsageError(f"{len(problems)} of {total} pictures cannot be used:\n{listed}", _REMEDY)


def _open(path: Path) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise _Unusable("the file is empty (0 bytes)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except Image.DecompressionBombError as error:
        raise _Unusable(_too_large()) from error
    except Image.UnidentifiedImageError as error:
        phone = path.suffix.lower() in PHONES
        why = "this is HEIC: save it as JPEG first" if phone else "this is not a picture, whatever its name says"
        raise _Unusable(why) from error
    except OSError as error:
        raise _Unusable(f"the file cannot be read ({error.strerror or error})") from error


def _too_large() -> str:
    return f"it has more than the {MAX_PIXELS // 10**6} million pixels that are allowed; reduce it first"


def _read_header(path: Path) -> Picture:
    with _open(path) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise _Unusable(_too_large())
        try:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
        except (OSError, SyntaxError, ValueError) as error:
            raise _Unusable("the picture is cut short or damaged") from error
    if turned:
        width, height = height, width
    return Picture(path, width, height, _caption(path))


def _caption(path: Path) -> str | None:
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split()) or None
    except UnicodeDecodeError as error:
        raise _Unusable(f"its caption {file.name} is not UTF-8 text") from error


def _decode(path: Path) -> Image.Image:
    with _open(path) as image:
        try:
            return _to_rgb(ImageOps.exif_transpose(image))
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise on damaged data
            raise _Unusable("the picture is cut short or damaged") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise _Unusable("floating-point pixels have no fixed white; save it as PNG or JPEG")
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion would clip at 255
        wide = np.asarray(image).astype(np.float64).clip(0, 65535)
        return Image.fromarray(np.rint(wide / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
