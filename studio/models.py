"""Loading a base model, frozen, and asking it for text states and size conditions."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.bases import (
    ALIASES,
    EMBEDDED,
    BaseSource,
    Sizes,
    config_folder,
    embedded_folder,
    find_base,
    index_family,
    sizes,
    stated_prediction,
)
from studio.devices import pick_device, pick_dtype
from studio.errors import StudioError, UsageError
from studio.hush import hushed
from studio.spans import rows_spelled

with hushed():  # whose module has installed the torchvision guard
    import diffusers
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

__all__ = ["BaseModel", "BaseSource", "TextStates", "find_base", "load_base", "module_id"]

_SAMPLED = 4096

# One of the two classes below, and their samplers: the annotations of diffusers are narrower than its code.
Pipeline = Any
Scheduler = Any
_CLASSES: dict[str, Any] = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
_NOT_NEEDED: dict[str, Any] = {"feature_extractor": None, "image_encoder": None}
_CONFIG_FILES = ["model_index.json", "*/*.json", "*/*.txt"]


@dataclass(frozen=True)
class TextStates:
    """Text as the UNet reads it: `embeds` [B, N, C], and for SDXL `pooled` [B, P]."""

    embeds: torch.Tensor
    pooled: torch.Tensor | None


@dataclass(frozen=True)
class BaseModel:
    """A loaded base, in evaluation mode, none of its weights trainable."""

    source: BaseSource
    pipe: Pipeline
    device: torch.device
    dtype: torch.dtype

    @property
    def family(self) -> str:
        """Either "sd15" or "sdxl"."""
        return self.source.family

    @property
    def unet(self) -> diffusers.UNet2DConditionModel:
        """The denoising network."""
        return self.pipe.unet

    @property
    def vae(self) -> diffusers.AutoencoderKL | diffusers.AutoencoderTiny:
        """The picture coder, of either kind."""
        return self.pipe.vae

    @property
    def scheduler(self) -> Scheduler:
        """The base's own noise schedule and sampler."""
        return self.pipe.scheduler

    @property
    def tokenizers(self) -> list[Any]:
        """One for SD1.5, two for SDXL, in the order of the text encoders."""
        return self._both("tokenizer")

    @property
    def text_encoders(self) -> list[torch.nn.Module]:
        """One for SD1.5, two for SDXL."""
        return self._both("text_encoder")

    @property
    def sizes(self) -> Sizes:
        """The sizes in pixels that the base draws."""
        return sizes(self.unet.config, self.vae.config)

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height in pixels of the pictures that the base was trained on."""
        return self.sizes.native

    @property
    def guidance_width(self) -> int | None:
        """How many numbers tell the UNet the guidance scale, where it was distilled to predict guided at once."""
        return self.unet.config.get("time_cond_proj_dim")

    @property
    def text_limit(self) -> int:
        """How many tokens of a text the base reads, its beginning and end marks among them."""
        return min(tokenizer.model_max_length for tokenizer in self.tokenizers)

    def unread(self, prompt: str) -> str:
        """The words of `prompt` beyond the limit of the first tokenizer, which have no effect; mostly none."""
        tokenizer = self.tokenizers[0]
        text = rows_spelled(prompt, tokenizer)
        with hushed():
            places = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        beyond = places[self.text_limit - 1 : -1]
        return text[beyond[0][0] :].strip() if beyond else ""

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextStates:
        """Exactly what the diffusers pipeline makes of `prompts`, without the unconditional half."""
        return self.read(prompts)

    def read(self, prompts: list[str]) -> TextStates:
        """The same, and gradients flow to what of the text encoders is trained."""
        with hushed():  # what is cut off, `unread` tells
            encoded = self.pipe.encode_prompt(
                prompt=prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        return TextStates(encoded[0], encoded[2] if self.family == "sdxl" else None)

    def time_ids(
        self, original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]
    ) -> torch.Tensor | None:
        """SDXL's size condition [6]: original (h, w), crop (top, left), target (h, w) in pixels; None for SD1.5."""
        if self.family != "sdxl":
            return None
        return torch.tensor([*original, *crop, *target], device=self.device, dtype=self.dtype)

    def weights_id(self) -> str:
        """A name for all that turns a prompt into a picture here: every network's weights, and the noise schedule."""
        networks = [module_id(part) for part in (self.unet, self.vae, *self.text_encoders)]
        said = {key: value for key, value in self.scheduler.config.items() if not key.startswith("_")}
        schedule = json.dumps([type(self.scheduler).__name__, said], sort_keys=True, default=str)
        return hashlib.sha256("".join([*networks, schedule]).encode()).hexdigest()

    def _both(self, part: str) -> list[Any]:
        parts = [getattr(self.pipe, part), getattr(self.pipe, f"{part}_2", None)]
        return [one for one in parts if one is not None]


