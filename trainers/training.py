"""One training under way: what it holds, how it takes a step, and its state as plain tensors."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from math import cos, pi

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from studio.errors import StudioError
from studio.models import BaseModel
from studio.trainers.averaging import Average, schedule_free
from studio.trainers.cache import Tensors
from studio.trainers.data import Batch, generator_for
from studio.trainers.dataset import Dataset
from studio.trainers.losses import noise_schedule, pointwise, prior_preserving_loss
from studio.trainers.optimizers import make_optimizer, optimizer_tensors, parts_of, restore_optimizer
from studio.trainers.precision import mixed_precision
from studio.trainers.processes import ALONE, Team
from studio.trainers.recipe import Recipe
from studio.trainers.tuners import Tuner
from studio.trainers.words import NewWord


def share_of_rate(recipe: Recipe, step: int) -> float:
    """The share of a learning rate that holds in step `step` (from 0): linear warm-up, then constant, or falling to
    zero by line or half cosine."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + cos(pi * done)) / 2}[recipe.schedule]


@dataclass(frozen=True)
class Drawn:
    """Everything random about those samples of a step that are of one size: the examples (instances first), their
    noise [B, C, h, w] and timesteps [B]. `rows` [B] are their places among all samples of the step."""

    batch: Batch
    noise: torch.Tensor
    timesteps: torch.Tensor
    rows: tuple[int, ...]

    def part(self, chosen: list[int], device: torch.device) -> "Drawn":
        """The samples `chosen`, on `device`."""
        rows = tuple(self.rows[n] for n in chosen)
        batch = self.batch.rows(chosen, device)
        return Drawn(batch, self.noise[chosen].to(device), self.timesteps[chosen].to(device), rows)


