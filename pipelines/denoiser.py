"""One prediction for many branches: who acts (a gate), on which words, all in as few forwards as memory allows."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from studio.bank import AdapterBank
from studio.errors import StudioError
from studio.gates import Gate
from studio.hush import hushed
from studio.models import BaseModel
from studio.pipelines.attention_bias import AttentionBias, BatchBias, BiasedRow
from studio.pipelines.compiled import CompiledBlocks
from studio.pipelines.feature_cache import FeatureCache
from studio.pipelines.probe import AttentionProbe, Maps
from studio.pipelines.text_cache import TextCache, TextRows

Tensor = torch.Tensor
CPU_ROWS, GPU_CELLS = 16, 64 * 64 * 64  # in a forward: on a GPU 64 pictures of 512 px, or 16 of 1024
_BATCHES = 4  # remembered: those of a step come again in the next one
_Row = tuple[int, int, int]  # of a batch: branch, condition, picture


@dataclass(frozen=True, eq=False)
class Text:
    """What a prompt and its negative became: embeds [2, N, C] and pooled [2, P], without words first; one row, with
    words, where there is no guidance."""

    embeds: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Branch:
    """One prediction: weights of the k adapters, the key of its text, masks [k, H, W] over the latents and [k, N] over
    the tokens of the words, or [2, k, N] over the negative ones and the words.

    Image masks [n, k, H, W] are each picture's own. Where `cached`, its deep features are those of the last step in
    which it was not. `columns` are the tokens of its words whose attention maps are wanted; `bias` says who may look
    at what.
    """

    weights: tuple[float, ...]
    text: str = "all"
    image: Tensor | None = None
    words: Tensor | None = None
    cached: bool = False
    columns: tuple[int, ...] = ()
    bias: AttentionBias | None = None


@dataclass(frozen=True)
class _Batch:
    """What the rows of a forward have in common with those of the next step; `made_from` keeps its ids alive."""

    embeds: Tensor
    added: dict[str, Tensor] | None
    gate: Gate
    bias: BatchBias
    text: TextCache
    made_from: list[Any]


class _TextRow(NamedTuple):
    """All that decides keys and values of a row's text; objects, not their ids, so that these stay theirs."""

    text: Text
    condition: int
    weights: tuple[float, ...]
    words: Tensor | None
    version: tuple[int, int] | None
    layers: tuple[str, ...] | None


