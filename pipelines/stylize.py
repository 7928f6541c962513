"""The content of one adapter in the style of another (B-LoRA, Frenkel et al. 2024): each acts with its half alone.

Four tasks: content of A with style of B; content of A with a style in words; any content with style of B; and a subject
learned from several pictures with style of B. The halves lie in blocks of their own, so that merging both is exact.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from PIL.Image import Image

from studio.adapters import Adapter, load_concept
from studio.bank import AdapterBank
from studio.bases import BaseSource, role_blocks
from studio.blora import Half, half_of
from studio.concepts import Concept
from studio.errors import UsageError
from studio.events import Emit, Notice
from studio.models import BaseModel
from studio.pipelines.baselines import Merge
from studio.pipelines.compose import draw
from studio.pipelines.decoding import decode
from studio.pipelines.settings import GenerateSettings

Chosen = tuple[Concept, float] | None


def stylize(
    base: BaseModel, settings: GenerateSettings, emit: Emit, content: Chosen = None, style: Chosen = None
) -> list[Image]:
    """`settings.count` pictures with the content half of one concept and the style half of one, which may be the same.

    The prompt has to name the content as `<name>`; the words of the style are added to it where it does not say them.
    Strengths are linear: B-LoRA's own code scales both factors of an update, so that its alpha is a strength of alpha
    squared. The base is as before at the end. Raises UsageError where an adapter has nothing in the block that is
    wanted, and for a base whose blocks are not known.
    """
    if style and style[0].method == "b-lora":  # as its authors say it: in [v] style
        style = (replace(style[0], class_word="style"), style[1])
    if content and style and content[0].name == style[0].name:
        style = (replace(style[0], name=f"{style[0].name} as a style"), style[1])
    halves = halves_of(base.source, content, style)
    for half in halves.values():
        if notice := half.notice():
            emit(Notice(notice))
    bank_of = partial(AdapterBank.of, load=lambda concept: halves[concept.name].adapter)
    chosen, styles = [content] if content else [], [style] if style else []
    latents = draw(base, settings, chosen, Merge(), emit, styles=styles, bank_of=bank_of)
    return decode(base, latents, settings.vae_tiling)


def halves_of(
    source: BaseSource, content: Chosen, style: Chosen, load: Callable[[Concept], Adapter] = load_concept
) -> dict[str, Half]:
    """The halves by the names of their concepts; raises UsageError where there is none, as `stylize` does."""
    if not content and not style:
        raise UsageError("There is neither content nor style.", "Give --content NAME, --style NAME or both.")
    blocks = role_blocks(source)
    found = {}
    if content:
        found[content[0].name] = half_of(load(content[0]), "content", blocks)
    if style:
        found[style[0].name] = half_of(load(style[0]), "style", blocks)
    return found
