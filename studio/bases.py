"""Which base model is meant by a name, and whether the studio can work with it: cheap checks, no torch."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from studio.errors import StudioError, UsageError
from studio.tensorfile import Header, read_header

Family = Literal["sd15", "sdxl"]
Layout = Literal["folder", "single-file", "hub"]
Role = Literal["content", "style"]

FAMILY_NAMES: dict[str, str] = {"sd15": "Stable Diffusion 1.5", "sdxl": "Stable Diffusion XL"}
ALIASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
EMBEDDED = "picturebook"
FACTS_FILE = "studio_base.json"  # what a base says of itself
# The blocks of the UNet that carry one and little of the other (Frenkel et al. 2024).
SDXL_BLOCKS: dict[Role, str] = {"content": "up_blocks.0.attentions.0", "style": "up_blocks.0.attentions.1"}
PARTS = {"sd15": ("unet", "vae", "text_encoder"), "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2")}
_PIPELINES: dict[str, Family] = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl"}
_OTHER_PIPELINES = {
    "StableDiffusionXLImg2ImgPipeline": "SDXL refiner",
    "StableDiffusionInpaintPipeline": "Stable Diffusion inpainting",
    "StableDiffusionXLInpaintPipeline": "SDXL inpainting",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "FluxPipeline": "Flux",
}
_UNET = "model.diffusion_model."
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
# The key and value projections of the first cross-attention: SD levels begin with it, SDXL's one level later.
_FIRST_CROSS = tuple(f"{_UNET}input_blocks.{n}.1.transformer_blocks.0.attn2.to_k.weight" for n in (1, 2, 4, 5))
_REFUSED_KEYS = {
    "joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux",
    "conditioner.embedders.0.model.": "SDXL refiner",
    "control_model.": "ControlNet",
    "edm_mean": "Playground 2.5",
}


@dataclass(frozen=True)
class BaseSource:
    """A base that was found: `location` is a folder, a file or a hub id."""

    name: str
    location: str
    layout: Layout
    family: Family

    @property
    def lasting(self) -> str:
        """Its name as it holds from every working directory."""
        known = self.layout == "hub" or self.name == EMBEDDED
        return self.name if known else str(Path(self.location).absolute())


def find_base(name: str) -> BaseSource:
    """The base called `name`: "picturebook", an alias, a diffusers folder, a .safetensors file, or a hub id.

    Reads configuration files and tensor names only. Raises UsageError for what is unknown or unsupported,
    StudioError where the embedded base is not there as a whole.
    """
    if name == EMBEDDED:
        return _embedded()
    path = Path(name).expanduser()
    if path.is_dir():
        return _in_folder(name, path)
    if path.is_file():
        return BaseSource(name, str(path), "single-file", _file_family(name, read_header(path)))
    hub_id = ALIASES.get(name, name)
    if hub_id.count("/") == 1 and not hub_id.startswith((".", "/", "~")) and path.suffix != ".safetensors":
        return _on_hub(name, hub_id)
    raise unknown_base(name)


@dataclass(frozen=True)
class Sizes:
    """`native`: (width, height) in pixels that a base was trained on; `step`: sizes are multiples of it; `factor`:
    pixels to a side of one latent."""

    native: tuple[int, int]
    step: int
    factor: int = 8


def sizes(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> Sizes:
    """The sizes that follow from the two configurations.

    The step is the VAE's factor times the UNet's, and at least the 8 pixels on which the diffusers pipelines insist.
    """
    factor = 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)
    size = unet["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    levels = len(unet["block_out_channels"])
    return Sizes((width * factor, height * factor), max(8, factor * 2 ** (levels - 1)), factor)


def source_sizes(source: BaseSource) -> Sizes:
    """The sizes of `source`, without loading it; where there is no configuration at hand, its family's."""
    folder = config_folder(source)
    if folder is None:
        return Sizes((1024, 1024), 32) if source.family == "sdxl" else Sizes((512, 512), 64)
    return sizes(_read_json(folder / "unet" / "config.json"), _read_json(folder / "vae" / "config.json"))


