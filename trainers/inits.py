"""How a LoRA begins: by chance, by the base's weights, or by what passes through its layers in training.

Kernels are taken flat: a convolution's weight is a matrix [out, n], n = in * kh * kw.
"""

from math import sqrt
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.functional import unfold
from torch.nn.utils.parametrize import register_parametrization

from studio.errors import UsageError
from studio.trainers.data import generator_for
from studio.trainers.recipe import Recipe
from studio.trainers.training import Training

FROM_DATA = ("eva", "lora-ga")
FROM_NOT_ZERO = ("pissa", "olora", "lora-ga")  # their first product is no zero, so it is taken off again
PASSES = 16  # batches that are looked at for what is made from data
_GAMMA = 16  # of LoRA-GA, as in its experiments
_ADAPTER = "default"
Layers = dict[str, Any]
Tensor = torch.Tensor
Pair = tuple[Tensor, Tensor]  # down [r, n], up [out, r]


class Beside(nn.Module):
    """A trained matrix with the `fixed` one beside it along `dim`: a LoRA of [up, -up0] and [down; down0] begins at
    zero, whatever up0 and down0 are, and acts on the untouched base."""

    def __init__(self, fixed: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("fixed", fixed)
        self.dim = dim

    def forward(self, trained: Tensor) -> Tensor:
        """Both as one matrix."""
        return torch.cat([trained, self.fixed], self.dim)  # pyright: ignore


def size_in_file(recipe: Recipe) -> tuple[int, float]:
    """(rank, alpha) of the LoRA of a recipe: both twice as much where its first product is taken off in it; of a
    rank-stabilised one alpha times the root, so that its scale stays."""
    times = 2 if recipe.init in FROM_NOT_ZERO else 1
    return times * recipe.rank, recipe.alpha * (sqrt(times) if recipe.rank_stabilised else times)


def check_init(layers: dict[str, nn.Linear | nn.Conv2d], dtype: torch.dtype, recipe: Recipe) -> None:
    """Raise UsageError where a layer has not so many directions as `recipe.rank` takes of it, and for lora-ga on a base
    in float16, which does not hold the gradients."""
    if recipe.init == "lora-ga" and dtype == torch.float16:
        raise UsageError("init lora-ga needs gradients that float16 does not hold.", "Choose another --init.")
    for name, layer in layers.items():
        out, n = layer.weight.flatten(1).shape
        most = {"pissa": min(out, n), "olora": min(out, n), "eva": n, "lora-ga": min(out, n) // 2}.get(recipe.init)
        if most is not None and recipe.rank > most:
            raise UsageError(
                f"init {recipe.init} takes a rank of {most} at most for {name}, which is {out} x {n}; rank is"
                f" {recipe.rank}.",
                f"Take --rank {most}, another --init, or fewer `targets`.",
            )


def begin(layers: Layers, recipe: Recipe) -> None:
    """Give the LoRA `layers` the first factors that `recipe.init` names; those from data follow by `begin_from_data`,
    and are zero till then."""
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        if recipe.init in FROM_NOT_ZERO:
            _divide(layer, recipe.rank)
        if recipe.init not in FROM_DATA:
            scale = layer.scaling[_ADAPTER]
            generator = generator_for(recipe.seed, "init", name)
            _give(layer, first_pair(recipe.init, weight.detach().float().flatten(1), recipe.rank, scale, generator))


def first_pair(init: str, matrix: Tensor, rank: int, scale: float, generator: torch.Generator) -> Pair:
    """(down, up) for the weight `matrix` [out, n] of a layer where up @ down acts times `scale`.

    pissa: its largest singular values, shared by root (Meng et al. 2024, arXiv:2404.02948). olora: the first columns
    and rows of its QR decomposition (Büyükakyüz 2024, arXiv:2406.01775). orthogonal: drawn, up @ down = 0, as peft has
    it: the rows of down lie in one half of an orthogonal basis of the rank, the columns of up in the other.
    """
    if init == "pissa":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        root = (values[:rank] / scale).sqrt()
        return root[:, None] * right[:rank], left[:, :rank] * root
    if init == "olora":
        q, r = torch.linalg.qr(matrix)
        return r[:rank], q[:, :rank]
    out, n = matrix.shape
    half = rank // 2
    basis = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    down = basis[:half].T @ torch.randn(half, n, generator=generator) / 10
    return down, torch.randn(out, half, generator=generator) @ basis[half:] / 10


def begin_from_data(training: Training) -> None:
    """Give the LoRA of `training` its first factors from its own first batches."""
    unet, recipe = training.base.unet, training.recipe
    layers: Layers = {name: one for name, one in unet.named_modules() if isinstance(one, LoraLayer)}
    unet.eval()
    if recipe.init == "eva":
        for layer, down in zip(layers.values(), _principal_inputs(training, layers), strict=True):
            _give(layer, (down, layer.lora_B[_ADAPTER].weight.detach().flatten(1)))
        return
    for layer, gradient in zip(layers.values(), _gradients(training, layers), strict=True):
        _give(layer, pair_of_gradient(gradient, recipe.rank))


def pair_of_gradient(gradient: Tensor, rank: int) -> Pair:
    """LoRA-GA's (down, up) from a weight's `gradient` [out, n] (Wang et al. 2024, arXiv:2407.05000): its right singular
    vectors 1 to r and its left ones r + 1 to 2r, each times out^(1/4) / sqrt(gamma)."""
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    size = len(gradient) ** 0.25 / sqrt(_GAMMA)
    return size * right[:rank], size * left[:, rank : 2 * rank]


def _principal_inputs(training: Training, layers: Layers) -> list[Tensor]:
    """Of every layer the principal directions [r, n] of its inputs, the strongest first (EVA, Paischer et al. 2024,
    arXiv:2410.07170, without its sharing out of ranks)."""
    found: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in layers}  # number, sum [n] and products [n, n]

    def listen(name: str, layer: Any) -> Any:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if layer.disable_adapters:  # the base's own answer, which is a target
                return
            x = _rows(module, args[0].float())
            total = found[name]
            found[name] = [total[0] + len(x), total[1] + x.sum(0), total[2] + x.T @ x]

        return layer.get_base_layer().register_forward_pre_hook(add)

    hooks = [listen(name, layer) for name, layer in layers.items()]
    with torch.no_grad():
        for step in range(PASSES):
            _loss(training, step)
    for hook in hooks:
        hook.remove()
    directions = []
    for number, total, products in found.values():
        mean = total / number
        vectors = torch.linalg.eigh(products / number - torch.outer(mean, mean)).eigenvectors
        directions.append(vectors[:, -training.recipe.rank :].flip(1).T)
    return directions


def _gradients(training: Training, layers: Layers) -> list[Tensor]:
    """Of every layer's weight the gradient [out, n] of the loss, summed over the batches; the base stays as it is."""
    weights = [layer.get_base_layer().weight for layer in layers.values()]
    totals = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    for step in range(PASSES):
        gradients = torch.autograd.grad(_loss(training, step), weights)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.float()
    for weight in weights:
        weight.requires_grad_(False)
    return [total.flatten(1) for total in totals]


def _loss(training: Training, step: int) -> Tensor:
    """The loss of the first micro-batch of `step`."""
    return training.loss_of(training.draw(step), training.micro_batches()[0])


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """The inputs of a layer as rows [N, n]; of a convolution the patches that it reads."""
    if isinstance(module, nn.Conv2d):
        patches = unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # pyright: ignore
        return patches.transpose(1, 2).flatten(0, 1)
    return x.flatten(0, -2)


def _divide(layer: Any, rank: int) -> None:
    """Let the first `rank` rows of down and columns of up be trained, and the others stay as they are: zero."""
    for part, dim in ((layer.lora_A[_ADAPTER], 0), (layer.lora_B[_ADAPTER], 1)):
        trained, fixed = part.weight.detach().split(rank, dim)
        part.weight = nn.Parameter(trained.clone())
        register_parametrization(part, "weight", Beside(torch.zeros_like(fixed), dim), unsafe=True)


def _give(layer: Any, pair: Pair) -> None:
    """Put (down, up) into `layer`; where a half of it stays as it is, into that too, with the sign of up turned."""
    with torch.no_grad():
        for part, value, sign in zip((layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]), pair, (1, -1), strict=True):
            if hasattr(part, "parametrizations"):
                held = part.parametrizations.weight
                held.original.copy_(value.reshape(held.original.shape))
                held[0].fixed.copy_(sign * held.original)
            else:
                part.weight.copy_(value.reshape(part.weight.shape))
