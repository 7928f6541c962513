"""The picturebook's UNet: SDXL's layout at a thirtieth of the width, trained on latents of renders.

v-prediction with zero terminal SNR (Lin et al. 2024, arXiv:2305.08891), so that dark and bright grounds are
reachable; timesteps mostly logit-normal (Esser et al. 2024, arXiv:2403.03206). In bfloat16 where the device has it.
"""

import json
import math
import random
import time
import zlib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from studio.devices import multiplies_bfloat16
from studio.home import write_atomic
from studio.picturebook import Scene, caption, random_scene, trimmed
from studio.picturebook_draw import render
from studio.pixels import tensor_of
from studio.trainers.muon import Muon, matrices_of
from studio.trainers.picturebook_text import tokenize
from studio.trainers.picturebook_vae import encode
from studio.trainers.precision import keep_softmax_wide
from studio.trainers.processes import Team

SAVE_SECONDS = 300


@dataclass(frozen=True)
class Stage:
    """One part of the training: pictures of `size` px, how many of them, and the learning rate's course.

    The share `clear` of all timesteps is drawn from the first third alone, where edges are decided; every so many
    steps (`threes`, 0: never) the batch is one of three things on a canvas half as wide again.
    """

    size: int
    samples: int
    batch: int
    peak: float
    last: float
    warmup: int = 200
    seed: int = 0
    clear: float = 0.0
    threes: int = 0


@dataclass(frozen=True)
class TextSide:
    """Tokenizer and both frozen towers."""

    tokenizer: CLIPTokenizer
    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """States [B, N, 224] and pooled [B, 128], as SDXL's pipeline makes them."""
        ids = tokenize(self.tokenizer, captions).to(self.first.device)
        outputs = [tower(input_ids=ids, output_hidden_states=True) for tower in (self.first, self.second)]
        return torch.cat([o.hidden_states[-2] for o in outputs], dim=-1), outputs[1].text_embeds


def build_scheduler() -> EulerDiscreteScheduler:
    """v-prediction, zero terminal SNR, trailing timesteps."""
    return EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip


def build_unet() -> UNet2DConditionModel:
    """SDXL's blocks (three attentions in `up_blocks.0`) at widths 32, 64, 128; cross-attention at 1/2 and 1/4."""
    heads: Any = (1, 2, 4)  # of 32 channels each; declared as one number
    return UNet2DConditionModel(
        sample_size=24, in_channels=4, out_channels=4, block_out_channels=(32, 64, 128), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=1, attention_head_dim=heads, cross_attention_dim=224,
        norm_num_groups=8, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + 128,
    )  # fmt: skip


def signal_levels() -> Tensor:
    """The schedule's cumulative alphas, [1000], the last one 0."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])  # arXiv:2305.08891, algorithm 1
    return (root**2).float()


@torch.no_grad()
def draw_pool(
    vae: AutoencoderTiny, size: int, count: int, seed: str, device: str, three: bool = False
) -> tuple[list[Scene], Tensor]:
    """`count` scenes without held-out subjects, and their scaled latents [count, 4, h, w] in fp16: of one or two
    things, some of which wear something, in a square of `size` px, or of `three` on a canvas half as wide again."""
    rng = random.Random(f"pool {size} {seed}{' of three' * three}")
    scenes = [random_scene(rng, subjects=3) if three else trimmed(random_scene(rng), rng) for _ in range(count)]
    width = size * 3 // 2 if three else size
    latents = torch.empty(count, 4, size // 4, width // 4, dtype=torch.float16)
    few = 16 if device == "cpu" else 128  # what a CPU's cache holds
    for start in range(0, count, few):
        x = tensor_of([render(scene, width, size) for scene in scenes[start : start + few]]).to(device)
        latents[start : start + few] = (encode(vae, x) * vae.config["scaling_factor"]).half().cpu()
    return scenes, latents


def draw_timesteps(batch: int, rng: torch.Generator, clear: float = 0.0) -> Tensor:
    """[B] of 0..999: three quarters logit-normal, one quarter uniform; but the share `clear` below 350."""
    normal = torch.randn(batch, generator=rng).sigmoid()
    uniform = torch.rand(batch, generator=rng)
    chosen = torch.where(torch.rand(batch, generator=rng) < 0.75, normal, uniform)
    chosen = torch.where(torch.rand(batch, generator=rng) < clear, 0.35 * uniform, chosen)
    return (chosen * 1000).long().clamp(max=999)


def training_loss(
    unet: nn.Module, text: TextSide, x0: Tensor, captions: list[str], rng: torch.Generator, clear: float = 0.0
) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) x0 on clean latents `x0` [B, 4, h, w].

    A tenth of the texts is zeroed (SDXL's empty prompt); of the others a third loses the pooled embedding, so that
    cross-attention has to carry everything, style included.
    """
    batch, device = len(captions), x0.device
    noise = torch.randn(x0.shape, generator=rng).to(device)
    timesteps = draw_timesteps(batch, rng, clear).to(device)
    level = signal_levels().to(device)[timesteps].view(-1, 1, 1, 1)
    noisy = level.sqrt() * x0 + (1 - level).sqrt() * noise
    states, pooled = text.encode(captions)
    fate = torch.rand(batch, generator=rng).to(device)
    states = states * (fate >= 0.1).view(-1, 1, 1)
    pooled = pooled * (fate >= 0.4).view(-1, 1)
    height, width = (4 * side for side in x0.shape[2:])
    sizes = torch.tensor([[height, width, 0, 0, height, width]] * batch, dtype=torch.float32, device=device)
    condition = {"text_embeds": pooled, "time_ids": sizes}
    prediction = unet(noisy, timesteps, states, added_cond_kwargs=condition).sample
    return (prediction - (level.sqrt() * noise - (1 - level).sqrt() * x0)).square().mean()