def load_base(
    source: BaseSource, device: str | None = None, dtype: torch.dtype | None = None, offload: bool = False
) -> BaseModel:
    """Load `source`; `offload` keeps on an accelerator only the part that is at work.

    On a CPU always computes in float32, whatever `dtype` says. Raises UsageError for a device that is not there,
    StudioError where the files cannot be loaded.
    """
    place = pick_device(device)
    if offload and place.type == "cpu":
        raise UsageError("Offloading moves weights off an accelerator; this is a CPU.", "Leave out --offload.")
    precision = pick_dtype(place) if dtype is None or place.type == "cpu" else dtype
    with hushed():
        pipe = _read(source, precision)
    pipe.set_progress_bar_config(disable=True)
    for part in (one for one in pipe.components.values() if isinstance(one, torch.nn.Module)):
        part.eval().requires_grad_(False)
    if isinstance(pipe.vae, diffusers.AutoencoderTiny):  # diffusers takes its factor for 8, and tiles it wrongly
        pipe.vae.spatial_scale_factor = pipe.vae_scale_factor
        pipe.vae.tile_latent_min_size = pipe.vae.tile_sample_min_size // pipe.vae_scale_factor
    if offload:
        pipe.enable_model_cpu_offload(device=place)
    else:
        pipe.to(place)
    return BaseModel(source, pipe, place, precision)


def wrap_pipe(pipe: Pipeline) -> BaseModel:
    """The base that a loaded diffusers pipeline is, in the pipeline's own precision and on its own device.

    Raises UsageError for another family, and for a pipeline that would not compute as the base alone.
    """
    kinds = [kind.__name__ for kind in _CLASSES.values()]
    if type(pipe).__name__ not in kinds:
        raise UsageError(
            f"A {type(pipe).__name__} is no base.",
            f"Give a {' or a '.join(kinds)}; their from_pipe makes one of yours.",
        )
    location = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
    name = EMBEDDED if Path(location).resolve() == embedded_folder().resolve() else location
    family = index_family(name, {"_class_name": type(pipe).__name__}, pipe.unet.config)
    if any(getattr(part, "peft_config", None) for part in pipe.components.values()):
        raise UsageError(
            "The pipeline has adapters of its own loaded.",
            "Take them out (pipe.unload_lora_weights()), and add them as concepts.",
        )
    if pipe.unet.device.type == "meta":
        raise UsageError(
            "The pipeline's weights are offloaded one by one.", "Use pipe.enable_model_cpu_offload(), or none."
        )
    return BaseModel(BaseSource(name, location, "folder", family), pipe, pipe._execution_device, pipe.unet.dtype)


def _read(source: BaseSource, dtype: torch.dtype) -> Pipeline:
    extra = {"safety_checker": None, "requires_safety_checker": False} if source.family == "sd15" else {}
    extra |= {**_NOT_NEEDED, "dtype": dtype}
    kind = _CLASSES[source.family]
    try:
        if source.layout == "single-file":
            pipe = kind.from_single_file(source.location, config=_single_file_config(source), **extra)
            return _with_stated_prediction(pipe, source)
        folder = source.location if source.layout == "folder" else _download(source, dtype)
        half_only = not any(path for path in Path(folder, "unet").glob("*.safetensors") if ".fp16." not in path.name)
        return kind.from_pretrained(folder, use_safetensors=True, variant="fp16" if half_only else None, **extra)
    except (OSError, ValueError, RuntimeError) as error:
        raise StudioError(
            f"The base {source.name!r} cannot be loaded: {error}", "Download or save the base again."
        ) from error


def _download(source: BaseSource, dtype: torch.dtype) -> str:
    """The hub's files in its cache; of two precisions only the one that is needed, or the one that is there."""
    failed: Exception | None = None
    for variant in ("fp16", None) if dtype == torch.float16 else (None, "fp16"):
        try:
            return str(
                diffusers.DiffusionPipeline.download(
                    source.location, use_safetensors=True, variant=variant, safety_checker=None, **_NOT_NEEDED
                )
            )
        except (OSError, ValueError) as error:
            failed = error
            if type(error) not in (OSError, ValueError) or error.__cause__ is not None:  # those of the network
                raise StudioError(
                    f"The base {source.name!r} ({source.location}) cannot be fetched: {error}",
                    f"Check the network, or run once: huggingface-cli download {source.location}",
                ) from error
    raise StudioError(
        f"The base {source.name!r} ({source.location}) has no complete weights as safetensors.",
        "Choose one whose networks are there as .safetensors or as .fp16.safetensors.",
    ) from failed


def _single_file_config(source: BaseSource) -> str:
    """A folder with configurations and tokenizers for a file that holds only weights.

    The folder of the same name beside the file, else those of the family's first model, from the hub or its cache.
    """
    beside = config_folder(source)
    if beside is not None:
        return str(beside)
    from huggingface_hub import snapshot_download

    hub_id = ALIASES[source.family]
    try:
        folder = snapshot_download(hub_id, allow_patterns=_CONFIG_FILES)
        tokenizers = ["tokenizer", "tokenizer_2"] if source.family == "sdxl" else ["tokenizer"]
        if all(any(Path(folder, name).glob("*.json")) for name in tokenizers):
            return folder
    except OSError:
        pass
    target = Path(source.location).with_suffix("")
    raise StudioError(
        f"{source.location} holds weights only; its tokenizer and configurations are neither here nor on the hub.",
        f"Where there is a network, fetch them (5 MB) into the folder of the file's name beside it: huggingface-cli"
        f" download {hub_id} --include model_index.json '*/*.json' '*/*.txt' --local-dir {target}",
    )


def _with_stated_prediction(pipe: Pipeline, source: BaseSource) -> Pipeline:
    if stated := stated_prediction(source):
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(dict(pipe.scheduler.config) | stated)
    return pipe


def module_id(module: torch.nn.Module) -> str:
    """A name for a module's exact weights, from up to 4096 evenly spaced numbers of each tensor: hex, 64 digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLED)].float().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
