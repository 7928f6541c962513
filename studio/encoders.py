"""Networks by which pictures are compared with words and with each other: CLIP through open_clip, DINO through
transformers or timm.

CLIP and DINO are named by what they were loaded from, since scores of different ones cannot be compared.
"""

import difflib
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image

from studio.errors import StudioError, UsageError
from studio.models import module_id

Tensor = torch.Tensor
_AT_ONCE = 64  # pictures or texts in a forward
_Made = tuple[Callable[[Sequence[Image.Image]], Tensor], Any]  # what encodes, and its network
_HUB, _FOLDER, _TIMM = "hf-hub:", "local-dir:", "timm:"


class Encoder(Protocol):
    """What turns pictures into unit vectors; `weights` tells networks of one name apart."""

    name: str

    @property
    def weights(self) -> str:
        """A fingerprint."""
        ...

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d] float32, each of length 1."""
        ...


class Clip:
    """A CLIP of open_clip."""

    def __init__(self, name: str, model: Any, prepare: Callable[[Image.Image], Tensor], tokenizer: Any) -> None:
        self.name = name
        self._model, self._prepare, self._tokenizer = model.eval().requires_grad_(False), prepare, tokenizer
        self._device = next(model.parameters()).device

    @property
    def weights(self) -> str:
        """A fingerprint of its weights."""
        return module_id(self._model)

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d] float32, each of length 1."""
        return _batched(pictures, lambda part: self._model.encode_image(self._pixels(part), normalize=True))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[n, d] float32, each of length 1."""
        return _batched(
            texts, lambda part: self._model.encode_text(self._tokenizer(list(part)).to(self._device), normalize=True)
        )

    @torch.no_grad()
    def maps(self, pictures: Sequence[Image.Image], layers: int = 4) -> list[Tensor]:
        """What the last `layers` blocks of the picture's tower, or all of fewer, say of every place: [n, d, h, w] each.

        Raises StudioError for a tower that is no vision transformer of open_clip.
        """
        if not hasattr(self._model.visual, "forward_intermediates"):
            raise StudioError(f"{self.name} does not tell what its layers see.", "Take a ViT, such as ViT-B-32.")
        tower = getattr(self._model.visual, "transformer", None)
        layers = min(layers, getattr(tower, "layers", layers))
        parts = [
            self._model.visual.forward_intermediates(
                self._pixels(pictures[at : at + _AT_ONCE]), indices=layers, intermediates_only=True
            )["image_intermediates"]
            for at in range(0, len(pictures), _AT_ONCE)
        ]
        return [torch.cat(layer).float().cpu() for layer in zip(*parts, strict=True)]

    def _pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        return torch.stack([self._prepare(picture) for picture in pictures]).to(self._device)


class Dino:
    """A DINO or DINOv2: the class token of transformers' model, or what timm's model pools."""

    def __init__(self, name: str, encode: Callable[[Sequence[Image.Image]], Tensor], model: Any) -> None:
        self.name, self._encode, self._model = name, encode, model

    @property
    def weights(self) -> str:
        """A fingerprint of its weights."""
        return module_id(self._model)

    @torch.no_grad()
    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[n, d] float32, each of length 1."""
        return _batched(pictures, lambda part: F.normalize(self._encode(part), dim=1))