@dataclass
class Training:
    """A base with what is trained in it, the data, and how far it has come."""

    base: BaseModel
    recipe: Recipe
    tuner: Tuner
    instances: Dataset
    classes: Dataset | None
    pairs: Dataset | None = None
    held: Dataset | None = None
    word: NewWord | None = None
    team: Team = ALONE
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        recipe, base = self.recipe, self.base
        self.schedule = noise_schedule(base, recipe.zero_terminal_snr)
        AcceleratorState._reset_state(reset_partial_state=True)  # else the first training's precision is for all
        self.accelerator = Accelerator(
            cpu=base.device.type == "cpu",
            mixed_precision=mixed_precision(base.dtype),
            gradient_accumulation_steps=recipe.gradient_accumulation,
        )
        self.parameters = self.tuner.parameters | ({} if self.word is None else self.word.parameters)
        self.parts = parts_of(recipe, self.tuner, self.word)
        self.plain_optimizer = make_optimizer(recipe, self.parts)
        self.optimizer = self.accelerator.prepare(self.plain_optimizer)
        if recipe.optimizer == "adamw-schedule-free":
            self.optimizer.train()
        self.average = Average(self.parameters, recipe.ema) if recipe.ema else None
        if recipe.gradient_checkpointing:
            base.unet.enable_gradient_checkpointing()

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.losses)

    def begin_alike(self) -> None:
        """Take over what the leading process begins with."""
        self.team.take_over([*self.parameters.values(), *self.tuner.kept.values()])

    def due(self, every: int) -> bool:
        """Whether what comes every so many steps, 0 for never, and after the last, comes now."""
        return bool(every) and (self.step == self.recipe.steps or self.step % every == 0)

    def take_step(self) -> float:
        """One optimiser step; returns its loss. Where that is not finite: StudioError, the weights are as before."""
        with self.team.sharing_cores(self.base.device):
            return self._take_step()

    def _take_step(self) -> float:
        recipe, step = self.recipe, self.step
        self.base.unet.train()
        drawn = self.draw(step)
        total = 0.0
        for rows in self.micro_batches():
            with self.accelerator.accumulate(self.base.unet), self._dropping(step, rows):
                loss = self.loss_of(drawn, rows)
                total += self.team.mean(loss.item(), loss.device) / recipe.gradient_accumulation
                _refuse_broken(total, step)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.team.average(one.grad for one in self.parameters.values() if one.grad is not None)
                    self.accelerator.unscale_gradients()  # once a step, whatever the number of groups
                for group in self.plain_optimizer.param_groups:
                    group["lr"] = group["rate"] * share_of_rate(recipe, step)
                for part in self.parts:
                    if self.accelerator.sync_gradients:
                        norm = torch.nn.utils.clip_grad_norm_(part.parameters.values(), recipe.max_grad_norm)
                        if self.accelerator.scaler is None:  # with one a first overflow is normal: it skips the step
                            _refuse_broken(float(norm), step)
                self.optimizer.step()
                self.optimizer.zero_grad()
        if self.average is not None:
            self.average.follow(step)
        self.losses.append(total)
        return total

    def draw(self, step: int) -> list[Drawn]:
        """The random choices of step `step`, by size: they depend on the recipe's seed and `step` alone."""
        recipe = self.recipe
        count = recipe.batch_size * recipe.gradient_accumulation
        generator = generator_for(recipe.seed, "step", step)
        share = 0.0 if self.pairs is None else recipe.pair_share
        before, after = (int(done * count * share) for done in (step, step + 1))  # pictures of two, from the beginning
        by_size: dict[torch.Size, list[tuple[list[int], Batch]]] = {}
        total = 0
        for name, dataset, first, number in (
            ("instances", self.instances, step * count - before, count - (after - before)),
            ("pairs", self.pairs, before, after - before),
            ("classes", self.classes, step * count, count),
        ):
            if dataset is None or not number:
                continue
            chosen = dataset.next(first, number, recipe.seed, name)
            for places, batch in dataset.batches(chosen, generator):
                found = by_size.setdefault(batch.latents.shape[1:], [])
                found.append(([total + place for place in places], batch))
            total += number
        batches = [Batch.joined([batch for _, batch in parts]) for parts in by_size.values()]
        rows = [tuple(row for places, _ in parts for row in places) for parts in by_size.values()]
        noises = [torch.randn(batch.latents.shape, generator=generator) for batch in batches]
        timesteps = self.schedule.draw(total, recipe.timesteps, generator)
        if recipe.noise_offset:  # so that pictures may become brighter or darker as a whole
            noises = [
                noise + recipe.noise_offset * torch.randn(*noise.shape[:2], 1, 1, generator=generator)
                for noise in noises
            ]
        return [
            Drawn(batch, noise, timesteps[list(own)], own)
            for batch, noise, own in zip(batches, noises, rows, strict=True)
        ]

    def loss_of(self, drawn: list[Drawn], rows: list[int]) -> torch.Tensor:
        """The loss of a micro-batch, the samples `rows` of a step: a forward for each size."""
        places = [[n for n, row in enumerate(one.rows) if row in rows] for one in drawn]
        parts = [one.part(chosen, self.base.device) for one, chosen in zip(drawn, places, strict=True) if chosen]
        return torch.stack([self.loss(part) for part in parts]).sum()

    def loss(self, drawn: Drawn) -> torch.Tensor:
        """What samples of one size, instances first, add to the prior-preserving loss of their micro-batch; where a
        picture is not learned from, the target is what the base predicts."""
        recipe, batch = self.recipe, drawn.batch
        half = sum(row < recipe.batch_size * recipe.gradient_accumulation for row in drawn.rows)
        noisy = self.schedule.noisy(batch.latents, drawn.noise, drawn.timesteps)
        target = self.schedule.target(batch.latents, drawn.noise, drawn.timesteps)
        held = [n for n, own in enumerate(batch.own) if not bool((own == 1).all())]
        if held:
            kept = self._untrained(noisy[held], drawn.part(held, noisy.device))
            own = batch.own[held]
            target = target.index_copy(
                0, torch.tensor(held, device=target.device), own * target[held] + (1 - own) * kept
            )
        embeds, pooled = self.text(batch, half)
        prediction = self.predict(noisy, drawn.timesteps, batch, embeds, pooled)
        weights = self.schedule.weights(drawn.timesteps, recipe.weighting, recipe.snr_gamma)
        errors = weights[:, None, None, None] * pointwise(prediction, target, recipe.huber)
        return prior_preserving_loss(errors, batch.own, half, recipe.prior_weight, recipe.batch_size / self.team.size)

    def predict(
        self,
        noisy: torch.Tensor,
        timesteps: torch.Tensor,
        batch: Batch,
        embeds: torch.Tensor,
        pooled: torch.Tensor | None,
    ) -> torch.Tensor:
        """What the network makes of `noisy` [B, C, h, w] at `timesteps` [B] and the words given."""
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": batch.time_ids}
        with self.accelerator.autocast():
            return self.base.unet(
                noisy, timesteps, encoder_hidden_states=embeds, added_cond_kwargs=added, return_dict=False
            )[0]

    def text(self, batch: Batch, instances: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The text states of a batch: as the text encoders stand now, or of its first `instances` as the new
        words of the concepts do; of the others as before."""
        live = len(batch.prompts) if self.tuner.text else instances if self.word else 0
        if not live:
            return batch.embeds, batch.pooled
        said = self.base.read(list(batch.prompts[:live]))
        embeds = torch.cat([said.embeds.to(batch.embeds), batch.embeds[live:]])
        if batch.pooled is None or said.pooled is None:
            return embeds, None
        return embeds, torch.cat([said.pooled.to(batch.pooled), batch.pooled[live:]])

    @torch.no_grad()
    def _untrained(self, noisy: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """What the base makes of the plain words without what is being trained."""
        batch = drawn.batch
        with self.tuner.without():
            return self.predict(noisy, drawn.timesteps, batch, batch.plain_embeds, batch.plain_pooled).float()

    def averaged(self) -> AbstractContextManager[None]:
        """While the block runs, what is trained is as previews and the file show it: averaged where the recipe says so;
        then bit for bit as before."""
        if self.average is not None:
            return self.average.shown()
        if self.recipe.optimizer == "adamw-schedule-free":
            return schedule_free(self.plain_optimizer, self.parameters)
        return nullcontext()

    def state(self) -> Tensors:
        """Weights and their averages, what the optimiser keeps, float16's loss scale and the losses so far, as tensors
        on the CPU."""
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        if self.accelerator.scaler is not None:
            scaling = self.accelerator.scaler.state_dict()
            tensors |= {f"scaler/{key}": torch.tensor(value, dtype=torch.float64) for key, value in scaling.items()}
        for kind, those in self._held().items():
            tensors |= {f"{kind}/{name}": one.detach() for name, one in those.items()}
        tensors |= optimizer_tensors(self.plain_optimizer, self.parameters)
        return {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}

    def restore(self, tensors: Tensors) -> None:
        """Go back to what `state` returned, bit for bit."""
        rest = dict(tensors)
        self.losses = rest.pop("losses").tolist()
        if self.accelerator.scaler is not None:
            own = self.accelerator.scaler.state_dict()
            self.accelerator.scaler.load_state_dict({k: type(v)(tensors[f"scaler/{k}"].item()) for k, v in own.items()})
        with torch.no_grad():
            for kind, those in self._held().items():
                for name, one in those.items():
                    one.copy_(rest.pop(f"{kind}/{name}"))
        restore_optimizer(self.plain_optimizer, self.parameters, rest)

    def _held(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """What is trained, its averages, and what of the adapter else is to be kept; by the names in a checkpoint."""
        averages = {} if self.average is None else {"average": self.average.tensors}
        return {"weight": self.parameters, "kept": self.tuner.kept, **averages}

    @contextmanager
    def _dropping(self, step: int, rows: list[int]) -> Iterator[None]:
        """What dropout drops depends on seed, step and rows alone; the global generators are as before at the end."""
        if not self.recipe.dropout:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(generator_for(self.recipe.seed, "dropout", step, rows).initial_seed())
            yield

    def micro_batches(self) -> list[list[int]]:
        """This process's rows of each micro-batch: its share of the instances, then that of the class pictures."""
        size, parts = self.recipe.batch_size, self.recipe.gradient_accumulation
        groups = [list(range(part * size, (part + 1) * size)) for part in range(parts)]
        shares = [self.team.share(group) for group in groups]
        if self.classes is None:
            return shares
        opposite = Team(self.team.size - 1 - self.team.rank, self.team.size)  # fewer instances, more class pictures
        others = [[row + size * parts for row in opposite.share(group)] for group in groups]
        return [share + more for share, more in zip(shares, others, strict=True)]


def _refuse_broken(number: float, step: int) -> None:
    if not abs(number) < float("inf"):
        raise StudioError(
            f"The loss or its gradient is no longer a finite number at step {step + 1}; the training has stopped.",
            "Nothing broken was saved. Start again with --overwrite and half the learning rate (--lr); float16"
            " overflows more easily than bfloat16 or float32.",
        )
