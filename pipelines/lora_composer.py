"""LoRA-Composer (Yang et al. 2024, "LoRA-Composer: Leveraging Low-Rank Adaptation for Multi-Concept Customization in
Training-Free Diffusion Models").

Every box reads a text of its own by its own adapter, and its pixels do not look at those of other boxes; before a step
the latents move so that the words of a concept are looked at in its box, all over it, and its pixels look nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from studio.errors import UsageError
from studio.pipelines.attention_bias import AttentionBias
from studio.pipelines.box_losses import Place, blurred, missing, places, straying, unfilled
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch, Text
from studio.pipelines.descent import bounded, slope, unit
from studio.pipelines.probe import AttentionProbe, Maps, grid, layers_for
from studio.pipelines.request import check_boxes
from studio.spans import Spelled, spell

Tensor = torch.Tensor
AUTHORS_CELLS = 64 * 128
AUTHORS_WORDS = 2  # of a concept
INJECTED = ("attn2.to_k", "attn2.to_v", "attn2.to_out.0")


@dataclass
class LoraComposer:
    """The authors' numbers, for their 50 steps, but for `whole_from` and `isolated`, which are 1 with them.

    Of an adapter they use the keys, values and outputs of the layers that read the text; from the share `whole_from` of
    the steps on all of it acts inside its box. Of 16 dogs in 8 pictures by the embedded base judge A took none for
    itself their way, 8 with whole adapters after a fifth of the steps and isolation in the first half, 12 with whole
    adapters from the start and no isolation.

    `texts` are those of the boxes by concept, in which `<name>` stands for it; by default the prompt, the other
    concepts being spelled by their class words. What no box holds reads the prompt with class words alone and has no
    adapter; so is the pooled text of SDXL. Where boxes overlap, the one in front acts alone.

    `isolated` is the share of the steps in which boxes do not see each other. The losses are weighed by `enhancement`,
    `fill` and `region`, and look at the `strongest` share of a box's cells. A picture is refined until its loss grows,
    but for the share `settled` of the steps at least and `refined` at most, by steps of `step_size` for latents of unit
    variance and 64 x 128 cells (of fewer each has more influence), and of `longest` (root mean square, our bound) at
    most. The maps are of `level` halvings, but of at least `cells` a side where the base has such layers. With
    `replaced`, the noise of a box is first taken from where its words are looked at most.
    """

    whole_from: float = 0.0
    texts: Mapping[str, str] = field(default_factory=dict)
    isolated: float = 0.0
    enhancement: float = 8.0
    fill: float = 2.0
    region: float = 10.0
    strongest: float = 0.2
    step_size: float = 20.0
    longest: float = 0.1
    settled: float = 0.1
    refined: float = 0.5
    level: int = 2
    cells: int = 8
    replaced: bool = False

    folds = False

    def begin(self, run: Run) -> None:
        """Needs a box for every concept; reads the text of each with its adapter, and the rest's with none."""
        check_boxes(run.names, run.layout, "lora-composer")
        assert run.layout is not None
        tokens = self._read(run)
        width = run.denoiser.texts["base"].embeds.shape[1]
        columns = tuple((n + 1) * width + token for n, own in enumerate(tokens) for token in own)
        masks = run.layout.masks(run.names, *run.size)
        words, texts = own_text(len(tokens), width, 1 + run.denoiser.guided), beside(masks)
        for key, apart in (("isolated", 0), ("open", None)):
            bias = AttentionBias(masks, texts=texts, apart=apart, always=True)
            run.state[key] = Branch(run.strengths, "boxes", masks, words, columns=columns, bias=bias)
        layers = layers_for(run.base.unet, run.size, self.level, self.cells)
        run.state["places"] = places(run.layout, run.names, grid(run.base.unet, layers[0], run.size))
        if self.region:
            layers = [*layers, *(f"{name.removesuffix('attn2')}attn1" for name in layers)]
        run.state["probe"] = AttentionProbe(run.base.unet, layers, run.size, texts=len(tokens) + 1)
        run.state["own"] = [len(own) for own in tokens]

    def branches(self, run: Run) -> list[Branch]:
        """One, in which every box reads its own text."""
        run.denoiser.layers = None if run.share >= self.whole_from else INJECTED
        return [run.state["isolated" if run.share < self.isolated else "open"]]

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """All for the one prediction."""
        return torch.ones(1)

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """Descend the losses, each picture until its own grows."""
        if run.step == 0:
            run.state["before"] = latents.new_full((len(latents),), torch.inf, dtype=torch.float32)
            run.state["moving"] = torch.full((len(latents),), bool(self.step_size), device=latents.device)
            if self.replaced:
                latents = self._replaced(run, latents, timestep)
        moving = run.state["moving"].nonzero().flatten()
        if not len(moving):
            return latents
        scale = unit(run, latents, timestep)
        loss, gradient = self._slope(run, (latents * scale)[moving], timestep)
        step = self.step_sizes(len(run.scheduler.timesteps))[run.step] * run.size[0] * run.size[1] / AUTHORS_CELLS
        latents = latents.index_add(0, moving, -bounded(float(step) * gradient, self.longest) / scale[moving])
        over = (loss > run.state["before"][moving]) & (run.share >= self.settled)
        run.state["before"][moving] = torch.where(loss.isfinite(), loss, run.state["before"][moving])
        run.state["moving"][moving] = ~over & (run.share < self.refined)
        return latents

    def step_sizes(self, steps: int) -> Tensor:
        """Of each step, in double precision."""
        return self.step_size * torch.linspace(1, 0.5, steps, dtype=torch.float64).sqrt()

    def loss(self, run: Run, maps: list[Maps]) -> Tensor:
        """[n]: the sum over the concepts; of words the authors' two times the mean."""
        words = blurred(maps[0].of("attn2").mean()).split(run.state["own"], 1)
        total = words[0].new_zeros(len(words[0]))
        for own, place in zip(words, self._places(run, words[0]), strict=True):
            each = self.enhancement * missing(own, place, self.strongest) + self.fill * unfilled(own, place)
            total = total + AUTHORS_WORDS * each.mean(1)
            if self.region:
                total = total + self.region * straying(maps[0].of("attn1").mean(), place, self.strongest)
        return total

    def _places(self, run: Run, like: Tensor) -> list[Place]:
        return [Place(one.owns.to(like), one.rows, one.columns) for one in run.state["places"]]

    def _look(self, run: Run, scaled: Tensor, timestep: Tensor) -> list[Maps]:
        return run.denoiser.look(scaled, timestep, self.branches(run), run.state["probe"])

    def _slope(self, run: Run, scaled: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        return slope(scaled, lambda moved: self.loss(run, self._look(run, moved, timestep)))

    def _replaced(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """The noise with that of each box taken from where its words are looked at most, of its mean and deviation."""
        with torch.no_grad():
            maps = self._look(run, latents * unit(run, latents, timestep), timestep)[0].of("attn2").mean()
        moved = latents.clone()
        for own, place in zip(maps.split(run.state["own"], 1), self._places(run, maps), strict=True):
            moved = transplanted(latents, own.sum(1), place, moved)
        mean, deviation = (f(latents, (1, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        other, spread = (f(moved, (1, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        return (moved - other) / spread * deviation + mean

    def _read(self, run: Run) -> list[list[int]]:
        """Encode the text of the rest, of each box, and of all side by side; the tokens of each concept in its own."""
        asked, classes = run.denoiser, run.classes
        if unknown := [name for name in self.texts if name not in classes]:
            raise UsageError(f"There is a text for {unknown[0]!r}, which is not among the concepts.", "Leave it out.")
        asked.read("base", run.prompt.reworded(classes).text, run.negative, run.only())
        own = []
        for n, name in enumerate(run.names):
            text = self._text(run, name, {other: word for other, word in classes.items() if other != name})
            asked.read(str(n), text.text, run.negative, run.only(n))
            own.append(text.tokens(run.base.tokenizers[0], name))
        beside = [asked.texts[key] for key in ("base", *map(str, range(len(own))))]
        asked.texts["boxes"] = Text(torch.cat([one.embeds for one in beside], 1), beside[0].pooled)
        return own

    def _text(self, run: Run, name: str, others: dict[str, str]) -> Spelled:
        """That of the concept's box, in which others have their class words."""
        text = spell(self.texts[name], run.concepts) if name in self.texts else run.prompt
        if not text.places[name]:
            raise UsageError(
                f"The text for the box of <{name}> does not name it: {self.texts[name]!r}.", f"Write <{name}> in it."
            )
        return text.reworded(others)


def as_published() -> LoraComposer:
    """With the authors' numbers throughout."""
    return LoraComposer(whole_from=1.0, isolated=1.0)


def beside(masks: Tensor) -> Tensor:
    """[k + 1, H, W] of 0 and 1: of k + 1 texts side by side each cell reads its owner's in masks [k, H, W], a free one
    the first."""
    owner = torch.cat([1 - masks.sum(0, keepdim=True), masks]).argmax(0)
    return F.one_hot(owner, len(masks) + 1).movedim(2, 0)


def own_text(count: int, width: int, conditions: int) -> Tensor:
    """[conditions, k, (k + 1) width]: each of k adapters acts on its own of the texts, with words or without."""
    acts = torch.cat([torch.zeros(count, 1), torch.eye(count)], 1)
    return acts.repeat_interleave(width, 1).expand(conditions, -1, -1)


def transplanted(latents: Tensor, looks: Tensor, place: Place, onto: Tensor) -> Tensor:
    """`onto`, in whose box is the patch of `latents` [n, C, H, W] that has most of the `looks` [n, h, w]."""
    height, width = (place.rows.stop - place.rows.start, place.columns.stop - place.columns.start)
    each = -(-latents.shape[2] // looks.shape[1])  # cells of the latents in one of the maps, a side
    sums = F.conv2d(looks[:, None], looks.new_ones(1, 1, height, width))
    moved = onto.clone()
    for n, best in enumerate(sums.flatten(1).argmax(1).tolist()):
        top, left = divmod(best, sums.shape[3])
        goal = moved[n, :, place.rows.start * each :, place.columns.start * each :]
        patch = latents[n, :, top * each :, left * each :]
        rows, columns = (
            min(side * each, a, b) for side, a, b in zip((height, width), goal.shape[1:], patch.shape[1:], strict=True)
        )
        goal[:, :rows, :columns] = patch[:, :rows, :columns]
    return moved
