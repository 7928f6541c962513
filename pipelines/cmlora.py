"""CMLoRA (Zou et al. 2025, "Cached Multi-LoRA Composition"), with caches that are used and an order that is measured.

In every step one adapter leads and is computed in full; the others take their deep features from their last full
forward, which each has at steps of its own. Adapters that add fine structure lead first, the others later.
"""

import math
from dataclasses import dataclass

import torch

from studio.errors import UsageError
from studio.pipelines.baselines import Composite
from studio.pipelines.compose import Run
from studio.pipelines.denoiser import Branch
from studio.pipelines.feature_cache import FeatureCache, shallowest_with_words
from studio.pipelines.spectrum import check_measurable, clean_latents, fineness

Tensor = torch.Tensor


@dataclass
class CmLora(Composite):
    """Composite with a leader and a cache; numbers are the authors' where the text names none.

    `early` and `late` name who leads before and after `switch_at` of the steps; None is measured in the first
    `measured` steps: adapters whose predicted picture has more structure than the base's beyond `radius` of the
    spectrum lead early, the finest first. A leader's share of the prediction goes from `first_share`, None for
    (k - 1/2) / (2k - 3/2), to `last_share`, None for 1 / k, along a cosine. A cached forward runs the last `shallow` up
    blocks of the UNet, None for the fewest that read the words.
    """

    early: tuple[str, ...] | None = None
    late: tuple[str, ...] = ()
    switch_at: float = 0.55
    period: int = 5
    first_share: float | None = None
    last_share: float | None = None
    edges: tuple[float, float] = (0.375, 0.875)
    edge_interval: int = 2
    middle_interval: int = 3
    measured: int = 5
    radius: float = 0.2
    shallow: int | None = None

    def begin(self, run: Run) -> None:
        """Read the prompt for each adapter, and without any where the order is to be measured."""
        self._check(run)
        super().begin(run)
        run.denoiser.features = FeatureCache(run.base.unet, self.shallow or shallowest_with_words(run.base.unet))
        if self._measures(run):
            check_measurable(run.scheduler)
            run.denoiser.read("base", run.prompt.text, run.negative, run.only())

    def refine(self, run: Run, latents: Tensor, timestep: Tensor) -> Tensor:
        """Leave the latents as they are, and remember them while the order is measured."""
        run.state["seen"] = (latents, timestep)
        return latents

    def branches(self, run: Run) -> list[Branch]:
        """One for each adapter, and the base last while the order is measured."""
        measuring = self._measuring(run)
        leader, steps = self.leader(run), len(run.scheduler.timesteps)
        found = [
            Branch(run.only(n), str(n), cached=not (measuring or n == leader or self.refreshed(run.step, n, steps)))
            for n in range(len(run.concepts))
        ]
        return [*found, Branch(run.only(), "base")] if measuring else found

    def shares(self, run: Run, predictions: Tensor) -> Tensor:
        """The leader's share, and equal parts of the rest for the others; nothing for the base."""
        k = len(run.concepts)
        if self._measuring(run):
            latents, timestep = run.state["seen"]
            clean = clean_latents(run.scheduler, latents, predictions[:, -1], timestep)
            scores = fineness(clean, self.radius).mean(1)
            run.state["fineness"] = run.state.get("fineness", 0) + scores[:k] - scores[k]
        share = self.share(run.step, k, len(run.scheduler.timesteps))
        shares = torch.zeros(len(predictions))
        shares[:k] = (1 - share) / max(k - 1, 1)
        shares[self.leader(run)] = share
        return shares

    def leader(self, run: Run) -> int:
        """Who leads this step: each of a phase for `period` steps in turn, all where nobody is of the phase."""
        early, late = self.phases(run)
        second = math.ceil(self.switch_at * len(run.scheduler.timesteps))
        first = self.measured if self._measures(run) and run.step >= self.measured else 0
        turn = (run.step - (first if run.step < second else second)) // self.period
        group = (early if run.step < second else late) or [*early, *late]
        return group[turn % len(group)]

    def phases(self, run: Run) -> tuple[list[int], list[int]]:
        """Who leads early and who late, as numbers of the concepts."""
        everyone = list(range(len(run.concepts)))
        if self.early is not None:
            return [run.names.index(name) for name in self.early], [run.names.index(name) for name in self.late]
        if self._measuring(run) or "fineness" not in run.state:
            return everyone, []
        scores = run.state["fineness"].tolist()
        ranked = sorted(everyone, key=lambda n: -scores[n])
        return [n for n in ranked if scores[n] > 0], [n for n in ranked if scores[n] <= 0]

    def share(self, step: int, k: int, steps: int) -> float:
        """The leader's part of the prediction."""
        if k == 1:
            return 1.0
        first = (k - 0.5) / (2 * k - 1.5) if self.first_share is None else self.first_share
        last = 1 / k if self.last_share is None else self.last_share
        return last + (first - last) * (1 + math.cos(math.pi * step / max(steps - 1, 1))) / 2

    def refreshed(self, step: int, adapter: int, steps: int) -> bool:
        """Whether an adapter that does not lead has a full forward: often in the first and the last steps, more seldom
        between, and each a step after the one before it."""
        if step == 0:
            return True
        first, last = (int(edge * steps) for edge in self.edges)
        start = 0 if step < first else first if step < last else last
        interval = self.middle_interval if first <= step < last else self.edge_interval
        return (step - start) % interval == adapter % interval

    def _measures(self, run: Run) -> bool:
        return self.early is None and len(run.concepts) > 1

    def _measuring(self, run: Run) -> bool:
        return self._measures(run) and run.step < self.measured

    def _check(self, run: Run) -> None:
        k = len(run.concepts)
        if self.early is not None and sorted([*self.early, *self.late]) != sorted(run.names):
            raise UsageError(
                f"The order {', '.join([*self.early, *self.late])} is not one of the concepts.",
                f"Name each of {', '.join(run.names)} once.",
            )
        for share in (self.first_share, self.last_share):
            if share is not None and k > 1 and not 1 / k <= share < 1:
                raise UsageError(
                    f"A leader's share of {share:g} is none for {k} concepts.", f"Give 1/{k} or more, and less than 1."
                )
        if min(self.period, self.edge_interval, self.middle_interval) < 1:
            raise UsageError("A period or interval of CMLoRA is less than one step.", "Give whole numbers from 1.")
