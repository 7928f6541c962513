"""How much memory a training will take, counted beforehand on a copy of the network that has shapes and no numbers."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import UNet2DConditionModel
from torch import Tensor

from studio.tensor_memory import TensorMemory, weight_bytes
from studio.trainers.optimizer_choice import bytes_kept
from studio.trainers.training import Training
from studio.trainers.tuners import count_of

_GB = 1e9


@dataclass(frozen=True)
class Need:
    """Bytes at once: the `weights` of the base, what is `trained` with its gradients and moments, and the
    `activations` of one micro-batch."""

    weights: int
    trained: int
    activations: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.trained + self.activations

    def __str__(self) -> str:
        parts = ((self.weights, "the base"), (self.trained, "what is trained"), (self.activations, "a step's pictures"))
        listed = ", ".join(f"{size / _GB:.2f} for {what}" for size, what in parts)
        return f"about {self.total / _GB:.2f} GB ({listed})"


def need_of(training: Training) -> Need:
    """What `training` will take at once, from what it holds: its micro-batch, its text encoders where they are read
    anew, its trained numbers and their optimiser."""
    base, recipe = training.base, training.recipe
    instances = -(-recipe.batch_size // training.team.size)  # the largest share
    own = max((bucket.whole for bucket in training.instances.buckets), key=lambda whole: whole.latents[0].numel())
    rows = {own.latents.shape[1:]: instances}
    for bucket in () if training.classes is None else training.classes.buckets:
        size = bucket.whole.latents.shape[1:]
        rows[size] = rows.get(size, 0) + instances
    seen = [(count, *size) for size, count in rows.items()]
    activations = activation_bytes(base.unet, seen, own.embeds.shape[1], base.dtype)
    if live := sum(rows.values()) if training.tuner.text else instances if training.word else 0:
        activations += text_bytes(base.text_encoders, live, base.text_limit)
    parts = (base.unet, *(() if recipe.offload else (base.vae, *base.text_encoders)))
    numbers = count_of(training.parameters)
    return Need(weight_bytes(*parts) - 4 * numbers, trained_bytes(numbers, bytes_kept(recipe)), activations)


def trained_bytes(numbers: int, moments: int = 8) -> int:
    """Weights and gradients in float32 of so many `numbers`, and `moments` bytes a number of the optimiser."""
    return numbers * (8 + moments)


def activation_bytes(
    unet: UNet2DConditionModel, seen: Sequence[tuple[int, ...]], tokens: int, dtype: torch.dtype
) -> int:
    """What a forward of `unet` for each of `seen`, with what is trained in it, and one backward of all hold at once
    beyond its weights.

    `seen` are the sizes [B, C, h, w] of latents, `tokens` how many states of text, `dtype` what it computes in. Fused
    attention is counted as on a GPU: its scores are never written down.
    """
    shadow = _without_numbers(unet, dtype).train()
    shadow.set_attn_processor(_Fused())
    trained = sum(one.numel() * one.element_size() for one in shadow.parameters() if one.requires_grad)
    given = [_given(unet, latents, tokens, dtype) for latents in seen]
    with TensorMemory() as memory:
        losses = [shadow(**one, return_dict=False)[0].float().square().mean() for one in given]
        torch.stack(losses).sum().backward()
    return max(0, memory.peak - trained)  # whose gradients are counted with what is trained


def _given(unet: UNet2DConditionModel, latents: tuple[int, ...], tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """What `unet` is asked about, without numbers."""
    config, rows, meta = unet.config, latents[0], torch.device("meta")
    added = None
    if config["addition_embed_type"] == "text_time":
        width = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {
            "text_embeds": torch.empty(rows, width, device=meta, dtype=dtype),
            "time_ids": torch.empty(rows, 6, device=meta, dtype=dtype),
        }
    noisy = torch.empty(latents, device=meta, dtype=dtype)
    said = torch.empty(rows, tokens, config["cross_attention_dim"], device=meta, dtype=dtype)
    times = torch.empty(rows, dtype=torch.long, device=meta)
    return {"sample": noisy, "timestep": times, "encoder_hidden_states": said, "added_cond_kwargs": added}


def text_bytes(encoders: Sequence[torch.nn.Module], rows: int, tokens: int) -> int:
    """The same for text encoders that `rows` prompts are read with anew in each step."""
    total = 0
    for encoder in encoders:
        shadow = _without_numbers(encoder, None)
        trained = sum(one.numel() * one.element_size() for one in shadow.parameters() if one.requires_grad)
        numbers = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
        with TensorMemory() as memory:
            read = shadow(numbers, output_hidden_states=True)
            read[0].float().square().mean().backward()
        total += max(0, memory.peak - trained)
    return total


def _without_numbers(module: torch.nn.Module, dtype: torch.dtype | None) -> Any:
    """`module` with its parameters and buffers on the meta device; parameters of `dtype` where that is given."""
    known: dict[int, Any] = {}
    for one in module.parameters():
        empty = torch.empty_like(one, device="meta", dtype=dtype or one.dtype)
        known[id(one)] = torch.nn.Parameter(empty, requires_grad=one.requires_grad)
    for one in module.buffers():
        known[id(one)] = torch.empty_like(one, device="meta")
    hooks = {id(hook): hook for one in module.modules() if (hook := getattr(one, "_hf_hook", None))}
    shadow = copy.deepcopy(module, known | hooks)  # of offloading, whose hooks hold other networks
    return remove_hook_from_module(shadow)


class _Fused:
    """Attention of which only shapes are known, and which keeps what a fused kernel keeps."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: None = None
    ) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mixed: Any = _Mixed.apply(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        return attn.to_out[0](mixed)


class _Mixed(torch.autograd.Function):
    """Queries, keys and values in, as much as the queries out; all are kept for the gradients."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The shape of `query`."""
        mixed = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, mixed)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """As large as what came in."""
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])