def usual_rows(device: torch.device, latents: Tensor) -> int:
    """How many rows a forward takes at most, of latents [n, C, H, W], where nothing else is said."""
    return CPU_ROWS if device.type == "cpu" else max(1, GPU_CELLS // (latents.shape[2] * latents.shape[3]))


class Denoiser:
    """Asks the UNet of `base` for branches, with the adapters of `bank` installed.

    `forwards` counts calls of the UNet, `rows` the samples in full ones and `cached_rows` those in cached ones, for
    which `features` must be there; `looks` and `looked` count the same of `look`. Where `layers` are named by their
    endings, the adapters leave all other layers of the UNet alone. Keys and values of the texts are computed once where
    `keep_text`; then forwards without gradients go through the `compiled` blocks, where there are any, but for those
    that show their attention or keep regions apart. Where there is a `probe`, `maps` are what it read in the last
    prediction, one a branch, of the words (not of the negative ones). A forward takes `max_rows`, or as many as usual.
    A UNet that takes the guidance scale as an input is `told` it, as a vector [1, W].
    """

    keep_text = True

    def __init__(self, base: BaseModel, bank: AdapterBank, guided: bool) -> None:
        self.base, self.bank, self.guided = base, bank, guided
        self.max_rows: int | None = None
        self.told: Tensor | None = None
        self.texts: dict[str, Text] = {}
        self.layers: tuple[str, ...] | None = None
        self.features: FeatureCache | None = None
        self.probe: AttentionProbe | None = None
        self.compiled: CompiledBlocks | None = None
        self.maps: list[Maps] = []
        self.forwards = self.rows = self.cached_rows = self.looks = self.looked = 0
        self._batches: dict[Any, _Batch] = {}
        self._text_rows = TextRows()

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
        """[branches, 1 or 2, n, C, H, W] for scaled `latents` [n, C, H, W]; without words first where guided.

        Cached branches are told apart by their place among `branches`; raises StudioError for one that was never
        asked for in full with these latents' shape.
        """
        n, conditions = len(latents), 2 if self.guided else 1
        rows = [(b, c, i) for b in range(len(branches)) for c in range(conditions) for i in range(n)]
        groups = [[row for row in rows if branches[row[0]].cached is cached] for cached in (False, True)]
        most = self.max_rows or usual_rows(self.base.device, latents)
        chunks = [group[at : at + most] for group in groups for at in range(0, len(group), most)]
        order = [row for chunk in chunks for row in chunk]
        with ExitStack() as block:
            read = None
            if self.probe is not None:
                read = block.enter_context(self.probe.reading(self._columns(branches, order)))
            found = torch.cat([self._forward(latents, timestep, branches, chunk) for chunk in chunks])
        if read is not None:
            self.maps = self._by_branch(read, branches, order)
        if order != rows:
            found = found[sorted(range(len(rows)), key=order.__getitem__)]
        return found.unflatten(0, (len(branches), conditions, n))

    def look(
        self, latents: Tensor, timestep: Tensor, branches: Sequence[Branch], probe: AttentionProbe | None = None
    ) -> list[Maps]:
        """What the `probe`, or that of all predictions, reads of each branch, n rows each, for its words alone; no
        prediction is finished for it."""
        probe = probe or self.probe
        assert probe is not None
        rows = [(b, 1 if self.guided else 0, i) for b in range(len(branches)) for i in range(len(latents))]
        parts = []
        most = self.max_rows or usual_rows(self.base.device, latents)
        for chunk in (rows[at : at + most] for at in range(0, len(rows), most)):
            self.looks, self.looked = self.looks + 1, self.looked + len(chunk)
            with probe.reading(self._columns(branches, chunk), stop=True) as read:
                self._forward(latents, timestep, branches, chunk, whole=False)
            parts.append(read)
        return self._by_branch(Maps.joined(parts), branches, rows)

    def _columns(self, branches: Sequence[Branch], rows: list[_Row]) -> Tensor:
        """[rows, C], token 0 where a branch wants fewer than another."""
        most = max(len(branch.columns) for branch in branches)
        padded = [(*branch.columns, *[0] * (most - len(branch.columns))) for branch in branches]
        return torch.tensor([padded[b] for b, _, _ in rows], dtype=torch.long)

    def _by_branch(self, maps: Maps, branches: Sequence[Branch], rows: list[_Row]) -> list[Maps]:
        place = {row: n for n, row in enumerate(rows)}
        words, n = 1 if self.guided else 0, 1 + max(i for _, _, i in rows)
        return [
            maps.pick([place[b, words, i] for i in range(n)], len(branch.columns)) for b, branch in enumerate(branches)
        ]

    def _forward(
        self, latents: Tensor, timestep: Tensor, branches: Sequence[Branch], rows: list[_Row], whole: bool = True
    ) -> Tensor:
        batch = self._batch(latents, branches, rows)
        with ExitStack() as block:
            if whole:
                self._reckon(latents, branches, rows, block)
            block.enter_context(self.bank.use(batch.gate))
            compiled = self.compiled if whole and self._unseen(batch) else None
            readers = () if compiled is None else compiled.readers
            block.enter_context(batch.bias.over(self.base.unet, readers))
            if self.keep_text:
                block.enter_context(batch.text.over(self.base.unet, readers))
            if compiled is not None:
                size = (latents.shape[2], latents.shape[3])
                block.enter_context(compiled.over(size, self.bank.gate, batch.bias, batch.text))
            return self.base.unet(
                latents[[i for _, _, i in rows]],
                timestep,
                encoder_hidden_states=batch.embeds,
                timestep_cond=self.told,
                added_cond_kwargs=batch.added,
                return_dict=False,
            )[0]

    def _unseen(self, batch: _Batch) -> bool:
        """Whether nothing looks into the forward, and all that acts in it is data."""
        return self.keep_text and self.probe is None and batch.bias.simple and not torch.is_grad_enabled()

    def _reckon(self, latents: Tensor, branches: Sequence[Branch], rows: list[_Row], block: ExitStack) -> None:
        """Count the rows, and let the cache of features take part in the forward of `block`."""
        cached, keys = branches[rows[0][0]].cached, [(b, branches[b].text, c, i, *latents.shape) for b, c, i in rows]
        if cached and self.features is None:
            raise StudioError("A branch is to be cached, but there is no cache of features.", "Set `features` first.")
        if self.features is not None:
            block.enter_context(self.features.reusing(keys) if cached else self.features.storing(keys))
        self.forwards += 1
        self.rows, self.cached_rows = self.rows + len(rows) * (not cached), self.cached_rows + len(rows) * cached

    def _batch(self, latents: Tensor, branches: Sequence[Branch], rows: list[_Row]) -> _Batch:
        """Texts and gate of the rows: those of an earlier step where they are made from the same."""
        chosen = [(branches[b], self.texts[branches[b].text], c, i) for b, c, i in rows]
        key = (
            *latents.shape,
            self.layers,
            *(
                (id(text), c, i, b.weights, _version(b.image), _version(b.words), b.bias and b.bias.version)
                for b, text, c, i in chosen
            ),
        )
        if key in self._batches:
            self._batches[key] = self._batches.pop(key)
        else:
            embeds = torch.stack([text.embeds[c] for _, text, c, _ in chosen])
            added = None
            if chosen[0][1].pooled is not None:
                height, width = (side * self.base.pipe.vae_scale_factor for side in latents.shape[2:])
                ids: Any = self.base.time_ids((height, width), (0, 0), (height, width))
                pooled = [text.pooled[c] for _, text, c, _ in chosen if text.pooled is not None]
                added = {"text_embeds": torch.stack(pooled), "time_ids": ids.expand(len(rows), -1)}
            gate = self._gate([(b, c, i) for b, _, c, i in chosen], latents, embeds.shape[1])
            last = 1 if self.guided else 0
            biased = [BiasedRow(b.bias, i, c == last) for b, _, c, i in chosen]
            bias = BatchBias(biased, (latents.shape[2], latents.shape[3]), latents)
            keys = [_TextRow(text, c, b.weights, b.words, _version(b.words), self.layers) for b, text, c, _ in chosen]
            self._batches = dict(list(self._batches.items())[1 - _BATCHES :])
            self._batches[key] = _Batch(embeds, added, gate, bias, TextCache(embeds, keys, self._text_rows), chosen)
        return self._batches[key]

    def _gate(self, rows: list[tuple[Branch, int, int]], latents: Tensor, tokens: int) -> Gate:
        def like(make: Any) -> Tensor:
            return make.to(latents.device, latents.dtype)

        weights = like(torch.tensor([branch.weights for branch, _, _ in rows]))
        image = text = None
        everywhere = torch.ones(self.bank.count, *latents.shape[2:])
        if any(branch.image is not None for branch, _, _ in rows):
            image = like(torch.stack([everywhere if b.image is None else _own(b.image, i) for b, _, i in rows]))
        if any(branch.words is not None for branch, _, _ in rows):
            text = like(torch.stack([self._words(branch, condition, tokens) for branch, condition, _ in rows]))
        return Gate(weights, image, text, self.layers)

    def _words(self, branch: Branch, condition: int, tokens: int) -> Tensor:
        """The mask [k, N] of a branch's negative words or words; ones where it has none for them."""
        if branch.words is not None and branch.words.dim() == 3:
            return branch.words[condition]
        last = 1 if self.guided else 0
        return torch.ones(self.bank.count, tokens) if branch.words is None or condition != last else branch.words


def _version(mask: Tensor | None) -> tuple[int, int] | None:
    """Another one for another mask, and after a change in place."""
    return None if mask is None else (id(mask), mask._version)


def _own(mask: Tensor, picture: int) -> Tensor:
    return mask if mask.dim() == 3 else mask[picture]
