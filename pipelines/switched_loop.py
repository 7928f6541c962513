"""The opponent of a benchmark: Composite as it is written with diffusers and PEFT, which switch adapters by module."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from diffusers.utils.torch_utils import randn_tensor

from studio.adapters import load_concept
from studio.attaching import teach_words
from studio.concepts import Concept, expand_prompt
from studio.hush import hushed
from studio.models import BaseModel
from studio.pipelines.schedulers import make_scheduler
from studio.pipelines.settings import GenerateSettings

Tensor = torch.Tensor


class SwitchedLoop:
    """Takes `base` for itself: its layers are wrapped by PEFT, with one adapter for each concept."""

    def __init__(self, base: BaseModel, concepts: Sequence[Concept]) -> None:
        self.base, self.concepts = base, concepts
        with hushed():
            for one in concepts:
                file = one.adapter_file
                base.pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=one.name)
                teach_words(base, load_concept(one), ExitStack())  # for good

    @torch.no_grad()
    def draw(self, settings: GenerateSettings) -> Tensor:
        """Latents [count, C, h, w]: in every step each adapter is set and asked, and their predictions are averaged."""
        base, scheduler = self.base, make_scheduler(self.base, settings.scheduler)
        scheduler.set_timesteps(settings.steps, device=base.device)
        width, height = settings.size_for(base.sizes)
        factor = base.pipe.vae_scale_factor
        generators = [torch.Generator("cpu").manual_seed(settings.seed + n) for n in range(settings.count)]
        shape = (settings.count, base.unet.config["in_channels"], height // factor, width // factor)
        latents = randn_tensor(shape, generators, base.device, base.dtype) * scheduler.init_noise_sigma
        texts = [self._read(one, settings) for one in self.concepts]
        for timestep in scheduler.timesteps:
            scaled = torch.cat([scheduler.scale_model_input(latents, timestep)] * 2)
            predictions = []
            for one, (embeds, added) in zip(self.concepts, texts, strict=True):
                base.pipe.set_adapters([one.name])
                predictions.append(base.unet(scaled, timestep, embeds, added_cond_kwargs=added, return_dict=False)[0])
            without, words = torch.stack(predictions).mean(0).chunk(2)
            guided = without + settings.guidance * (words - without)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return latents

    def _read(self, concept: Concept, settings: GenerateSettings) -> tuple[Tensor, dict[str, Tensor] | None]:
        base, count = self.base, settings.count
        base.pipe.set_adapters([concept.name])
        with hushed():
            words, without, *pooled = base.pipe.encode_prompt(
                prompt=expand_prompt(settings.prompt, self.concepts), device=base.device,
                num_images_per_prompt=count, do_classifier_free_guidance=True,
            )  # fmt: skip
        embeds = torch.cat([without, words])
        if not pooled:
            return embeds, None
        width, height = settings.size_for(base.sizes)
        ids = base.time_ids((height, width), (0, 0), (height, width))
        assert ids is not None
        return embeds, {"text_embeds": torch.cat([pooled[1], pooled[0]]), "time_ids": ids.expand(2 * count, -1)}
