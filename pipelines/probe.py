"""Reading a UNet's attention while it runs: who looks at which words, where, and how that depends on the latents."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from studio.errors import StudioError
from studio.kernels.attention import Asked

Tensor = torch.Tensor
Act = Callable[[Asked], None]  # may ask for more, or otherwise
_OUTPUT = "to_out.0"


class _Enough(Exception):
    """Everything wanted is read; the rest of the forward would be waste."""


@dataclass(frozen=True)
class Maps:
    """Attention probabilities, mean over heads, by the name of the layer: of cross-attention [B, C, h, w] for C chosen
    tokens, of self-attention [B, h w, h w], a row for each pixel that looks, and of a `to_out.0` its output
    [B, h w, D]."""

    layers: dict[str, Tensor]

    def mean(self) -> Tensor:
        """Over the layers, which share one grid."""
        return torch.stack(list(self.layers.values())).mean(0)

    def of(self, kind: str) -> "Maps":
        """Those of cross-attention (attn2) or of self-attention (attn1)."""
        return Maps({name: one for name, one in self.layers.items() if name.endswith(kind)})

    def pick(self, rows: list[int], columns: int) -> "Maps":
        """Some rows, and of cross-attention the first `columns`."""
        return Maps({name: one[rows, :columns] if one.dim() == 4 else one[rows] for name, one in self.layers.items()})

    @staticmethod
    def joined(parts: Sequence["Maps"]) -> "Maps":
        """The rows of all parts, in order."""
        return Maps({name: torch.cat([part.layers[name] for part in parts]) for name in parts[0].layers})


class AttentionProbe:
    """Reads attention layers of `unet`, named as modules (`...attn1`, `...attn2`, or the `to_out.0` of one for what it
    gives), for latents of `size` (h, w).

    The maps are those of whatever acts in the layers, a bank's adapters too: they are taken from the queries and keys
    that reach `scaled_dot_product_attention`. Where several `texts` of one length stand side by side, a word's map is
    that among its own text's words, whoever may look at them. In float32 at least, differentiable where the latents
    want gradients. Raises StudioError for a name that is no attention layer.
    """

    def __init__(self, unet: torch.nn.Module, layers: Sequence[str], size: tuple[int, int], texts: int = 1) -> None:
        known = dict(unet.named_modules())
        for name in layers:
            if not name.endswith(("attn1", "attn2", _OUTPUT)) or name not in known:
                raise StudioError(f"{name} is no attention layer of the base.", "Name one of its attn1 or attn2.")
        self._modules = {name: known[name] for name in layers}
        self._texts = texts
        self._grids = {name: grid(unet, name, size) for name in layers}

    @contextmanager
    def reading(self, columns: Tensor, stop: bool = False) -> Iterator[Maps]:
        """Read the forwards of the block; `columns` [B, C] are the tokens wanted of the B rows in all of them.

        With `stop`, the block is one forward, and left as soon as the last layer is read. The maps are there at the
        end of the block. Raises StudioError where a layer did not show its attention.
        """
        seen: dict[str, list[Tensor]] = {name: [] for name in self._modules}
        found = Maps({})

        def keep(name: str, part: Tensor) -> None:
            seen[name].append(part)
            if stop and all(seen.values()):
                raise _Enough

        def look(name: str, asked: Asked) -> None:
            height, width = self._grids[name]
            if asked.query.shape[2] != height * width:
                raise StudioError(
                    f"{name} has {asked.query.shape[2]} image tokens; {height} x {width} were expected.",
                    "This network is built unlike SD1.5 and SDXL; use a method that reads no attention.",
                )
            if name.endswith("attn1"):
                keep(name, asked.all_mass())
                return
            start = sum(map(len, seen[name]))
            asked.columns, asked.among = columns[start : start + len(asked.query)].to(asked.query.device), self._texts
            asked.keep = lambda mass: keep(name, mass.unflatten(2, (height, width)))

        with ExitStack() as undo:
            for name, module in self._modules.items():
                if name.endswith(_OUTPUT):
                    output = partial(lambda name, module, given, output: keep(name, output), name)
                    undo.callback(module.register_forward_hook(output).remove)
                else:
                    tap(name, module, partial(look, name), undo)
            with suppress(_Enough):
                yield found
        for name, parts in seen.items():
            if sum(map(len, parts)) != len(columns):
                raise _hidden(name, sum(map(len, parts)), len(columns))
            found.layers[name] = torch.cat(parts)


def layers_on(unet: torch.nn.Module, level: int, kind: str = "attn2") -> list[str]:
    """The attention layers whose grid is that of the latents halved `level` times; `kind` attn2 reads the words,
    attn1 the picture."""
    return [name for name, _ in unet.named_modules() if name.endswith(kind) and level_of(unet, name) == level]


def layers_for(unet: Any, size: tuple[int, int], level: int, cells: int) -> list[str]:
    """Those that read the words on the coarsest grid of at most `level` halvings and at least `cells` a side; on the
    finest where there is none."""
    found = {one: layers_on(unet, one) for one in range(len(unet.config["down_block_types"]))}
    there = [one for one, layers in found.items() if layers]
    fine = [one for one in there if one <= level and min(halved(size, one)) >= cells]
    return found[fine[-1] if fine else there[0]]


def grid(unet: torch.nn.Module, name: str, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the layer `name` for latents of `size`."""
    return halved(size, level_of(unet, name))


def halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    """`size` as the UNet's strided convolutions shrink it."""
    for _ in range(times):
        size = (-(-size[0] // 2), -(-size[1] // 2))
    return size


def level_of(unet: Any, name: str) -> int:
    """How many times the latents are halved where the layer `name` is."""
    part, number = name.split(".")[:2]
    last = len(unet.down_blocks) - 1
    if part == "down_blocks":
        return int(number)
    return last - int(number) if part == "up_blocks" else last


def tap(name: str, module: torch.nn.Module, act: Act, undo: ExitStack) -> None:
    """Let `act` see what attention the forward of `module` asks for, and ask for more, until `undo`; where there are
    several, the last to come is asked first.

    The forward raises StudioError where it did not show its attention.
    """
    tapped = vars(module).get("forward")
    if not isinstance(tapped, _Tapped):
        tapped = _Tapped(name, module.forward)
        if "forward" in vars(module):
            undo.callback(vars(module).__setitem__, "forward", vars(module)["forward"])
        else:
            undo.callback(vars(module).__delitem__, "forward")
        vars(module)["forward"] = tapped
    tapped.acts.append(act)
    undo.callback(tapped.acts.remove, act)


class _Tapped:
    """The forward of an attention module, watched."""

    def __init__(self, name: str, forward: Callable[..., Any]) -> None:
        self._name, self._forward = name, forward
        self.acts: list[Act] = []

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        with _Tap(self.acts) as watch:
            found = self._forward(hidden_states, *args, **kwargs)
        if not watch.seen:
            raise _hidden(self._name, 0, len(hidden_states))
        return found


class _Tap(TorchFunctionMode):
    def __init__(self, acts: Sequence[Act]) -> None:
        super().__init__()
        self.acts, self.seen = acts, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen = True
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **more: Any
    ) -> Tensor:
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
        asked = Asked(query, key, value, more.get("scale") or query.shape[-1] ** -0.5, attn_mask)
        for act in reversed(self.acts):
            act(asked)
        return asked.answer()


def _hidden(name: str, seen: int, rows: int) -> StudioError:
    return StudioError(
        f"The attention of {name} was seen for {seen} of {rows} rows: another implementation of attention is at work"
        " there.",
        "Use PyTorch's own: pipe.unet.set_default_attn_processor().",
    )
