"""The rows of the zoo that are LoRA: kohya's, diffusers' and PEFT's ways to write it, DoRA among them."""

from math import sqrt

import torch
from adapter_zoo import ATTENTION, CONVOLUTIONS, LINEAR, TEXT, Zoo, dense, peft_metadata, row

MIXED = (1.0, 2.0, 4.0, 8.0)


@row("kohya SD1.5, alpha 2 of rank 4", "sd15")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*LINEAR):
        zoo.kohya(path, path, 4, 2.0)


@row("kohya SDXL, Stability's names", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*LINEAR):
        zoo.kohya(path, zoo.sgm(path), 4, 4.0)


@row("kohya SDXL, Stability's names, alpha 1 of rank 4", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*LINEAR):
        zoo.kohya(path, zoo.sgm(path), 4, 1.0)


@row("kohya SDXL, diffusers' names", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*LINEAR):
        zoo.kohya(path, path, 4, 2.0)


@row("kohya SDXL, both kinds of names in one file", "sdxl")
def _(zoo: Zoo) -> None:
    for number, path in enumerate(zoo.layers(*ATTENTION)):
        zoo.kohya(path, path if number % 2 else zoo.sgm(path), 4, 4.0)


@row("kohya, ranks differ, one alpha", "sdxl")
def _(zoo: Zoo) -> None:
    for number, path in enumerate(zoo.layers(*ATTENTION)):
        zoo.kohya(path, zoo.sgm(path), (2, 4, 8)[number % 3], 4.0)


@row("kohya, alphas differ by module", "sdxl")
def _(zoo: Zoo) -> None:
    for number, path in enumerate(zoo.layers(*ATTENTION)):
        zoo.kohya(path, zoo.sgm(path), 4, MIXED[number % 4])


@row("kohya, alpha missing in some modules", "sdxl")
def _(zoo: Zoo) -> None:
    for number, path in enumerate(zoo.layers(*ATTENTION)):
        zoo.kohya(path, zoo.sgm(path), 4, None if number % 3 == 0 else 1.0)


@row("kohya, no alphas, ranks differ", "sdxl")
def _(zoo: Zoo) -> None:
    for number, path in enumerate(zoo.layers(*ATTENTION)):
        zoo.kohya(path, zoo.sgm(path), (2, 4, 8)[number % 3], None)


@row("kohya SD1.5, text encoder", "sd15")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*TEXT, component="text_encoder"):
        zoo.kohya(path, path, 4, 2.0, "text_encoder", "lora_te_")


@row("kohya SDXL, both text encoders, ranks differ", "sdxl")
def _(zoo: Zoo) -> None:
    for component, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        for number, path in enumerate(zoo.layers(*TEXT, component=component)):
            zoo.kohya(path, path, (2, 4)[number % 2], 2.0, component, prefix)


@row("kohya SDXL, both text encoders, alphas differ", "sdxl")
def _(zoo: Zoo) -> None:
    for component, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        for number, path in enumerate(zoo.layers(*TEXT, component=component)):
            zoo.kohya(path, path, 4, MIXED[number % 4], component, prefix)


@row("LoCon, convolutions of 3 x 3", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*LINEAR, *CONVOLUTIONS, "time_emb_proj"):
        zoo.kohya(path, zoo.sgm(path), 4, 2.0)


@row("LoCon, Tucker's lora_mid", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers("conv1", "conv2"):
        outputs, inputs = zoo.weight(path).shape[:2]
        down, mid = zoo.draw(4, inputs, 1, 1, size=inputs**-0.5), zoo.draw(4, 4, 3, 3, size=0.2)
        up = zoo.draw(outputs, 4, 1, 1)
        key = "lora_unet_" + zoo.sgm(path).replace(".", "_")
        zoo.tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_mid.weight": mid, f"{key}.lora_up.weight": up}
        zoo.tensors[f"{key}.alpha"] = torch.tensor(2.0)
        left, right = up.double()[:, :, 0, 0], down.double()[:, :, 0, 0]
        kernel = [[left @ mid.double()[:, :, y, x] @ right for x in range(3)] for y in range(3)]
        zoo.add(path, 2 / 4 * torch.stack([torch.stack(line, -1) for line in kernel], -2))


@row("LyCORIS's own prefix, convolutions too", "sd15")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*LINEAR, *CONVOLUTIONS):
        zoo.kohya(path, path, 4, 2.0, prefix="lycoris_")


