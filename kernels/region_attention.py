"""Attention inside regions: pixels of one region do not look at those of another, and no mask of all pairs is made.

A pixel's region ids are bits of an integer; 0 is the background, which looks and is seen everywhere:
allow(i, j) = bits_i == 0 or bits_j == 0 or bits_i & bits_j != 0. Sorted by their bits the pixels form few groups, each
of which attends to some whole groups: on the CPU one plain attention a group, on CUDA FlexAttention over the sorted
pixels, whose blocks are then really empty. Texts side by side are attended to the same way, each by the pixels that may
see it, and joined by the logsumexp of their scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F

from studio.kernels.attention_columns import with_logsumexp

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Regions:
    """Region ids `bits` [B, N] (int64) of the pixels of B samples, and what depends on them alone."""

    bits: Tensor

    @cached_property
    def plans(self) -> list[tuple[list[int], "Plan"]]:
        """Samples that share their ids, and the plan for them."""
        alike: dict[bytes, list[int]] = {}
        for sample, own in enumerate(self.bits.cpu()):
            alike.setdefault(own.numpy().tobytes(), []).append(sample)
        return [(samples, Plan(self.bits[samples[0]])) for samples in alike.values()]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """The same as a bias [B, 1, N, N] of 0 and -inf."""
        seen = torch.stack([allowed(own, own) for own in self.bits])[:, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)

    @property
    def kept(self) -> float:
        """The share of all pairs that may look at each other."""
        pairs = sum(len(samples) * plan.pairs for samples, plan in self.plans)
        return pairs / (len(self.bits) * self.bits.shape[1] ** 2)


class Plan:
    """The groups of one sample's pixels: `order` sorts them by their `bits` [N], `inverse` puts them back."""

    def __init__(self, bits: Tensor) -> None:
        self.order = bits.argsort(stable=True)
        self.inverse = self.order.argsort()
        self.sorted = bits[self.order].contiguous()
        values, counts = self.sorted.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        spans = [slice(end - count, end) for end, count in zip(ends.tolist(), counts.tolist(), strict=True)]
        seen = allowed(values, values)
        self.groups = [(spans[row], _joined([spans[n] for n in one.nonzero().flatten().tolist()])) for row, one in
                       enumerate(seen)]  # fmt: skip
        self.pairs = sum(_length(own) * sum(map(_length, keys)) for own, keys in self.groups)

    @cached_property
    def block_mask(self) -> Any:
        """FlexAttention's, of the sorted pixels."""
        from torch.nn.attention.flex_attention import create_block_mask

        ids, count = self.sorted, len(self.sorted)

        def same_region(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (ids[query] == 0) | (ids[key] == 0) | ((ids[query] & ids[key]) != 0)

        return create_block_mask(same_region, None, None, count, count, device=str(ids.device))


def allowed(rows: Tensor, columns: Tensor) -> Tensor:
    """[R, C] of booleans: who of `rows` [R] may look at whom of `columns` [C], by their bits."""
    return (rows[:, None] == 0) | (columns == 0) | ((rows[:, None] & columns) != 0)


def reference(query: Tensor, key: Tensor, value: Tensor, bits: Tensor, scale: float) -> Tensor:
    """[B, H, N, D] three times, bits [B, N] -> [B, H, N, D], with a mask of all pairs."""
    mask = torch.stack([allowed(own, own) for own in bits])[:, None]
    scores = (scale * query @ key.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def region_attention(query: Tensor, key: Tensor, value: Tensor, regions: Regions, scale: float) -> Tensor:
    """The same from the pairs that may look at each other. One region for all, or none, is plain attention."""
    attend = _flex if query.is_cuda else _by_groups
    if len(regions.plans) == 1:
        return attend(query, key, value, regions.plans[0][1], scale)
    parts = [attend(query[rows], key[rows], value[rows], plan, scale) for rows, plan in regions.plans]
    order = torch.tensor([row for rows, _ in regions.plans for row in rows], device=query.device)
    return torch.cat(parts).index_select(0, order.argsort())


def flops(regions: Regions, heads: int, width: int) -> int:
    """Of the forward: two products over the pairs that are kept."""
    samples, pixels = regions.bits.shape
    return round(4 * heads * width * samples * pixels**2 * regions.kept)


def text_reference(query: Tensor, key: Tensor, value: Tensor, share: Tensor, scale: float) -> Tensor:
    """Attention [B, H, N, D] to the T texts that stand side by side in key and value [B, H, T M, D], the factor
    `share` [B, N, T] times e to the score being what a pixel gives to the words of a text."""
    bias = SeenTexts(share).bias(key.shape[2], query.dtype)
    return F.scaled_dot_product_attention(query, key, value, bias, scale=scale)


@torch.no_grad()
def region_text_attention(query: Tensor, key: Tensor, value: Tensor, seen: "SeenTexts", scale: float) -> Tensor:
    """The same, each text by those pixels alone that see it; no gradients."""
    out = torch.empty_like(query)
    for sample, plan in enumerate(seen.plans):
        keys, values = (one[sample].unflatten(1, (seen.texts, -1)) for one in (key, value))  # [H, T, M, D]
        for pixels, texts, bias in plan:
            own = query[sample, :, pixels][None]
            if len(texts) == 1:
                chosen = (keys[None, :, texts[0]], values[None, :, texts[0]])
                out[sample, :, pixels] = F.scaled_dot_product_attention(own, *chosen, scale=scale)[0]
                continue
            parts = [with_logsumexp(own, keys[None, :, text], values[None, :, text], scale) for text in texts]
            totals = torch.stack([total for _, total in parts]) + bias.T[:, None, None]  # [t, 1, H, P]
            weights = totals.softmax(0)[..., None].to(query.dtype)
            mixed = sum(weight * part for weight, (part, _) in zip(weights, parts, strict=True))
            out[sample, :, pixels] = torch.as_tensor(mixed)[0]
    return out


@dataclass(frozen=True, eq=False)
class SeenTexts:
    """Which of the texts side by side each pixel sees, by the factors `share` [B, N, T], 0 where it does not."""

    share: Tensor

    @property
    def texts(self) -> int:
        """T."""
        return self.share.shape[2]

    def bias(self, words: int, dtype: torch.dtype) -> Tensor:
        """The same as a bias [B, 1, N, words] of scores."""
        return self.share.log().repeat_interleave(words // self.texts, 2)[:, None].to(dtype)

    @cached_property
    def plans(self) -> list[list[tuple[Tensor, list[int], Tensor]]]:
        """Of each sample, for all pixels that see the same texts: (pixels [P], texts, log of their shares [P, t])."""
        powers = 2 ** torch.arange(self.texts, device=self.share.device)
        found = []
        for own in self.share:
            kinds, which = ((own > 0) * powers).sum(1).unique(return_inverse=True)
            plan = []
            for n, kind in enumerate(kinds.tolist()):
                pixels, texts = (which == n).nonzero().flatten(), [t for t in range(self.texts) if kind >> t & 1]
                plan.append((pixels, texts, own[pixels][:, texts].log()))
            found.append(plan)
        return found


def _by_groups(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
    if len(plan.groups) == 1:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    q, k, v = (one.index_select(2, plan.order) for one in (query, key, value))
    parts = []
    for own, keys in plan.groups:
        seen = [_cat([one[:, :, span] for span in keys]) for one in (k, v)]
        parts.append(F.scaled_dot_product_attention(q[:, :, own], seen[0], seen[1], scale=scale))
    return torch.cat(parts, 2).index_select(2, plan.inverse)


def _flex(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
    if len(plan.groups) == 1:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    q, k, v = (one.index_select(2, plan.order) for one in (query, key, value))
    return _compiled_flex()(q, k, v, block_mask=plan.block_mask, scale=scale).index_select(2, plan.inverse)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False)
    return compiled


def _joined(spans: list[slice]) -> list[slice]:
    """The same pixels in as few spans as possible."""
    found: list[slice] = []
    for span in spans:
        if found and found[-1].stop == span.start:
            found[-1] = slice(found[-1].start, span.stop)
        else:
            found.append(span)
    return found


def _length(span: slice) -> int:
    return span.stop - span.start


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
