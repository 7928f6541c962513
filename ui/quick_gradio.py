"""Gradio without its work for editors: each import parses its sources anew to write type stubs beside them."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_AUTHOR = "gradio.component_meta"


class WithoutStubs:
    """A finder of the one module that writes stubs, which then writes none."""

    @classmethod
    def begin(cls) -> None:
        """Before all other finders; of use as long as gradio is not imported."""
        sys.meta_path.insert(0, cls())  # pyright: ignore[reportArgumentType]

    def find_spec(self, name: str, path: Any = None, target: object = None) -> ModuleSpec | None:
        """Let the usual search find it, and take out what writes."""
        if name != _AUTHOR:
            return None
        sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_quietly(module: ModuleType) -> None:
                load(module)
                vars(module)["create_or_modify_pyi"] = lambda *given: None

            spec.loader.exec_module = load_quietly
        return spec