Model = TypeVar("Model", bound=nn.Module)


class Averaged(Generic[Model]):
    """An exponential moving average of a model's weights, quick to follow at first."""

    def __init__(self, model: Model, decay: float = 0.9995) -> None:
        self.model, self.decay, self.steps = deepcopy(model).eval().requires_grad_(False), decay, 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Take one step towards `model`."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)


def learning_rate(stage: Stage, done: int) -> float:
    """Warm-up, then a cosine from `peak` to `last` over the stage's samples."""
    progress = min(1.0, done / stage.samples)
    rate = stage.last + (stage.peak - stage.last) * (1 + math.cos(math.pi * progress)) / 2
    return rate * min(1.0, (done / stage.batch + 1) / stage.warmup)


def train_unet(
    stage: Stage,
    unet: UNet2DConditionModel,
    vae: AutoencoderTiny,
    text: TextSide,
    folder: Path,
    pool: int,
    preview: Callable[[UNet2DConditionModel, int], None],
    team: Team,
) -> UNet2DConditionModel:
    """Train `unet` for a stage and return its average; `folder` gets log.jsonl and a state to go on from."""
    device = str(unet.device)
    half = multiplies_bfloat16(unet.device)
    if half and device == "cpu":
        keep_softmax_wide(unet)
    average, state_file = Averaged(unet), folder / "state.pt"
    matrices, rest = matrices_of(unet, ("conv_in.", "conv_out."))
    adamw = torch.optim.AdamW(rest, lr=stage.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    optimizers = {"muon": Muon(matrices, stage.peak, team=team), "adamw": adamw}
    parts = {"unet": unet, "average": average.model, **optimizers}
    done = _restore(state_file, parts, device)
    average.steps = done // stage.batch
    share, key = stage.batch // team.size, f"{stage.seed} {done} {team.rank}"
    pools = [draw_pool(vae, stage.size, pool // team.size, f"{stage.seed} {team.rank}", device)]
    if stage.threes:
        few = pool // team.size // stage.threes
        pools.append(draw_pool(vae, stage.size, few, f"{stage.seed} {team.rank}", device, three=True))
    rng = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    words = random.Random(f"captions {key}")
    window: list[float] = []
    began = saved = time.monotonic()
    while done < stage.samples:
        scenes, latents = pools[bool(stage.threes) and done // stage.batch % stage.threes == 0]
        index = torch.randint(len(scenes), (share,), generator=rng)
        captions = [caption(scenes[i], words) for i in index.tolist()]
        with torch.autocast(unet.device.type, torch.bfloat16, enabled=half):
            loss = training_loss(unet, text, latents[index].float().to(device), captions, rng, stage.clear)
        loss.backward()
        team.average(one.grad for one in unet.parameters() if one.grad is not None)
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = learning_rate(stage, done)
            optimizer.step()
            optimizer.zero_grad()
        average.update(unet)
        done += stage.batch
        window.append(loss.item())
        if team.rank > 0:
            continue
        if len(window) == 100:
            _log(folder / "log.jsonl", done, sum(window) / 100, time.monotonic() - began)
            window.clear()
        if time.monotonic() - saved > SAVE_SECONDS or done >= stage.samples:
            _save(state_file, parts, done)
            preview(average.model, done)
            saved = time.monotonic()
    return average.model


def _save(file: Path, parts: dict[str, nn.Module | torch.optim.Optimizer], done: int) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    write_atomic(file, lambda path: torch.save({**state, "done": done}, path))


def _restore(file: Path, parts: dict[str, nn.Module | torch.optim.Optimizer], device: str) -> int:
    """Samples done so far; 0 where there is nothing to go on from."""
    if not file.exists():
        return 0
    state = torch.load(file, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["done"])


def _log(file: Path, done: int, loss: float, seconds: float) -> None:
    line = {"samples": done, "loss": round(loss, 5), "seconds": round(seconds, 1)}
    with file.open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(line, flush=True)
