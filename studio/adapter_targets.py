"""What each kind of adapter file can hold, and factors brought into a form that it can."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from studio.adapters import Adapter
from studio.errors import UsageError
from studio.factors import Dora, Factor, Full, Kronecker, LowRank, low_rank_form
from studio.rotation import Rotation

Target = Literal["peft", "diffusers", "kohya", "lycoris"]
TARGETS: tuple[Target, ...] = get_args(Target)
_COMPONENTS = {
    "kohya": ("unet", "text_encoder", "text_encoder_2"), "lycoris": ("unet", "text_encoder", "text_encoder_2"),
}  # fmt: skip
_CONVOLUTIONS = ("conv1", "conv2", "conv", "conv_in", "conv_out")  # of 3 x 3, in every UNet of diffusers


@dataclass(frozen=True)
class Expressed:
    """Factors as the target holds them, and by layer the relative error of those that an SVD made."""

    factors: dict[str, Factor]
    errors: dict[str, float] = field(default_factory=dict)


def expressed(adapter: Adapter, to: Target, rank: int | None = None) -> Expressed:
    """The factors of `adapter` in kinds that files of `to` can hold; exact, but for what `rank` allows an SVD to cut.

    Raises UsageError that names the layer, its kind and where it could go instead.
    """
    made = Expressed({})
    for layer, factor in adapter.factors.items():
        component = layer.partition(".")[0]
        if component not in _COMPONENTS.get(to, (component,)):
            raise UsageError(
                f"{adapter.name} changes {layer}; {to} files have no agreed name for that.",
                "Choose another format: diffusers.",
            )
        made.factors[layer] = _fitting(layer, factor, to, rank, made.errors)
    if to in ("peft", "diffusers"):
        _check_peft(adapter, made.factors, to)
    return made


def _fitting(layer: str, factor: Factor, to: Target, rank: int | None, errors: dict[str, float]) -> Factor:
    if isinstance(factor, Dora):
        if factor.per_input and to in ("peft", "diffusers"):
            raise _refusal(layer, "DoRA with one magnitude for each input", to, "kohya or lycoris")
        return replace(factor, inner=_fitting(layer, factor.inner, to, rank, errors))
    if isinstance(factor, Rotation) and to != "lycoris":
        raise _refusal(layer, factor.kind, to, "lycoris")
    ibm = isinstance(factor, Kronecker) and factor.layout == "ibm"
    if to == "lycoris" and ibm:
        raise _refusal(layer, "KronA in the layout of IBM's code", to, "diffusers, kohya or peft")
    if to in ("kohya", "lycoris") and not ibm:
        return factor
    if isinstance(factor, LowRank) and factor.mid is None:
        return factor
    return _as_low_rank(layer, factor, to, rank, errors)


def _as_low_rank(layer: str, factor: Factor, to: Target, rank: int | None, errors: dict[str, float]) -> LowRank:
    split = isinstance(factor, Kronecker) and factor.rank is not None
    exact = None if split else low_rank_form(factor)
    if exact is not None and (rank is None or exact.rank <= rank):
        return _shaped(layer, replace(exact, alpha=float(exact.rank)))
    if isinstance(factor, Full) and factor.difference.dim() < 2:
        raise _refusal(layer, "a whole change of a norm", to, "kohya or lycoris")
    if rank is None:
        kind = "a full difference" if isinstance(factor, Full) else factor.kind
        raise _refusal(layer, kind, to, "kohya or lycoris, or let studio convert --rank approximate it by an SVD")
    made, errors[layer] = truncated(factor.delta(), rank)
    return _shaped(layer, made)


def truncated(change: torch.Tensor, rank: int) -> tuple[LowRank, float]:
    """(the best change of at most `rank`, its relative error in the Frobenius norm), by an SVD (Eckart and Young).

    A kernel [out, in, kh, kw] keeps its shape in down [r, in, kh, kw].
    """
    left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    down = (root[:, None] * right[:kept]).reshape(kept, *change.shape[1:])
    up = (left[:, :kept] * root).reshape(-1, kept, *(1 for _ in change.shape[2:]))
    error = float(values[kept:].norm() / values.norm().clamp(min=torch.finfo(torch.float32).tiny))
    return LowRank(down, up, float(kept)), error


def _shaped(layer: str, factor: LowRank) -> LowRank:
    """With a kernel where the layer is a convolution of 3 x 3 and LyCORIS has flattened it."""
    flat = factor.down.dim() == 2 and layer.startswith("unet.") and layer.rpartition(".")[2] in _CONVOLUTIONS
    if not flat or factor.down.shape[1] % 9:
        return factor
    return replace(factor, down=factor.down.unflatten(1, (-1, 3, 3)), up=factor.up[..., None, None])


def _check_peft(adapter: Adapter, factors: Mapping[str, Factor], to: Target) -> None:
    """Raise UsageError for what PEFT's LoRA has no place for."""
    for layer in adapter.biases:
        raise _refusal(f"{layer}.bias", "a full difference", to, "kohya or lycoris")
    for token in adapter.embeddings if to == "peft" else ():
        raise UsageError(
            f"{adapter.name} brings the word {token!r} along, which {to} files cannot hold.",
            "Choose another format: diffusers, kohya or lycoris.",
        )
    with_magnitude = {layer: isinstance(factor, Dora) for layer, factor in factors.items()}
    for layer, dora in with_magnitude.items():
        component = layer.partition(".")[0]
        if not dora and any(with_magnitude[other] for other in factors if other.startswith(f"{component}.")):
            raise UsageError(
                f"{layer} has no DoRA magnitude, and others of {component} have one; {to} files turn DoRA on for all"
                " layers of a component or none.",
                "Choose another format: kohya or lycoris.",
            )


def _refusal(layer: str, kind: str, to: Target, instead: str) -> UsageError:
    return UsageError(f"{layer} is {kind}, which {to} files cannot hold.", f"Choose another format: {instead}.")
