"""The halves of an adapter: one block of the UNet carries content and one style (B-LoRA, Frenkel et al. 2024).

They come of the place alone. A B-LoRA was trained on just these two blocks, each of which can be used without the
other; of an ordinary LoRA, whose layers learned together, a block is no more than near to content or style.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from studio.adapter_algebra import with_family
from studio.adapter_family import NAMES
from studio.adapter_report import examples
from studio.adapters import Adapter
from studio.bases import EMBEDDED, SDXL_BLOCKS, Role, find_base, role_blocks
from studio.errors import UsageError


@dataclass(frozen=True)
class Half:
    """What of an adapter is in the block of one role; `rest` are the layers that are in the block of none, and `words`
    the embeddings that are not part of this half."""

    adapter: Adapter
    rest: tuple[str, ...]
    words: tuple[str, ...]

    def notice(self) -> str | None:
        """One sentence where more of the adapter is left out than the other half; else None."""
        if not self.rest and not self.words:
            return None
        kept, lost = len(self.adapter.layers), len(self.rest)
        said = []
        if lost:
            said.append(
                f"the adapter was not trained on single blocks, so the split is only approximate: {kept} of its layers"
                f" act, and {lost} that are in neither half do not, e.g. {examples(self.rest)}"
            )
        if self.words:
            said.append(f"the words {examples(self.words)} stay with the content")
        return f"{self.adapter.name}: {'; '.join(said)}."


def half_of(adapter: Adapter, role: Role, blocks: Mapping[Role, str] = SDXL_BLOCKS) -> Half:
    """The part of `adapter` in the block that carries `role`, exactly as it is: nothing is scaled.

    Embeddings belong to the content. Raises UsageError where nothing of the adapter is there.
    """
    inside = {one: [layer for layer in adapter.layers if layer.startswith(f"unet.{at}.")] for one, at in blocks.items()}
    mine = set(inside[role])
    if not mine:
        there = [f"it has {len(inside[one])} of {one} in {at}" for one, at in blocks.items() if inside[one]]
        raise UsageError(
            f"{adapter.name} has no {role} half: none of its {len(adapter.layers)} layers is in {blocks[role]}"
            + (f"; {there[0]}." if there else "."),
            "Give a B-LoRA, or a LoRA of the whole UNet, that was made for this base.",
        )
    known = set().union(*inside.values())
    kept = replace(
        adapter,
        name=f"{adapter.name}_{role}",
        factors={layer: factor for layer, factor in adapter.factors.items() if layer in mine},
        biases={layer: bias for layer, bias in adapter.biases.items() if layer in mine},
        embeddings=adapter.embeddings if role == "content" else {},
        unread=(),
        metadata=with_family(adapter) | {"studio.role": role},
    )
    rest = tuple(layer for layer in adapter.layers if layer not in known)
    return Half(kept, rest, () if role == "content" else tuple(adapter.embeddings))


def split(adapter: Adapter) -> tuple[Adapter, Adapter, tuple[str, ...]]:
    """(content, style, layers that are in neither) of an adapter of SDXL, or of the embedded base.

    Raises UsageError where a half is missing, or the adapter is not for SDXL.
    """
    if adapter.family not in (None, "sdxl"):
        raise UsageError(
            f"{adapter.name} was made for {NAMES[adapter.family]}; a B-LoRA is for {NAMES['sdxl']}.",
            "Give an adapter of SDXL.",
        )
    blocks = role_blocks(find_base(EMBEDDED)) if adapter.metadata.get("studio.base") == EMBEDDED else SDXL_BLOCKS
    content, style = half_of(adapter, "content", blocks), half_of(adapter, "style", blocks)
    return content.adapter, style.adapter, content.rest
