"""What each kind of adapter file can hold, and factors brought into a form that it can."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch

from studio.adapter_names import component_of
from studio.adapters import Adapter
from studio.errors import UsageError
from studio.factors import Dora, Factor, Full, Kronecker, LowRank, low_rank_form
from studio.flux_names import from_flux
from studio.rotation import Rotation
from studio.untrusted import shown

Target = Literal["peft", "diffusers", "kohya", "lycoris"]
TARGETS: tuple[Target, ...] = get_args(Target)
_COMPONENTS = {
    "kohya": ("unet", "text_encoder", "text_encoder_2"), "lycoris": ("unet", "text_encoder", "text_encoder_2"),
}  # fmt: skip
_CONVOLUTIONS = ("conv1", "conv2", "conv", "conv_in", "conv_out")  # of 3 x 3, in every UNet of diffusers
_PIXEL_WISE = ("conv_shortcut",)  # of 1 x 1
_SD15_PIXEL_WISE = ("proj_in", "proj_out")  # which are matrices in the UNets of later families


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
        if to in ("peft", "diffusers"):
            _check_layer(layer, factor, to)
        fitting = _fitting(layer, factor, to, rank, made.errors)
        made.factors[layer] = shaped(layer, fitting, adapter.family) if to in ("peft", "diffusers") else fitting
    if to in ("peft", "diffusers"):
        _check_peft(adapter, made.factors, to)
    return made


def _check_layer(layer: str, factor: Factor, to: Target) -> None:
    """Raise UsageError for a layer whose name there is not known."""
    component, _, path = layer.partition(".")
    known = component_of(path)
    if (component == "unet" and known != "unet") or (to == "peft" and known is None):
        raise UsageError(
            f"{shown(layer)} is a layer of no network that the studio knows, so its name in {to} files is not known.",
            "Convert the file with a tool for the base that it was made for.",
        )
    if component == "transformer" and from_flux(path) is not None:
        raise UsageError(
            f"{layer} is {factor.kind} on what are other layers in {to} files, into which it cannot be cut.",
            "Use the file as it is.",
        )


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
        return replace(exact, alpha=float(exact.rank))
    if isinstance(factor, Full) and factor.difference.dim() < 2:
        raise _refusal(layer, "a whole change of a norm", to, "kohya or lycoris")
    if rank is None:
        kind = "a full difference" if isinstance(factor, Full) else factor.kind
        raise _refusal(layer, kind, to, "kohya or lycoris, or let studio convert --rank approximate it by an SVD")
    made, errors[layer] = truncated(factor.delta(), rank)
    return made


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


def shaped(layer: str, factor: Factor, family: str | None) -> Factor:
    """A pair or a DoRA on one with the kernel that its layer has in a UNet, where LyCORIS has flattened it."""
    if isinstance(factor, Dora):
        return replace(factor, inner=shaped(layer, factor.inner, family))
    if not isinstance(factor, LowRank) or factor.down.dim() != 2 or not layer.startswith("unet."):
        return factor
    name = layer.rpartition(".")[2]
    if name in _CONVOLUTIONS and factor.down.shape[1] % 9 == 0:
        side = 3
    elif name in _PIXEL_WISE or (family == "sd15" and name in _SD15_PIXEL_WISE):
        side = 1
    else:
        return factor
    return replace(factor, down=factor.down.unflatten(1, (-1, side, side)), up=factor.up.flatten(1)[..., None, None])


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
