"""FreeFuse (Liu et al. 2025, "FreeFuse: Multi-Subject LoRA Fusion via Adaptive Token-Level Routing at Test Time").

The base draws the first steps alone, and shows where it looks at the class of each concept. From this come masks, by
which every adapter then acts on its own pixels and its own words, and pixels look more at their own words.
"""

from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain

import torch

from studio.kernels.blend import blend
from studio.pipelines.attention_bias import AttentionBias
from studio.pipelines.auto_masks import AutoMasks
from studio.pipelines.baselines import Plain
from studio.pipelines.compose import Run, advance
from studio.pipelines.denoiser import Branch, Text
from studio.pipelines.probe import AttentionProbe, Maps, layers_for
from studio.pipelines.regional import own_words

Tensor = torch.Tensor
Generators = list[torch.Generator] | torch.Generator | None


@dataclass
class FreeFuse(Plain):
    """The base draws alone for the share `probed` of the steps; with `restart` they are drawn again with adapters, from
    the same noise.

    For the share `biased` of the steps, pixels of a mask look more at their own concept's words by `own`, and less at
    the others' by `others`. `shared` is how strongly an adapter changes the words that belong to no concept. The maps
    are of `level` halvings of the latents, but of at least `cells` a side where the base has such layers. Of one
    concept the whole picture is its own.
    """

    probed: float = 0.17
    restart: bool = False
    own: float = 1.0
    others: float = 4.0
    biased: float = 0.6
    shared: float = 1.0
    masks: AutoMasks = field(default_factory=AutoMasks)
    level: int = 2
    cells: int = 8

    def begin(self, run: Run) -> None:
        """Read the prompt with and without adapters, and choose the layers that show where the classes are."""
        super().begin(run)
        if len(run.concepts) < 2:
            run.state["acting"] = Branch(run.strengths)
            return
        places = read_both_ways(run)
        run.state["holding"] = Branch(run.only(), "base", columns=tuple(chain(*places)))
        run.state["probe"] = mask_probe(run, self.level, self.cells)

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """Leave the latents as they are; before the first step, see to where the masks come from."""
        if "acting" not in run.state:
            held = self._held(run)
            if held == 0:
                run.state["acting"] = self._routed(run, self._ahead(run, latents))
            elif run.step == held - 1:
                run.denoiser.probe = run.state["probe"]
        return latents

    def branches(self, run: Run) -> list[Branch]:
        """One: the base alone until there are masks, then gated by them."""
        acting = run.state["acting" if "acting" in run.state else "holding"]
        return [acting if run.share < self.biased else replace(acting, bias=None)]

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """All for the one branch."""
        if run.denoiser.probe is not None:
            run.state["acting"] = self._routed(run, run.denoiser.maps[0])
            run.denoiser.probe = None
        return torch.ones(1)

    def _probed(self, run: Run) -> int:
        return max(1, round(self.probed * len(run.scheduler.timesteps)))

    def _held(self, run: Run) -> int:
        """The steps that the base draws alone, for good."""
        return 0 if self.restart else min(self._probed(run), len(run.scheduler.timesteps) - 1)

    def _ahead(self, run: Run, latents: Tensor) -> Maps:
        """What the base looks at in the last of the probed steps, which leave no trace."""
        ahead = replace(run, scheduler=deepcopy(run.scheduler), generators=_copied(run.generators))
        *before, last = run.scheduler.timesteps[: self._probed(run)]
        for timestep in before:
            scaled = ahead.scheduler.scale_model_input(latents, timestep)
            predictions = run.denoiser.predict(scaled, timestep, [run.state["holding"]])
            guided = blend(predictions, predictions.new_ones(1, 1, 1, 1), run.guidance)
            latents = advance(ahead, ahead.scheduler, guided, timestep, latents)
        scaled = ahead.scheduler.scale_model_input(latents, last)
        return run.denoiser.look(scaled, last, [run.state["holding"]], run.state["probe"])[0]

    def _routed(self, run: Run, maps: Maps) -> Branch:
        words = looks_at(run, maps)
        masks = self.masks(words, list(maps.of("to_out.0").layers.values()), run.size)
        return routed(run, masks[:, :-1], self.shared, self.own, self.others)


def as_published() -> FreeFuse:
    """As the authors' code for SDXL: 10 of 30 steps looked ahead, masks by features alone, a second beginning."""
    return FreeFuse(probed=1 / 3, restart=True, others=1.0, masks=AutoMasks(likeness=1.0))


def read_both_ways(run: Run) -> list[list[int]]:
    """Encode the prompt, each adapter on its own words, and as "base" with class words alone; the tokens of these."""
    run.denoiser.texts["all"] = own_readings(run)
    classes = run.prompt.reworded(run.classes)
    run.denoiser.read("base", classes.text, run.negative, run.only())
    places = [classes.tokens(run.base.tokenizers[0], name) for name in run.names]
    run.state["tokens"] = [len(place) for place in places]
    return places


def looks_at(run: Run, maps: Maps) -> Tensor:
    """[n, k, h, w]: how much each pixel looks at the class words of each concept."""
    words = maps.of("attn2").mean().split(run.state["tokens"], dim=1)
    return torch.stack([one.mean(1) for one in words], dim=1)


def mask_probe(run: Run, level: int, cells: int) -> AttentionProbe:
    """Reads what `AutoMasks` needs: a third into each transformer of the up blocks, where the picture is clearest."""
    layers = layers_for(run.base.unet, run.size, level, cells)
    transformers: dict[str, list[str]] = {}
    for layer in [one for one in layers if one.startswith("up_blocks")] or layers:
        transformers.setdefault(layer.partition(".transformer_blocks")[0], []).append(layer)
    chosen = [blocks[len(blocks) // 3] for blocks in transformers.values()]
    return AttentionProbe(run.base.unet, [name for one in chosen for name in (one[:-1] + "1.to_out.0", one)], run.size)


def routed(run: Run, masks: Tensor, shared: float, own: float, others: float) -> Branch:
    """Each adapter on its own words and in its mask, of [k, H, W] or [n, k, H, W], whose pixels look more at these
    words by `own` and less at the other concepts' by `others`; on the negative words the adapters' mean acts."""
    words = own_words(run, shared)
    bias = torch.zeros_like(words)
    for n, name in enumerate(run.names):
        tokens = run.prompt.tokens(run.base.tokenizers[0], name)
        bias[:, tokens] = -others
        bias[n, tokens] = own
    if run.denoiser.guided:
        words = torch.stack([torch.full_like(words, 1 / len(words)), words])
    return Branch(run.strengths, image=masks, words=words, bias=AttentionBias(masks, bias))


def own_readings(run: Run) -> Text:
    """The prompt as all adapters read it, but each concept's words as its own adapter reads it alone."""
    read = run.denoiser.texts["all"]
    embeds = read.embeds.clone()
    for n, name in enumerate(run.names):
        run.denoiser.read(name, run.prompt.text, run.negative, run.only(n))
        tokens = run.prompt.tokens(run.base.tokenizers[0], name)
        embeds[-1, tokens] = run.denoiser.texts[name].embeds[-1, tokens]
    return Text(embeds, read.pooled)


def _copied(generators: Generators) -> Generators:
    """Generators that will give the same numbers."""
    if isinstance(generators, list):
        return [one.clone_state() for one in generators]
    return None if generators is None else generators.clone_state()
