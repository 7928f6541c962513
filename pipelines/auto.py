"""`auto`, what we recommend: every adapter on its own words, and where its concept is; at the end each by itself there.

Where that is, boxes say, or where the base looks at the class words while it lays the picture out alone (after
FreeFuse). A concept's ground is all that is nearer to it than to another, since it may wear or hold something. In one
pass of all a pixel still sees what other adapters made of theirs; the last steps, which draw details, let every adapter
predict alone (as `Masked` does).
"""

from dataclasses import dataclass, field, replace
from itertools import chain

import torch

from studio.pipelines.attention_bias import AttentionBias
from studio.pipelines.auto_masks import AutoMasks, bands, territories
from studio.pipelines.baselines import Plain
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch
from studio.pipelines.freefuse import looks_at, mask_probe, read_both_ways, routed
from studio.pipelines.probe import Maps
from studio.pipelines.regional import parts_of, read_each

Tensor = torch.Tensor


@dataclass
class Auto(Plain):
    """The base draws alone for the share `alone` of the steps; then every adapter acts on its ground, from the share
    `parted` on in a pass of its own.

    Class words are not looked at beyond the boxes of those that have one, and concepts' words less by `hidden` beyond
    their grounds. Masks from maps count where each covers from `least` to `most` of the picture, and the smallest
    `even` of the largest or more; else, and where the maps of two concepts are alike by more than `alike` (cosine),
    what is not background is shared out from left to right in the order of the prompt. From these follow the grounds.
    `level` and `cells` as in FreeFuse.
    """

    alone: float = 0.08
    parted: float = 0.7
    hidden: float = 8.0
    masks: AutoMasks = field(default_factory=lambda: AutoMasks(margin=0))
    least: float = 0.02
    most: float = 0.7
    even: float = 0.6
    alike: float = 0.9
    level: int = 2
    cells: int = 8

    def begin(self, run: Run) -> None:
        """Read the prompt with and without adapters; choose the layers that show where the classes are."""
        super().begin(run)
        if len(run.concepts) < 2:
            run.state["acting"] = Branch(run.strengths)
            return
        places = read_both_ways(run)
        read_each(run)
        bias = None if run.layout is None else _hiding(run, self._boxes(run), places, torch.inf)
        run.state["holding"] = Branch(run.only(), "base", columns=tuple(chain(*places)), bias=bias)
        run.state["probe"] = mask_probe(run, self.level, self.cells)

    def branches(self, run: Run) -> list[Branch]:
        """One: the base alone until it is known where what is, then gated; at the end one of each concept."""
        if "parts" in run.state and run.share >= self.parted:
            return run.state["parts"].branches
        if "acting" in run.state:
            return [run.state["acting"]]
        if run.step == self._held(run) - 1:
            run.denoiser.probe = run.state["probe"]
        return [run.state["holding"]]

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """Leave the latents as they are; where the base draws no step alone, look ahead to where it would put what."""
        if "acting" not in run.state and self._held(run) == 0:
            noisy = run.scheduler.scale_model_input(latents, timestep)
            maps = run.denoiser.look(noisy, timestep, [run.state["holding"]], run.state["probe"])
            self._settle(run, maps[0])
        return latents

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """All for the one prediction, or of a pixel for the branch that owns it."""
        if run.denoiser.probe is not None:
            self._settle(run, run.denoiser.maps[0])
            run.denoiser.probe = None
        return torch.ones(1) if len(predictions) == 1 else run.state["parts"].shares

    def _held(self, run: Run) -> int:
        """Steps that the base draws alone: one at least, but not the last."""
        return min(max(1, round(self.alone * len(run.scheduler.timesteps))), len(run.scheduler.timesteps) - 1)

    def _boxes(self, run: Run) -> Tensor:
        """[k, H, W]; nothing where a concept has no box."""
        layout = run.layout
        return torch.zeros(len(run.names), *run.size) if layout is None else layout.masks(run.names, *run.size)

    def _settle(self, run: Run, maps: Maps) -> None:
        """From what the base looked at: who acts where, together and apart."""
        acting = run.state["acting"] = self._acting(run, maps)
        assert acting.image is not None
        run.state["parts"] = parts_of(run, acting.image)

    def _acting(self, run: Run, maps: Maps) -> Branch:
        boxes = self._boxes(run)
        placed = boxes.flatten(1).any(1)
        if bool(placed.all()):
            masks = boxes
        else:
            masks = self._grounds(run, maps)
            masks = masks * (1 - boxes.sum(0)).to(masks)  # a box belongs to its concept, and to nobody else
            masks = torch.where(placed[:, None, None].to(masks.device), boxes.to(masks), masks)
        places = [run.prompt.tokens(run.base.tokenizers[0], name) for name in run.names]
        return replace(routed(run, masks, 1.0, 0.0, 0.0), bias=_hiding(run, masks, places, self.hidden))

    def _grounds(self, run: Run, maps: Maps) -> Tensor:
        return territories(self._masks(run, maps))

    def _masks(self, run: Run, maps: Maps) -> Tensor:
        """[n, k, H, W] by what the base looked at, or by the order of the words where that tells nothing."""
        words = looks_at(run, maps)
        masks = self.masks(words, list(maps.of("to_out.0").layers.values()), run.size)
        told = self._told(words, masks[:, :-1])
        shared = bands(masks[:, -1], [run.prompt.places[name][0][0] for name in run.names])
        return torch.where(told[:, None, None, None], masks[:, :-1], shared)

    def _told(self, words: Tensor, masks: Tensor) -> Tensor:
        """[n]: whether the masks of a picture say who is where."""
        areas = masks.mean((2, 3))
        even = areas.amin(1) >= self.even * areas.amax(1)
        flat = torch.nn.functional.normalize(words.flatten(2), dim=2)
        alike = (flat @ flat.transpose(1, 2)).triu(1).flatten(1).amax(1)
        return ((areas >= self.least) & (areas <= self.most)).all(1) & even & (alike <= self.alike)


def _hiding(run: Run, masks: Tensor, places: list[list[int]], by: float) -> AttentionBias:
    """Of concepts with a mask of [k, H, W] or [n, k, H, W], the words in `places` are hidden `by` so much beyond it."""
    regions = torch.cat([masks, 1 - masks.sum(-3, keepdim=True)], -3)
    words = torch.zeros(regions.shape[-3], run.denoiser.texts["base"].embeds.shape[1])
    for n, tokens in enumerate(places):
        if masks[..., n, :, :].any():
            words[:, tokens] = -by
            words[n, tokens] = 0
    return AttentionBias(regions, words)
