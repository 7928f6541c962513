"""Live with a torchvision that was built for another torch.

Such a build cannot load its compiled operators, and `import torchvision` then raises `operator torchvision::nms does
not exist`; transformers, diffusers and peft import torchvision wherever it is installed, and fail with it. Nothing in
the studio needs these operators, so it is enough to declare them before anything imports torchvision. `import studio`
sees to that: the first import of a library that might do so is preceded by it.
"""

import importlib
import importlib.util
import sys
from functools import cache
from typing import Any

_MISSING = "torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_IMPORTERS = {"accelerate", "diffusers", "open_clip", "peft", "timm", "transformers"}
_declared: list[Any] = []  # a declaration lasts as long as its Library object


@cache
def install() -> bool:
    """Declare torchvision's operators where it cannot do so itself; returns whether that was needed.

    A healthy torchvision, or none, stays as it is; one that fails for another reason is left to fail where it is used,
    with its own message.
    """
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING not in str(error):
            return False
    except Exception:
        return False
    else:
        return False
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
    return True


class Watch:
    """A finder of modules that finds nothing, but calls `install` before the first import of a library that imports
    torchvision."""

    @classmethod
    def begin(cls) -> None:
        """Before all other finders."""
        sys.meta_path.insert(0, cls())  # pyright: ignore[reportArgumentType]

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Look at the name, and leave the search to the others."""
        if name in _IMPORTERS:
            sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]
            install()
