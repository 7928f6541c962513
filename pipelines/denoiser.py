"""One prediction for many branches: who acts (a gate), on which words, all in as few forwards as memory allows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studio.bank import AdapterBank
from studio.gates import Gate
from studio.hush import hushed
from studio.models import BaseModel

Tensor = torch.Tensor
CPU_ROWS, GPU_ROWS = 16, 64


@dataclass(frozen=True)
class Text:
    """What a prompt and its negative became: embeds [2, N, C] and pooled [2, P], without words first; one row, with
    words, where there is no guidance."""

    embeds: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Branch:
    """One prediction: weights of the k adapters, the key of its text, masks [k, H, W] over the latents and [k, N] over
    the tokens of the words (not of the negative ones)."""

    weights: tuple[float, ...]
    text: str = "all"
    image: Tensor | None = None
    words: Tensor | None = None


class Denoiser:
    """Asks the UNet of `base` for branches, with the adapters of `bank` installed.

    `forwards` counts calls of the UNet, `rows` the samples in them.
    """

    def __init__(self, base: BaseModel, bank: AdapterBank, guided: bool, max_rows: int | None = None) -> None:
        self.base, self.bank, self.guided = base, bank, guided
        self.max_rows = max_rows or (CPU_ROWS if base.device.type == "cpu" else GPU_ROWS)
        self.texts: dict[str, Text] = {}
        self.forwards = self.rows = 0

    @torch.no_grad()
    def read(self, key: str, prompt: str, negative: str, weights: Sequence[float]) -> None:
        """Encode a text under `key`, each adapter acting on the text encoders with its weight."""
        gate = Gate(torch.tensor([weights], device=self.base.device, dtype=self.base.dtype))
        with hushed(), self.bank.use(gate):
            found: Any = self.base.pipe.encode_prompt(
                prompt=prompt,
                negative_prompt=negative or None,
                device=self.base.device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=self.guided,
            )
        with_words, without = found[0], found[1]
        pooled = (found[2], found[3]) if self.base.family == "sdxl" else (None, None)
        if not self.guided:
            self.texts[key] = Text(with_words, pooled[0])
            return
        both = None if pooled[0] is None else torch.cat([pooled[1], pooled[0]])
        self.texts[key] = Text(torch.cat([without, with_words]), both)

    def predict(self, latents: Tensor, timestep: Tensor, branches: Sequence[Branch]) -> Tensor:
        """[branches, 1 or 2, n, C, H, W] for scaled `latents` [n, C, H, W]; without words first where guided."""
        n, conditions = len(latents), 2 if self.guided else 1
        rows = [(b, c, i) for b in range(len(branches)) for c in range(conditions) for i in range(n)]
        parts = [
            self._forward(latents, timestep, branches, rows[start : start + self.max_rows])
            for start in range(0, len(rows), self.max_rows)
        ]
        return torch.cat(parts).unflatten(0, (len(branches), conditions, n))

    def _forward(
        self, latents: Tensor, timestep: Tensor, branches: Sequence[Branch], rows: list[tuple[int, int, int]]
    ) -> Tensor:
        texts = [self.texts[branches[b].text] for b, _, _ in rows]
        embeds = torch.stack([text.embeds[c] for text, (_, c, _) in zip(texts, rows, strict=True)])
        added = None
        if texts[0].pooled is not None:
            height, width = (side * self.base.pipe.vae_scale_factor for side in latents.shape[2:])
            ids: Any = self.base.time_ids((height, width), (0, 0), (height, width))
            pooled = [text.pooled[c] for text, (_, c, _) in zip(texts, rows, strict=True) if text.pooled is not None]
            added = {"text_embeds": torch.stack(pooled), "time_ids": ids.expand(len(rows), -1)}
        self.forwards, self.rows = self.forwards + 1, self.rows + len(rows)
        with self.bank.use(self._gate([(branches[b], c) for b, c, _ in rows], latents, embeds.shape[1])):
            return self.base.unet(
                latents[[i for _, _, i in rows]],
                timestep,
                encoder_hidden_states=embeds,
                added_cond_kwargs=added,
                return_dict=False,
            )[0]

    def _gate(self, rows: list[tuple[Branch, int]], latents: Tensor, tokens: int) -> Gate:
        def like(make: Any) -> Tensor:
            return make.to(latents.device, latents.dtype)

        weights = like(torch.tensor([branch.weights for branch, _ in rows]))
        image = text = None
        everywhere = torch.ones(self.bank.count, *latents.shape[2:])
        if any(branch.image is not None for branch, _ in rows):
            image = like(torch.stack([everywhere if b.image is None else b.image for b, _ in rows]))
        if any(branch.words is not None for branch, _ in rows):
            ones, last = torch.ones(self.bank.count, tokens), 1 if self.guided else 0
            text = like(torch.stack([ones if b.words is None or c != last else b.words for b, c in rows]))
        return Gate(weights, image, text)
