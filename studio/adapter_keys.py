"""Keys of adapter files: which layer of which component each belongs to, and which part of its factor it is. No torch.

A key is prefix + layer + ending. Each is read for itself, so that a file may mix conventions.
"""

import re
from dataclasses import dataclass

from studio.adapter_names import component_of, layer_path, text_path

_SIDES = {"down": "down", "up": "up", "mid": "mid", "A": "down", "B": "up"}
_ENDINGS = (
    (re.compile(r"\.lora_(down|up|mid)\.weight$"), "kohya"),
    (re.compile(r"\.lora_(A|B)(?:\.[A-Za-z0-9_]+)?\.weight$"), "PEFT"),
    (re.compile(r"\.(?:lora|lora_layer|lora_linear_layer)\.(down|up)\.weight$"), "diffusers 0.22"),
    (re.compile(r"_lora\.(down|up)\.weight$"), "diffusers attention processors"),
)
_PLAIN = {
    "alpha": "alpha", "dora_scale": "dora_scale", "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude", "lora_magnitude_vector.default": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude", "diff": "weight", "diff_b": "bias", "w_norm": "weight",
    "b_norm": "bias",
    **{name: name for name in (
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b",
        "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_blocks", "rescale",
    )},
}  # fmt: skip
_PLAIN_ENDING = re.compile(r"\.(" + "|".join(re.escape(one) for one in sorted(_PLAIN, key=len, reverse=True)) + ")$")
_UNDERSCORED = {
    "lora_unet_": "unet", "lora_transformer_": "transformer", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3", "oft_unet_": "unet", "lycoris_": None,
}  # fmt: skip
_DOTTED = {
    "unet.": "unet", "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3",
    "text_encoder.": "text_encoder", "transformer.": "transformer", "base_model.model.": None,
    "model.diffusion_model.": None, "diffusion_model.": None,
}  # fmt: skip
WORD_PREFIX = "lora_word."  # of new words in files for diffusers
_EMBEDDING = re.compile(
    r"(?:bundle_emb|lora_word)\.(?P<name>.+?)\.(?P<part>string_to_param\.\*|emb_params|clip_l|clip_g|layers|\*)"
)


@dataclass(frozen=True)
class Place:
    """Where a tensor belongs. `component` is None where only shapes tell (a folder of PEFT for a text encoder)."""

    component: str | None
    path: str
    part: str
    format: str


def parse_key(key: str) -> Place | None:
    """What `key` says; None where no known convention explains it."""
    stem, part, style = _ending(key)
    if stem is None:
        return None
    component, name, convention = _prefix(stem)
    path = layer_path(name.replace(".processor.", "."))
    component = component or component_of(path)
    if component is None:
        return None
    if component == "unet" and component_of(path) == "transformer":  # kohya says "unet" of Flux too
        component = "transformer"
    if component.startswith("text_encoder"):
        path = text_path(path)
    elif path.endswith(".to_out"):
        path += ".0"
    known = component if convention != "base_model" or component != "text_encoder" else None
    return Place(known, path, part, _format(key, convention, style, name))


def embedding_key(key: str) -> tuple[str, str] | None:
    """(token, part) of an embedding that a LoRA file brings along; None for other keys."""
    found = _EMBEDDING.fullmatch(key)
    return None if found is None else (found["name"], found["part"].removeprefix("string_to_param."))


def _ending(key: str) -> tuple[str | None, str, str]:
    for ending, style in _ENDINGS:
        if found := ending.search(key):
            return key[: found.start()], _SIDES[found[1]], style
    if found := _PLAIN_ENDING.search(key):
        return key[: found.start()], _PLAIN[found[1]], "LyCORIS" if found[1][:4] in ("hada", "lokr", "oft_") else ""
    return None, "", ""


def _prefix(stem: str) -> tuple[str | None, str, str]:
    for prefix, component in _UNDERSCORED.items():
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix), "kohya" if component else "LyCORIS"
    for prefix, component in _DOTTED.items():
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix), prefix.partition(".")[0] if component is None else "dotted"
    return None, stem, "bare"


def _format(key: str, convention: str, style: str, name: str) -> str:
    """What users know the convention as."""
    if convention == "base_model":
        return "PEFT folder"
    if convention in ("model", "diffusion_model"):
        return "ComfyUI, ai-toolkit"
    if convention in ("kohya", "LyCORIS"):
        sgm = name.startswith(("input_blocks", "middle_block", "output_blocks"))
        return ("LyCORIS" if "LyCORIS" in (convention, style) else "kohya") + (", Stability's names" if sgm else "")
    return f"diffusers ({style})" if style == "PEFT" else (style or "diffusers")