def role_blocks(source: BaseSource) -> dict[Role, str]:
    """Which block of the UNet of `source` carries content, and which style: as the base says of itself, else as SDXL.

    Raises UsageError for a family of which no such blocks are known.
    """
    facts = Path(source.location) / FACTS_FILE
    if source.layout == "folder" and facts.is_file() and (own := _read_json(facts).get("blocks")):
        return {"content": own["content"], "style": own["style"]}
    if source.family != "sdxl":
        raise UsageError(
            f"Of {FAMILY_NAMES[source.family]} no block is known to carry content or style alone.",
            f"Use a base of {FAMILY_NAMES['sdxl']}, or let the style ride along: studio compose --style NAME",
        )
    return SDXL_BLOCKS


def config_folder(source: BaseSource) -> Path | None:
    """The local folder with the configurations of `source`; for a single file, that of the same name beside it."""
    if source.layout == "hub":
        return None
    path = Path(source.location)
    folder = path.with_suffix("") if source.layout == "single-file" else path
    return folder if (folder / "model_index.json").is_file() else None


def scheduler_config(source: BaseSource) -> dict[str, Any]:
    """The configuration of the scheduler of `source`, without loading it; of a single file, what it says of itself.

    Raises UsageError where it cannot be read.
    """
    place = Path("scheduler", "scheduler_config.json")
    if source.layout == "hub":
        from huggingface_hub import hf_hub_download

        try:
            return _read_json(Path(hf_hub_download(source.location, place.as_posix())))
        except OSError as error:
            raise UsageError(
                f"What the base {source.name!r} predicts is neither in the hub's cache nor, now, on the hub.",
                f"Check the network, or run once: huggingface-cli download {source.location} {place.as_posix()}",
            ) from error
    folder = config_folder(source)
    config = {} if folder is None else _read_json(folder / place)
    return config | (stated_prediction(source) if source.layout == "single-file" else {})


def stated_prediction(source: BaseSource) -> dict[str, Any]:
    """What a single file says of its schedule by the empty tensors `v_pred` and `ztsnr`, as some fine-tunes do."""
    shapes = read_header(Path(source.location)).shapes
    if "v_pred" not in shapes:
        return {}
    zero_snr = "ztsnr" in shapes
    return {
        "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": zero_snr,
    }  # fmt: skip


def unknown_base(name: str) -> UsageError:
    """The error for a base that is nowhere, with near names."""
    near = [one for one in difflib.get_close_matches(name, [EMBEDDED, *ALIASES], n=1) if one != name]
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return UsageError(
        f"There is no base model {name!r}.",
        f"{hint}A base is {EMBEDDED!r}, 'sd15', 'sdxl', a hub id such as 'owner/model', a diffusers folder,"
        " or one .safetensors file.",
    )


def embedded_folder() -> Path:
    """Where the base that comes with the studio lies."""
    return Path(str(files("studio.assets"))) / EMBEDDED


def _embedded() -> BaseSource:
    folder = embedded_folder()
    if not (folder / "model_index.json").is_file():
        raise StudioError(
            f"The base {EMBEDDED!r} that comes with the studio is missing: there is no {folder}.",
            "Install the studio again, or train the base: python -m studio.trainers.picturebook",
        )
    try:
        return _in_folder(EMBEDDED, folder)
    except UsageError as error:
        raise StudioError(error.problem, "Install the studio again: this base is part of it.") from error


def _in_folder(name: str, folder: Path) -> BaseSource:
    if not (folder / "model_index.json").is_file():
        raise UsageError(
            f"The base {name!r} ({folder}) has no model_index.json.",
            "Give a folder in diffusers layout (as written by save_pretrained), or one .safetensors file.",
        )
    index, unet = _read_json(folder / "model_index.json"), folder / "unet"
    family = index_family(name, index, _read_json(unet / "config.json") if unet.is_dir() else {})
    for part in PARTS[family]:
        if not any((folder / part).glob("*.safetensors")):
            raise UsageError(
                f"The base {name!r} has no .safetensors weights in {folder / part}.",
                "Pickled weights (.bin) can run code when opened and are not read: save the base as safetensors.",
            )
    for file in _small_files(folder, family):
        if not (folder / file).is_file():
            raise UsageError(f"The base {name!r} ({folder}) has no {file}.", "Download or save the base again.")
    return BaseSource(name, str(folder), "folder", family)


