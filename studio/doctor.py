"""What the studio finds when it looks at the machine: each check with its remedy.

What a broken installation could lack is imported inside the checks: to name that is what they are there for.
"""

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from studio.errors import StudioError
from studio.home import Home, ensure_writable
from studio.library import Library

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

Status = Literal["ok", "warn", "fail"]
DISTRIBUTION = "concept-studio"
OPTIONAL = ("torchvision", "xformers", "triton", "bitsandbytes", "prodigyopt", "schedulefree")
SHIPPED = {
    "judge A": "judges/A.safetensors",
    "judge B": "judges/B.safetensors",
    "embedded CLIP": "clip/open_clip_model.safetensors",
}
LOW_DISK, NO_DISK = 5 * 2**30, 2**28


@dataclass(frozen=True)
class Check:
    """One thing looked at: `fail` means that the studio could not work, `warn` that something will not."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine(home: Home) -> list[Check]:
    """Every check, in the order in which to read them; never raises."""
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("packages", _packages),
        ("torchvision", _torchvision),
        ("device", _device),
        ("pipelines", _pipelines),
        ("state folder", lambda: _state(home)),
        ("library", lambda: _library(home)),
        ("embedded base", _embedded_base),
        *((name, partial(_weights, name, file)) for name, file in SHIPPED.items()),
    ]
    return [check for name, part in parts for check in _guarded(name, part)]


def works(checks: list[Check]) -> bool:
    """Whether the studio can work: no check failed."""
    return all(check.status != "fail" for check in checks)


def _guarded(name: str, part: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks of `part`; whatever it raises is a finding, not a crash."""
    try:
        yield from part()
    except StudioError as error:
        yield Check(name, "fail", error.problem, error.remedy)
    except Exception as error:
        remedy = "Install the studio again, in a new environment."
        yield Check(name, "fail", f"{type(error).__name__}: {error}", remedy)


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    yield Check("python", "ok", f"{platform.python_version()} ({sys.executable}) on {platform.platform()}")
    yield Check("studio", "ok", version(DISTRIBUTION))
    for line in requires(DISTRIBUTION) or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield _required(needed)
    for name in OPTIONAL:
        yield Check(name, "ok", _version(name) or "not installed (optional)")


def _required(needed: "Requirement") -> Check:
    found = _version(needed.name)
    remedy = f"pip install '{needed.name}{needed.specifier}'"
    if found is None:
        return Check(needed.name, "fail", "not installed", remedy)
    if not needed.specifier.contains(found, prereleases=True):
        return Check(needed.name, "warn", f"{found}, but the studio is made for {needed.specifier}", remedy)
    return Check(needed.name, "ok", found)


def _torchvision() -> Iterator[Check]:
    if _version("torchvision") is None:
        return
    from studio import torchvision_guard

    mine = version("torch")
    pair = f"torchvision {version('torchvision')} beside torch {mine}"
    match = f"0.{int(mine.split('.')[1]) + 15}"  # the two projects' minor releases go in step
    remedy = (
        "The studio works around it, other programs here may not. Either: pip uninstall torchvision (the studio does"
        f" not need it), or install torchvision {match} from the index that this torch came from."
    )
    if torchvision_guard.install():
        yield Check("torch and torchvision", "warn", f"{pair}: its compiled operators do not load (mismatch)", remedy)
        return
    import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]

    yield Check("torch and torchvision", "ok", pair)


def _device() -> Iterator[Check]:
    import torch

    from studio.devices import pick_device, pick_dtype
    from studio.kernels.paths import kernel_paths, operation_paths

    device = pick_device()
    dtype = pick_dtype(device)
    ones = torch.ones(4, 4, device=device, dtype=dtype)
    if (ones @ ones).sum().item() != 64:
        raise StudioError(f"{device} computes wrong products.", "Install the torch build that is made for this device.")
    yield Check("device", "ok", f"{device.type}: {_describe(device)}")
    yield Check("precision", "ok", f"{dtype} on {device.type}".replace("torch.", ""))
    for path in kernel_paths(device, dtype):
        yield Check(path.name, "ok", f"{'usable' if path.usable else 'not used'}: {path.detail}".replace("torch.", ""))
    for operation, way in operation_paths(device).items():
        yield Check(operation, "ok", way)


def _describe(device: "torch.device") -> str:
    """The device's own name and memory."""
    import psutil
    import torch

    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    memory = psutil.virtual_memory()
    name = platform.processor() or platform.machine()
    free, total = memory.available / 2**30, memory.total / 2**30
    return f"{name}, {torch.get_num_threads()} threads, {free:.0f} of {total:.0f} GiB memory free"


def _pipelines() -> Iterator[Check]:
    import studio.models  # noqa: F401

    yield Check("pipelines", "ok", "diffusers, transformers and peft import")


def _state(home: Home) -> Iterator[Check]:
    ensure_writable(home.root)
    yield Check("state folder", "ok", f"{home.root} is writable")
    free = shutil.disk_usage(home.root).free
    status: Status = "fail" if free < NO_DISK else "warn" if free < LOW_DISK else "ok"
    remedy = "" if status == "ok" else "Free some space, or choose another disk with --home or $STUDIO_HOME."
    yield Check("disk", status, f"{free / 2**30:.1f} GiB free for {home.root}", remedy)


def _library(home: Home) -> Iterator[Check]:
    concepts, damaged = Library(home).everything()
    yield Check("library", "ok", f"concepts: {len(concepts)}")
    for name, problem in damaged.items():
        yield Check(f"concept {name}", "warn", problem, f"Train it again, or: studio library remove {name}")


def _embedded_base() -> Iterator[Check]:
    from studio.bases import EMBEDDED, embedded_folder, find_base

    source = find_base(EMBEDDED)
    sizes = [_whole(path) for path in sorted(embedded_folder().glob("*/*.safetensors"))]
    yield Check("embedded base", "ok", f"{source.name}: {len(sizes)} weight files, {sum(sizes):.1f} MiB")


def _weights(name: str, file: str) -> Iterator[Check]:
    yield Check(name, "ok", f"{_whole(Path(str(files('studio.assets'))) / file):.1f} MiB")


def _whole(path: Path) -> float:
    """The MiB of a weight file that comes with the studio; raises StudioError where it is missing or cut short."""
    from studio.tensorfile import read_header

    try:
        read_header(path)
    except StudioError as error:
        raise StudioError(error.problem, "Install the studio again: this file is part of it.") from error
    return path.stat().st_size / 2**20


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
