"""Diffusers pipelines rewritten to the key names of the original one-file layouts, to test reading those.

Written from the layout's own numbering (input, middle and output blocks), not from any converter.
"""

from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_OPEN_CLIP |= {"self_attn.out_proj": "attn.out_proj"}
_OPEN_CLIP_ENDS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def sd15_in_one_file(pipe: Any) -> Tensors:
    """All weights of a StableDiffusionPipeline under their original names."""
    text = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    return _pictures(pipe) | text


def sdxl_in_one_file(pipe: Any) -> Tensors:
    """All weights of a StableDiffusionXLPipeline with an AutoencoderKL under their original names."""
    first = pipe.text_encoder.state_dict()
    text = {f"conditioner.embedders.0.transformer.text_model.{key}": value for key, value in first.items()}
    second = _open_clip(pipe.text_encoder_2.state_dict())
    return _pictures(pipe) | text | {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}


def unet_layer(path: str, unet: Any) -> str:
    """The original name of one layer of the UNet."""
    return _unet(f"{path}.weight", unet).removesuffix(".weight")


def _pictures(pipe: Any) -> Tensors:
    unet = {f"model.diffusion_model.{_unet(key, pipe.unet)}": value for key, value in pipe.unet.state_dict().items()}
    vae = dict(_vae(key, value, pipe.vae) for key, value in pipe.vae.state_dict().items())
    return {key: value.contiguous() for key, value in (unet | vae).items()}


def _open_clip(state: Tensors) -> Tensors:
    """The second text encoder: queries, keys and values in one matrix, the projection transposed."""
    renamed = {name: state[key] for key, name in _OPEN_CLIP_ENDS.items()}
    renamed["text_projection"] = state["text_projection.weight"].T.contiguous()
    for key, value in state.items():
        if ".layers." not in key:
            continue
        number, inner = key.split(".layers.")[1].split(".", 1)
        place = f"transformer.resblocks.{number}"
        if inner.startswith("self_attn.q_proj."):
            kind = inner.rsplit(".", 1)[1]
            together = [state[key.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            renamed[f"{place}.attn.in_proj_{kind}"] = torch.cat(together)
        elif "k_proj" not in inner and "v_proj" not in inner:
            renamed[f"{place}.{_swap(inner, _OPEN_CLIP)}"] = value
    return renamed


def _swap(inner: str, names: dict[str, str]) -> str:
    for ours, original in names.items():
        if inner.startswith(f"{ours}."):
            return original + inner.removeprefix(ours)
    return inner


def _unet(key: str, unet: Any) -> str:
    layers = unet.config.layers_per_block
    kind, _, rest = key.partition(".")
    if kind == "mid_block":
        part, number, inner = rest.split(".", 2)
        if part == "attentions":
            return f"middle_block.1.{inner}"
        return f"middle_block.{2 * int(number)}.{_swap(inner, _RESNET)}"
    if kind not in ("down_blocks", "up_blocks"):
        return _swap(key, _UNET_ENDS)
    block, part, number, inner = rest.split(".", 3)
    first = int(block) * (layers + 1)
    if kind == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{inner.removeprefix('conv.')}"
        place = f"input_blocks.{first + int(number) + 1}"
    else:
        if part == "upsamplers":
            place = 2 if hasattr(unet.up_blocks[int(block)], "attentions") else 1
            return f"output_blocks.{first + layers}.{place}.{inner}"
        place = f"output_blocks.{first + int(number)}"
    return f"{place}.1.{inner}" if part == "attentions" else f"{place}.0.{_swap(inner, _RESNET)}"


def _vae(key: str, value: torch.Tensor, vae: Any) -> tuple[str, torch.Tensor]:
    if key.startswith(("quant_conv", "post_quant_conv")):
        return f"first_stage_model.{key}", value
    side, rest = key.split(".", 1)
    if rest.startswith("mid_block.attentions.0."):
        inner = _swap(rest.removeprefix("mid_block.attentions.0."), _VAE_ATTENTION)
        wide = value[:, :, None, None] if value.ndim == 2 else value  # linear there was a 1 x 1 convolution
        return f"first_stage_model.{side}.mid.attn_1.{inner}", wide
    if rest.startswith("mid_block.resnets."):
        number, inner = rest.removeprefix("mid_block.resnets.").split(".", 1)
        return f"first_stage_model.{side}.mid.block_{int(number) + 1}.{inner}", value
    if rest.startswith(("down_blocks", "up_blocks")):
        kind, block, part, number, inner = rest.split(".", 4)
        if kind == "up_blocks":
            block = str(len(vae.config.block_out_channels) - 1 - int(block))
        inner = inner.replace("conv_shortcut", "nin_shortcut")
        name = {"resnets": f"block.{number}", "downsamplers": "downsample", "upsamplers": "upsample"}[part]
        return f"first_stage_model.{side}.{kind.removesuffix('_blocks')}.{block}.{name}.{inner}", value
    return f"first_stage_model.{side}.{rest.replace('conv_norm_out', 'norm_out')}", value