def _small_files(folder: Path, family: Family) -> list[str]:
    """What a base needs beside weights: without it some parts load as something else. An old tokenizer is two files."""
    files = [f"{part}/config.json" for part in PARTS[family]] + ["scheduler/scheduler_config.json"]
    tokenizers = [folder / part.replace("text_encoder", "tokenizer") for part in PARTS[family][2:]]
    old = [one for one in tokenizers if all((one / file).is_file() for file in ("vocab.json", "merges.txt"))]
    return files + [f"{one.name}/tokenizer.json" for one in tokenizers if one not in old]


def _on_hub(name: str, hub_id: str) -> BaseSource:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        index = _read_json(Path(hf_hub_download(hub_id, "model_index.json")))
        unet = _read_json(Path(hf_hub_download(hub_id, "unet/config.json"))) if "unet" in index else {}
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        problem = unknown_base(name)
        raise UsageError(
            f"The base {name!r} is neither here nor, as {hub_id!r}, on the hub or in its cache ({reason}).",
            problem.remedy,
        ) from error
    return BaseSource(name, hub_id, "hub", index_family(name, index, unet))


def index_family(name: str, index: Mapping[str, Any], unet: Mapping[str, Any]) -> Family:
    """The family of a pipeline by its model_index.json and its UNet's configuration.

    Raises UsageError, naming the base `name`, for one that the studio does not support.
    """
    kind = str(index.get("_class_name"))
    if kind not in _PIPELINES:
        raise _unsupported(name, _OTHER_PIPELINES.get(kind, kind))
    family = _PIPELINES[kind]
    if unet.get("in_channels", 4) != 4:
        raise _unsupported(name, f"{FAMILY_NAMES[family]} inpainting or editing")
    if family == "sd15" and unet.get("cross_attention_dim") == 1024:
        raise _unsupported(name, "Stable Diffusion 2")
    return family


def _file_family(name: str, header: Header) -> Family:
    shapes = header.shapes
    for part, kind in _REFUSED_KEYS.items():
        if any(key.removeprefix(_UNET).startswith(part) for key in shapes):
            raise _unsupported(name, kind)
    cross = next((shapes[key] for key in _FIRST_CROSS if key in shapes), None)
    if cross is None or _CONV_IN not in shapes:
        raise UsageError(
            f"{name} does not hold a Stable Diffusion model in its original layout.",
            "Give a whole checkpoint (UNet, VAE and text encoders in one file), not a LoRA, a VAE or a single part.",
        )
    family: Family = "sdxl" if f"{_UNET}label_emb.0.0.weight" in shapes else "sd15"
    if shapes[_CONV_IN][1] != 4:
        raise _unsupported(name, f"{FAMILY_NAMES[family]} inpainting or editing")
    if family == "sd15" and cross[-1] == 1024:
        raise _unsupported(name, "Stable Diffusion 2")
    for part in ("first_stage_model.", "conditioner." if family == "sdxl" else "cond_stage_model."):
        if not any(key.startswith(part) for key in shapes):
            raise UsageError(
                f"{name} holds no {part.rstrip('.')} weights: it is only a part of a base.",
                "Give a whole checkpoint (UNet, VAE and text encoders in one file), or a diffusers folder.",
            )
    return family


def _unsupported(name: str, kind: str) -> UsageError:
    return UsageError(
        f"The base {name!r} is of the family {kind}, which the studio does not support.",
        f"Use a base of {' or '.join(FAMILY_NAMES.values())}, or a fine-tune of them.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Download or save the base again.") from error