def load_clip(where: str, device: str = "cpu") -> Clip:
    """The CLIP that `where` names: a folder with open_clip_config.json and weights; "MODEL=FILE", an architecture of
    open_clip and a file of its weights; "MODEL/TAG", one of open_clip's pretrained; or a hub id.

    Raises UsageError for what is not there, StudioError where the weights do not fit.
    """
    import open_clip

    model, equals, file = where.partition("=")
    architecture, slash, tag = where.partition("/")
    if Path(where).is_dir():
        name, weights = f"{_FOLDER}{Path(where).absolute()}", None
        _require(Path(where) / "open_clip_config.json")
    elif equals:
        name, weights = model, file
        _known(model, open_clip.list_models())
        _require(Path(file))
    elif slash and architecture in open_clip.list_models():
        name, weights = architecture, tag
        _known(tag, open_clip.list_pretrained_tags_by_model(architecture), f"pretrained {architecture}")
    elif slash:
        name, weights = f"{_HUB}{where.removeprefix(_HUB)}", None
    else:
        raise UsageError(
            f"{where!r} names no CLIP: there is no such folder.",
            "Give a folder in open_clip's layout, MODEL=FILE, MODEL/TAG, or a hub id such as"
            " laion/CLIP-ViT-B-32-laion2B-s34B-b79K.",
        )
    try:
        loaded: Any = open_clip.create_model_from_pretrained(name, weights, device=device)
        made, prepare = loaded
        told = Path(where).name if Path(where).is_dir() else where
        return Clip(told, made, prepare, open_clip.get_tokenizer(name))
    except (OSError, RuntimeError, ValueError) as error:
        raise StudioError(
            f"The CLIP {where} could not be loaded: {str(error).splitlines()[0]}",
            "Check that the weights are of that architecture, and that the hub can be reached or the files are cached.",
        ) from error


def embedded_clip() -> Clip:
    """The shipped CLIP of the picturebook world; raises StudioError where its weights are missing."""
    with as_file(files("studio.assets") / "clip") as folder:
        if not folder.is_dir():
            raise StudioError("The embedded CLIP is missing.", "Install the studio again: it is part of it.")
        return load_clip(str(folder))


def load_dino(where: str, device: str = "cpu") -> Dino:
    """The DINO that `where` names: a folder or hub id of transformers, such as facebook/dinov2-small, or
    "timm:MODEL=FILE" or "timm:MODEL" of timm.

    Raises UsageError for what is not there, StudioError where it cannot be loaded.
    """
    try:
        made = _timm(where.removeprefix(_TIMM), device) if where.startswith(_TIMM) else _transformers(where, device)
    except (OSError, RuntimeError, ValueError) as error:
        raise StudioError(
            f"The DINO {where} could not be loaded: {str(error).splitlines()[0]}",
            "Give a folder or hub id of transformers, or timm:MODEL=FILE; the hub may not be at hand.",
        ) from error
    return Dino(where, *made)


def _transformers(where: str, device: str) -> _Made:
    from transformers import AutoImageProcessor, AutoModel

    processor: Any = AutoImageProcessor.from_pretrained(where)
    model: Any = AutoModel.from_pretrained(where).eval().requires_grad_(False).to(device)

    def encode(pictures: Sequence[Image.Image]) -> Tensor:
        given = processor(images=[picture.convert("RGB") for picture in pictures], return_tensors="pt")
        return model(**given.to(device)).last_hidden_state[:, 0].float()

    return encode, model


def _timm(where: str, device: str) -> _Made:
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    name, _, file = where.partition("=")
    _known(name.partition(".")[0], timm.list_models())
    if file:
        _require(Path(file))
    overlay = {"file": file} if file else None
    model: Any = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    model = model.eval().requires_grad_(False).to(device)
    prepare: Any = create_transform(**resolve_data_config(model.pretrained_cfg))

    def encode(pictures: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([prepare(picture.convert("RGB")) for picture in pictures])
        return model(pixels.to(device)).float()

    return encode, model


def _batched(things: Sequence[Any], encode: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    parts = [encode(things[at : at + _AT_ONCE]).float().cpu() for at in range(0, len(things), _AT_ONCE)]
    return torch.cat(parts)


def _known(name: str, names: Sequence[str], what: str = "architecture") -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, 3)
        raise UsageError(
            f"There is no {what} {name!r}.", f"Did you mean {', '.join(near)}?" if near else f"One of {len(names)}."
        )


def _require(file: Path) -> None:
    if not file.is_file():
        raise UsageError(f"There is no file {file}.", "Give the path of the weights, or of a folder that has them.")
