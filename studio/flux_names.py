"""Flux's layers in the names of its makers, and what they are in diffusers: fused projections are cut by rows."""

import re
from fractions import Fraction
from itertools import accumulate

Rows = tuple[tuple[Fraction, Fraction], ...]  # ranges of a matrix's rows, one after the other: (from, to), 1 is the end
ALL_ROWS: Rows = ((Fraction(0), Fraction(1)),)
_DOUBLE = {
    "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out", "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2", "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
}  # fmt: skip
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
_WIDTHS = {3: (1, 1, 1), 4: (1, 1, 1, 4)}  # of the parts of a fused projection, in model widths
_SINGLE = {"linear2": "proj_out", "modulation.lin": "norm.linear"}
_ALONE = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    **{
        f"{ours}.{layer}_layer": f"time_text_embed.{theirs}.linear_{number}"
        for ours, theirs in (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"),
                             ("guidance_in", "guidance_embedder"))
        for number, layer in ((1, "in"), (2, "out"))
    },
}  # fmt: skip
_SWAPPED = {"final_layer.adaLN_modulation.1": ((Fraction(1, 2), Fraction(1)), (Fraction(0), Fraction(1, 2)))}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def from_flux(path: str) -> list[tuple[str, Rows]] | None:
    """The diffusers layers of which `path` is made, each with its rows of it; None for other names.

    Where one computes a scale and a shift, diffusers has them in the other order.
    """
    if path in _ALONE:
        return [(_ALONE[path], _SWAPPED.get(path, ALL_ROWS))]
    found = _BLOCK.fullmatch(path)
    if not found:
        return None
    start = f"{'' if found[1] == 'double' else 'single_'}transformer_blocks.{found[2]}."
    if parts := _FUSED.get(found[3]):
        ends = [0, *accumulate(_WIDTHS[len(parts)])]
        shares = [Fraction(end, ends[-1]) for end in ends]
        return [(start + part, ((shares[n], shares[n + 1]),)) for n, part in enumerate(parts)]
    layer = (_DOUBLE if found[1] == "double" else _SINGLE).get(found[3])
    return None if layer is None else [(start + layer, ALL_ROWS)]
