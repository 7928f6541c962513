"""The house rules that can be read off the source: who imports whom, how long things are, what is written down."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "studio", "pipelines", "trainers", "ui")  # imports go to the left
FILE_LINES, FUNCTION_LINES = 300, 60
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_every_layer_is_there():
    assert {path.parent.name for path in SOURCES} == set(FOLDERS)


@pytest.fixture(params=SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def source(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_imports_are_absolute_and_go_down(source: Path):
    mine = FOLDERS.index(source.parent.name)
    for line, module in _imported(ast.parse(source.read_text(encoding="utf-8"))):
        first, *rest = module.split(".")
        assert first not in {"", "kernels", "pipelines", "trainers", "ui", "assets"}, (
            f"line {line}: write studio.{module}"
        )
        if first != "studio":
            continue
        layer = rest[0] if rest and rest[0] in FOLDERS else "studio"
        if (rest and rest[0] == "assets") or source == ROOT / "studio/__init__.py":
            continue  # data lies below everything; the public API stands above everything, and is lazy
        assert FOLDERS.index(layer) <= mine, f"line {line}: {source.parent.name} must not import {module}"


def test_files_and_functions_keep_to_the_budget(source: Path):
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    long = [node.name for node in _functions(ast.parse(text)) if _lines(node) > FUNCTION_LINES]
    assert not long


def test_every_function_is_annotated(source: Path):
    functions = _functions(ast.parse(source.read_text(encoding="utf-8")))
    bare = [node.name for node in functions if not _annotated(node) and not _is_kernel(node)]
    assert not bare


def test_public_names_are_documented(source: Path):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    silent = [node.name for node in _public(tree) if not ast.get_docstring(node)]
    assert ast.get_docstring(tree)
    assert not silent


def test_folders_are_flat_and_have_no_drawer():
    assert not [path for folder in FOLDERS for path in (ROOT / folder).glob("*/*.py")]
    assert not [path for path in SOURCES if path.stem in ("utils", "helpers", "misc", "common")]


def test_importing_the_studio_leaves_torch_alone():
    code = "import studio, studio.ui.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_pages_are_there_before_torch(home):
    code = f"""if True:
        import sys
        from pathlib import Path
        from studio.home import Home
        from studio.ui.app import build
        from studio.ui.service import Service
        build(Service(Home(Path({str(home.root)!r}))))
        sys.exit('torch' in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import, in functions too; "" for a relative one. `from a import b` counts as `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, "" if node.level else f"{node.module}.{alias.name}"


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _is_kernel(node: Function) -> bool:
    """Whether Triton compiles it: what it takes is pointers, sizes and constants."""
    return any(isinstance(one, ast.Name) and one.id == "jit" for one in node.decorator_list)


def _annotated(node: Function) -> bool:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
    given = [argument.annotation for argument in arguments if argument.arg not in ("self", "cls")]
    return node.returns is not None and all(given)


def _public(tree: ast.Module) -> Iterator[ast.ClassDef | Function]:
    """Public functions and classes of the module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (part for part in node.body if isinstance(part, Function) and not part.name.startswith("_"))
