"""Proof that written files are what was trained: a fresh process reads them and compares every layer.

What is compared are random projections of each change, a few numbers in float64 that any error in the file, its scales
included, changes.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save

from studio.adapters import load_adapter
from studio.errors import StudioError
from studio.factors import Dora, Factor, Full, Kronecker, LowRank
from studio.rotation import Rotation

Prints = dict[str, torch.Tensor]
Words = Mapping[str, Mapping[str, torch.Tensor]]
_DIRECTIONS = 3
# What projections may differ by, as a share of the largest: a concept's own file holds what was trained to the last
# bit, and only sums may go another way; in other formats a scale may be rounded to float32.
EXACT, ROUNDED = 1e-9, 1e-6


def fingerprints(factors: Mapping[str, Factor], words: Words) -> Prints:
    """The projections of every change by layer, and of the rows of every new word, by token and text encoder."""
    rows = {f"word {token} {tower}": Full(one) for token, towers in words.items() for tower, one in towers.items()}
    return {name: _projected(name, factor) for name, factor in {**factors, **rows}.items()}


def differing(trained: Prints, read: Prints, tolerance: float = EXACT) -> list[str]:
    """The layers that are not the same in both, or in one only."""
    names = sorted(trained.keys() | read.keys())
    return [name for name in names if not _equal(trained.get(name), read.get(name), tolerance)]


def verify_files(files: Sequence[Path], trained: Prints, tolerance: float = EXACT) -> None:
    """Raise StudioError, and delete all `files` (adapters, for PEFT folders), where a fresh process reads anything
    else from one of them."""
    if said := in_fresh_process(files, trained, tolerance):
        for file in files:
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink(missing_ok=True)
        raise StudioError(
            f"What was written does not hold what was trained: {said}",
            "Nothing was kept under its name; the checkpoint is intact: go on with --resume, on another disk if this"
            " one is damaged. Please report it where that does not help.",
        )


def in_fresh_process(files: Sequence[Path], trained: Prints, tolerance: float) -> str:
    """What a process of its own finds wrong with the first of `files` that is not as it was trained; else empty."""
    # -P: what lies in the folder where the command was given is none of the studio's modules
    command = [sys.executable, "-P", "-m", "studio.trainers.verify", str(tolerance), *map(str, files)]
    ended = subprocess.run(command, input=save(trained), capture_output=True, check=False)
    lines = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
    return lines[-1] if ended.returncode else ""


def found_wrong(files: Sequence[Path], trained: Prints, tolerance: float) -> str:
    """The sentence about what is not as it was `trained` in the first of `files` that differs; empty where all is."""
    return next((f"{file.name}: {said}" for file in files if (said := _wrong_in(file, trained, tolerance))), "")


def _wrong_in(file: Path, trained: Prints, tolerance: float) -> str:
    try:
        adapter = load_adapter(file)
    except StudioError as error:
        return error.problem
    wrong = differing(trained, fingerprints(adapter.factors, adapter.embeddings), tolerance)
    wrong += [*adapter.unread, *(f"{layer}.bias" for layer in adapter.biases)]
    return f"{len(wrong)} of {len(trained)} layers differ, the first is {wrong[0]}." if wrong else ""


def _projected(name: str, factor: Factor) -> torch.Tensor:
    """L^T D R [k, k] of the change D [out, in] with normal L and R that `name` decides; of DoRA the magnitudes', too,
    and of a rotation that of its blocks.

    Kronecker products and low-rank changes are not multiplied out.
    """
    if isinstance(factor, Dora):
        sizes = factor.magnitude.detach().cpu().double().reshape(-1, 1)
        return torch.cat([_projected(name, factor.inner), _between(f"{name} magnitude", [sizes])])
    if isinstance(factor, Rotation):
        return _between(name, _matrices([factor.blocks]))
    if isinstance(factor, LowRank) and factor.mid is None:
        return factor.scale * _between(name, _matrices([factor.up, factor.down]))
    if isinstance(factor, Kronecker) and factor.rank is None and factor.layout == "kron":
        a, b = _matrices(factor.matrices())
        left = _directions(f"{name} left", len(a) * len(b)).reshape(-1, len(a), len(b))
        right = _directions(f"{name} right", a.shape[1] * b.shape[1]).reshape(-1, a.shape[1], b.shape[1])
        moved = torch.einsum("nqp,pj->nqj", left, b), torch.einsum("qi,mij->mqj", a, right)
        return torch.einsum("nqj,mqj->nm", *moved)
    return _between(name, _matrices([factor.delta()]))


def _matrices(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [one.detach().cpu().double().reshape(len(one), -1) for one in tensors]


def _between(name: str, chain: list[torch.Tensor]) -> torch.Tensor:
    """[k, k]: the product of the matrices in `chain` between random directions."""
    left = _directions(f"{name} left", chain[0].shape[0])
    right = _directions(f"{name} right", chain[-1].shape[1]).T
    for matrix in reversed(chain):
        right = matrix @ right
    return left @ right


def _directions(label: str, width: int) -> torch.Tensor:
    """[k, width], normal, by `label` alone."""
    seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:7])
    return torch.randn(_DIRECTIONS, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _equal(one: torch.Tensor | None, other: torch.Tensor | None, tolerance: float) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * one.abs().max())


if __name__ == "__main__":
    told, *places = sys.argv[1:]
    sys.exit(found_wrong([Path(one) for one in places], load(sys.stdin.buffer.read()), float(told)) or 0)
