"""Names of layers: from every convention of adapter files to the dotted paths of diffusers, and back. No torch."""

import re

# Parts of dotted paths that themselves contain "_", which kohya's names put for ".".
_COMPOUNDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "single_transformer_blocks", "to_q", "to_k", "to_v",
    "to_out", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj", "proj_in", "proj_out", "proj_mlp",
    "time_emb_proj", "conv_shortcut", "conv_in", "conv_out", "conv_norm_out", "time_embedding", "add_embedding",
    "linear_1", "linear_2", "ff_context", "norm1_context", "norm_out", "text_model", "text_projection", "self_attn",
    "q_proj", "k_proj", "v_proj", "out_proj", "layer_norm1", "layer_norm2", "final_layer_norm", "token_embedding",
    "position_embedding", "time_text_embed", "timestep_embedder", "text_embedder", "guidance_embedder",
    "context_embedder", "x_embedder", "double_blocks", "single_blocks", "img_attn", "txt_attn", "img_mlp", "txt_mlp",
    "img_mod", "txt_mod", "img_in", "txt_in", "time_in", "vector_in", "guidance_in", "in_layer", "out_layer",
    "final_layer", "adaLN_modulation",
)  # fmt: skip
_COMPOUND = re.compile("|".join(sorted(_COMPOUNDS, key=len, reverse=True)) + r"|[^_]+")

# Stability's names ("sgm") within a resnet, and of the layers that stand alone.
_RESNET = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj", "out_layers_0": "norm2",
    "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ALONE = {
    "input_blocks_0_0": "conv_in", "time_embed_0": "time_embedding.linear_1", "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1", "label_emb_0_2": "add_embedding.linear_2", "out_0": "conv_norm_out",
    "out_2": "conv_out",
}  # fmt: skip
_SGM = re.compile(r"(?:input_blocks_(\d{1,3})|middle_block|output_blocks_(\d{1,3}))_(\d{1,3})_(.+)")
_SGM_START = ("input_blocks", "middle_block", "output_blocks", "time_embed_", "label_emb", "out_")
LAYERS_PER_BLOCK = 2  # of SD1.5 and SDXL
_STEP = LAYERS_PER_BLOCK + 1

_UNET_STARTS = ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "conv_norm_out", "time_embedding.",
                "add_embedding.")  # fmt: skip
_TRANSFORMER_STARTS = (
    "transformer_blocks.", "single_transformer_blocks.", "x_embedder", "context_embedder", "time_text_embed.",
    "norm_out.", "proj_out", "double_blocks.", "single_blocks.", "img_in", "txt_in", "time_in.", "vector_in.",
    "guidance_in.", "final_layer.",
)  # fmt: skip
_TEXT_STARTS = ("text_model.", "text_projection", "encoder.layers.", "final_layer_norm")


def dotted(name: str) -> str:
    """The path of a name in which every dot is an underscore, e.g. "down_blocks_0_resnets_1_conv1"."""
    return ".".join(_COMPOUND.findall(name))


def from_sgm(name: str) -> str | None:
    """The diffusers path of a layer in Stability's names, with dots or underscores; None for other names."""
    flat = name.replace(".", "_")
    if flat in _ALONE:
        return _ALONE[flat]
    found = _SGM.fullmatch(flat)
    if not found:
        return None
    down, up, part, rest = found[1], found[2], int(found[3]), found[4]
    if down is not None:
        block, layer = divmod(int(down) - 1, _STEP)
        if rest == "op":
            return f"down_blocks.{block}.downsamplers.0.conv"
        return f"down_blocks.{block}.{_inner('attentions' if part else 'resnets', layer, rest)}"
    if up is not None:
        block, layer = divmod(int(up), _STEP)
        if rest == "conv":
            return f"up_blocks.{block}.upsamplers.0.conv"
        return f"up_blocks.{block}.{_inner('attentions' if part else 'resnets', layer, rest)}"
    kind, layer = ("attentions", 0) if part == 1 else ("resnets", part // 2)
    return f"mid_block.{_inner(kind, layer, rest)}"


def to_sgm(path: str) -> str:
    """The inverse of `from_sgm` for SDXL, with underscores; raises KeyError for a layer that has no such name."""
    alone = {known: name for name, known in _ALONE.items()}
    if path in alone:
        return alone[path]
    inner = {known: name for name, known in _RESNET.items()}
    pieces = path.split(".")
    side, block = (pieces[0], 0) if pieces[0] == "mid_block" else (pieces[0], int(pieces[1]))
    kind, layer, *rest = pieces[1:] if side == "mid_block" else pieces[2:]
    if kind == "downsamplers":
        return f"input_blocks_{_STEP * block + _STEP}_0_op"
    if kind == "upsamplers":  # behind the block's attention
        return f"output_blocks_{_STEP * block + LAYERS_PER_BLOCK}_2_conv"
    tail = inner[rest[0]] if kind == "resnets" else "_".join(rest)
    if side == "mid_block":
        return f"middle_block_{1 if kind == 'attentions' else 2 * int(layer)}_{tail}"
    place = _STEP * block + int(layer) + (1 if side == "down_blocks" else 0)
    start = "input_blocks" if side == "down_blocks" else "output_blocks"
    return f"{start}_{place}_{int(kind == 'attentions')}_{tail}"


def layer_path(name: str) -> str:
    """The diffusers path of a layer of a UNet or transformer, whatever convention its name follows."""
    if name.replace(".", "_").startswith(_SGM_START):
        return from_sgm(name) or name
    return name if "." in name else dotted(name)


def component_of(path: str) -> str | None:
    """The part of a pipeline that has a layer `path`, as far as the path tells; "text_encoder" for either."""
    if path.startswith(_UNET_STARTS):
        return "unet"
    if path.startswith(_TRANSFORMER_STARTS):
        return "transformer"
    return "text_encoder" if path.startswith(_TEXT_STARTS) else None


def text_path(path: str) -> str:
    """The one name of a text encoder's layer: with "text_model." in front, attention in the names of transformers."""
    path = path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
    attention = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj", "to_out.0": "out_proj"}
    head, separator, tail = path.partition(".self_attn.")
    return head + separator + attention.get(tail, tail)


def _inner(kind: str, layer: int, rest: str) -> str:
    return f"{kind}.{layer}.{_RESNET.get(rest, rest) if kind == 'resnets' else dotted(rest)}"