def _dora(zoo: Zoo, path: str, change: torch.Tensor, per_input: bool = False, component: str = "unet") -> torch.Tensor:
    """Replaces the layer's change by DoRA's; gives the magnitudes [out], or [in] where they go by input."""
    weight = zoo.weight(path, component)
    moved = weight + change.reshape(weight.shape)
    by = moved.transpose(0, 1) if per_input else moved
    norms = by.flatten(1).norm(dim=1)
    magnitude = (norms * (1 + zoo.draw(len(norms), size=0.5).double())).float()
    shape = [1] * moved.dim()
    shape[int(per_input)] = -1
    zoo.add(path, magnitude.double().reshape(shape) * moved / norms.reshape(shape) - weight, component)
    return magnitude


@row("DoRA, kohya's dora_scale", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION, "conv1"):
        down, up = zoo.kohya(path, zoo.sgm(path), 4, 2.0)
        magnitude = _dora(zoo, path, 2 / 4 * dense(down, up))
        key = "lora_unet_" + zoo.sgm(path).replace(".", "_")
        zoo.tensors[f"{key}.dora_scale"] = magnitude.reshape(-1, *[1] * (down.dim() - 1))


@row("DoRA, kohya's, both text encoders", "sdxl")
def _(zoo: Zoo) -> None:
    for component, prefix in (("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")):
        for path in zoo.layers(*TEXT, component=component):
            down, up = zoo.kohya(path, path, 4, 4.0, component, prefix)
            magnitude = _dora(zoo, path, dense(down, up), component=component)
            zoo.tensors[prefix + path.replace(".", "_") + ".dora_scale"] = magnitude[:, None]


@row("DoRA, one magnitude an input (2024)", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        down, up = zoo.kohya(path, zoo.sgm(path), 4, 4.0)
        magnitude = _dora(zoo, path, dense(down, up), per_input=True)
        zoo.tensors["lora_unet_" + zoo.sgm(path).replace(".", "_") + ".dora_scale"] = magnitude[None]


def _plain(zoo: Zoo, path: str, keys: tuple[str, str], rank: int = 4, scale: float = 1.0) -> None:
    """A pair under keys of its own, without an alpha tensor."""
    down, up = zoo.pair(path, rank)
    zoo.tensors |= {keys[0]: down, keys[1]: up}
    zoo.add(path, scale * dense(down, up))


def _sides(key: str, down: str, up: str) -> tuple[str, str]:
    return f"{key}{down}.weight", f"{key}{up}.weight"


@row("diffusers up to 0.21, attention processors", "sd15")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        block, kind = path.removesuffix(".0").rsplit(".", 1)
        _plain(zoo, path, _sides(f"unet.{block}.processor.{kind}_lora", ".down", ".up"))


@row("diffusers 0.22 to 0.25, to_q.lora.down", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        _plain(zoo, path, _sides(f"unet.{path}.lora", ".down", ".up"))


@row("B-LoRA", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        if path.startswith(("up_blocks.0.attentions.0.", "up_blocks.0.attentions.1.")):
            _plain(zoo, path, _sides(f"unet.{path}.lora", ".down", ".up"))


@row("diffusers, to_q.lora_linear_layer on the UNet", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        _plain(zoo, path, _sides(f"unet.{path}.lora_linear_layer", ".down", ".up"))


@row("diffusers today, no metadata", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        _plain(zoo, path, _sides(f"unet.{path}", ".lora_A", ".lora_B"))


@row("diffusers today, alphas and ranks in the metadata", "sdxl")
def _(zoo: Zoo) -> None:
    ranks, alphas = {}, {}
    for number, path in enumerate(zoo.layers(*ATTENTION)):
        ranks[path], alphas[path] = (2, 4)[number % 2], MIXED[number % 4]
        _plain(zoo, path, _sides(f"unet.{path}", ".lora_A", ".lora_B"), ranks[path], alphas[path] / ranks[path])
    peft_metadata(zoo, rank_pattern=ranks, alpha_pattern=alphas)


@row("diffusers today, rsLoRA in the metadata", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        _plain(zoo, path, _sides(f"unet.{path}", ".lora_A", ".lora_B"), 4, 2 / sqrt(4))
    peft_metadata(zoo, lora_alpha=2, use_rslora=True)


@row("diffusers today, DoRA", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        _plain(zoo, path, _sides(f"unet.{path}", ".lora_A", ".lora_B"))
        magnitude = _dora(zoo, path, zoo.changes[f"unet.{path}"])
        zoo.tensors[f"unet.{path}.lora_magnitude_vector"] = magnitude
    peft_metadata(zoo, use_dora=True)


@row("PEFT folder", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        _plain(zoo, path, _sides(f"base_model.model.{path}", ".lora_A", ".lora_B"), 4, 2 / 4)
    zoo.config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": list(ATTENTION)}


@row("no prefix at all", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        _plain(zoo, path, _sides(path, ".lora_A", ".lora_B"))
