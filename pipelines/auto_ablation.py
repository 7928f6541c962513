"""`auto` with one part left out, or with masks that nobody has in earnest: what each part is worth."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from studio.picturebook import SAMPLE_SUBJECTS, Scene, Subject
from studio.picturebook_draw import GROUND, render
from studio.pipelines.auto import Auto
from studio.pipelines.auto_masks import AutoMasks
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch
from studio.pipelines.methods import Method
from studio.pipelines.probe import Maps

Tensor = torch.Tensor


class OnlyMasks(Auto):
    """Grounds end where the base's own thing would."""

    def _grounds(self, run: Run, maps: Maps) -> Tensor:
        return self._masks(run, maps)


@dataclass
class NoLikeness(Auto):
    """Masks by attention alone."""

    masks: AutoMasks = field(default_factory=lambda: AutoMasks(margin=0, likeness=0.0))


@dataclass
class OnlyBands(Auto):
    """Maps are never believed: what is not background is shared out from left to right."""

    least: float = 2.0


@dataclass
class AllWords(Auto):
    """No words are hidden anywhere."""

    hidden: float = 0.0


@dataclass
class OnePass(Auto):
    """All adapters act in one pass to the end."""

    parted: float = 1.0


@dataclass
class NoGrounds(AllWords):
    """Every adapter acts on the whole picture, on its own words, and all words are looked at; so none acts alone."""

    parted: float = 1.0

    def _grounds(self, run: Run, maps: Maps) -> Tensor:
        return torch.ones_like(super()._grounds(run, maps))


class NoWords(Auto):
    """Every adapter acts on its ground, and on all words."""

    def _acting(self, run: Run, maps: Maps) -> Branch:
        return replace(super()._acting(run, maps), words=None)


class NoHold(Auto):
    """The adapters act from the first step on; the masks come from a look ahead."""

    def _held(self, run: Run) -> int:
        return 0


class TrueMasks(Auto):
    """Masks as the renderer would draw the sample concepts, from left to right."""

    def _masks(self, run: Run, maps: Maps) -> Tensor:
        masks = silhouettes([SAMPLE_SUBJECTS[name] for name in run.names], run.size)
        like = super()._masks(run, maps)
        return masks.to(like).expand_as(like)


def silhouettes(subjects: list[Subject], size: tuple[int, int]) -> Tensor:
    """[k, H, W]: the cells in which the drawing of each subject, its column of the scene, holds anything of it."""
    drawn = np.asarray(render(Scene(tuple(subjects), "paper", "flat")), dtype=np.int16)
    busy = torch.from_numpy((np.abs(drawn - np.array(GROUND["paper"])) > 8).any(2)).float()
    cells = torch.nn.functional.adaptive_max_pool2d(busy[None, None], size)[0, 0]
    owner = (torch.arange(size[1]) * len(subjects)) // size[1]
    return torch.stack([cells * (owner == n) for n in range(len(subjects))])


ABLATIONS = tuple(
    Method(f"auto-{name}", does, f"auto_ablation:{kind.__name__}")
    for name, does, kind in (
        ("masks", "the masks themselves, which end where the base's own thing would", OnlyMasks),
        ("unlike", "masks by attention alone, without likeness of features", NoLikeness),
        ("bands", "maps never believed: what is not background is shared out from left to right", OnlyBands),
        ("one-pass", "all adapters in one pass to the end", OnePass),
        ("seen", "all words looked at everywhere", AllWords),
        ("words", "in one pass every adapter on the whole picture, on its own words, looked at everywhere", NoGrounds),
        ("grounds", "every adapter on its ground, on all words", NoWords),
        ("at-once", "adapters from the first step on, none of the base alone", NoHold),
        ("true-masks", "masks as the renderer would draw the concepts", TrueMasks),
    )
)
