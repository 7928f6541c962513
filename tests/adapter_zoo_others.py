"""The rows of the zoo that are more than LoRA: LyCORIS's kinds, DiffuseKronA in both layouts, files with words."""

import torch
from adapter_zoo import ATTENTION, LINEAR, TEXT, Zoo, dense, row


def _key(zoo: Zoo, path: str) -> str:
    return "lora_unet_" + zoo.sgm(path).replace(".", "_")


@row("LoHa", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*LINEAR, "conv1"):
        key, shape = _key(zoo, path), zoo.weight(path).shape
        ups = [zoo.draw(shape[0], 4) for _ in range(2)]
        downs = [zoo.draw(4, shape[1:].numel(), size=0.4) for _ in range(2)]
        for n, (down, up) in enumerate(zip(downs, ups, strict=True), 1):
            zoo.tensors |= {f"{key}.hada_w{n}_a": up, f"{key}.hada_w{n}_b": down}
        zoo.tensors[f"{key}.alpha"] = torch.tensor(2.0)
        zoo.add(path, 2 / 4 * dense(downs[0], ups[0]) * dense(downs[1], ups[1]))


@row("LoHa, Tucker's convolutions", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers("conv1", "conv2"):
        key, (outputs, inputs, *_) = _key(zoo, path), zoo.weight(path).shape
        product = torch.ones(outputs, inputs, 3, 3, dtype=torch.float64)
        for n in (1, 2):
            core, a, b = zoo.draw(4, 4, 3, 3, size=0.5), zoo.draw(4, outputs), zoo.draw(4, inputs, size=0.3)
            zoo.tensors |= {f"{key}.hada_t{n}": core, f"{key}.hada_w{n}_a": a, f"{key}.hada_w{n}_b": b}
            for y in range(3):
                for x in range(3):
                    product[:, :, y, x] *= a.double().T @ core.double()[:, :, y, x] @ b.double()
        zoo.tensors[f"{key}.alpha"] = torch.tensor(4.0)
        zoo.add(path, product)


def _kronecker(a: torch.Tensor, b: torch.Tensor, ibm: bool = False) -> torch.Tensor:
    """Row by row: q b1 + p of the usual order, p a1 + q of IBM's; columns i b2 + j."""
    (a1, a2), (b1, b2) = a.shape, b.shape[:2]
    rows = [(q, p) for q in range(a1) for p in range(b1)] if not ibm else [(q, p) for p in range(b1) for q in range(a1)]
    lines = [torch.cat([a[q, i].double() * b[p].double() for i in range(a2)]) for q, p in rows]
    return torch.stack(lines).reshape(a1 * b1, a2 * b2, *b.shape[2:])


@row("LoKr, whole matrices, alpha without a meaning", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION, "conv1"):
        key, (outputs, inputs, *kernel) = _key(zoo, path), zoo.weight(path).shape
        a, b = zoo.draw(4, 4, size=0.5), zoo.draw(outputs // 4, inputs // 4, *kernel, size=0.3)
        zoo.tensors |= {f"{key}.lokr_w1": a, f"{key}.lokr_w2": b, f"{key}.alpha": torch.tensor(1e10)}
        zoo.add(path, _kronecker(a, b))


@row("LoKr, low-rank matrices, alpha 1 of rank 2", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        key, (outputs, inputs) = _key(zoo, path), zoo.weight(path).shape
        a, up, down = zoo.draw(4, 4), zoo.draw(outputs // 4, 2), zoo.draw(2, inputs // 4, size=0.4)
        zoo.tensors |= {f"{key}.lokr_w1": a, f"{key}.lokr_w2_a": up, f"{key}.lokr_w2_b": down}
        zoo.tensors[f"{key}.alpha"] = torch.tensor(1.0)
        zoo.add(path, 1 / 2 * _kronecker(a, dense(down, up)))


@row("DiffuseKronA, usual order, as LoKr", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        key, (outputs, inputs) = _key(zoo, path), zoo.weight(path).shape
        a, b = zoo.draw(8, 2, size=0.5), zoo.draw(outputs // 8, inputs // 2, size=0.4)
        zoo.tensors |= {f"{key}.lokr_w1": a, f"{key}.lokr_w2": b, f"{key}.alpha": torch.tensor(1.0)}
        zoo.add(path, _kronecker(a, b))


@row("DiffuseKronA, IBM's file", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        block, kind = path.removesuffix(".0").rsplit(".", 1)
        outputs, inputs = zoo.weight(path).shape
        down, up = zoo.draw(2, 8, size=0.5), zoo.draw(outputs // 8, inputs // 2, size=0.4)
        key = f"unet.{block}.processor.{kind}_lora"
        zoo.tensors |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        zoo.add(path, _kronecker(down.T, up, ibm=True))


@row("whole differences and norms", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers("to_out.0", "conv2", "attn2.to_k"):
        zoo.tensors[f"{_key(zoo, path)}.diff"] = change = zoo.draw(*zoo.weight(path).shape, size=0.1)
        zoo.add(path, change.double())
        if zoo.module(path).bias is not None:
            zoo.biases[f"unet.{path}"] = zoo.tensors[f"{_key(zoo, path)}.diff_b"] = zoo.draw(len(change), size=0.1)
    for path in zoo.layers("norm1", "norm2"):
        zoo.tensors[f"{_key(zoo, path)}.w_norm"] = change = zoo.draw(*zoo.weight(path).shape, size=0.2)
        zoo.biases[f"unet.{path}"] = zoo.tensors[f"{_key(zoo, path)}.b_norm"] = zoo.draw(len(change), size=0.2)
        zoo.add(path, change.double())


@row("kohya SDXL with words in the file (bundle_emb)", "sdxl")
def _(zoo: Zoo) -> None:
    for path in zoo.layers(*ATTENTION):
        zoo.kohya(path, zoo.sgm(path), 4, 2.0)
    zoo.tensors |= {"bundle_emb.ohwx.clip_l": zoo.draw(2, 16), "bundle_emb.ohwx.clip_g": zoo.draw(2, 24)}


@row("Mix-of-Show's ED-LoRA (.pth, by a flag)", "sd15")
def _(zoo: Zoo) -> None:
    unet, text = {}, {}
    for path in zoo.layers(*ATTENTION):
        unet |= _side_by_side(zoo, path, "unet")
    for path in zoo.layers(*TEXT[:4], component="text_encoder"):
        text |= _side_by_side(zoo, path, "text_encoder")
    words = {"<TOK1>": zoo.draw(16, 16), "<TOK2>": zoo.draw(16, 16)}
    zoo.nested = {"params": {"new_concept_embedding": words, "text_encoder": text, "unet": unet}}


def _side_by_side(zoo: Zoo, path: str, component: str) -> dict[str, torch.Tensor]:
    down, up = zoo.pair(path, 4, component)
    zoo.add(path, dense(down, up), component)
    return {f"{path}_lora.down.weight": down, f"{path}_lora.up.weight": up}
