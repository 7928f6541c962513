"""What is installed is what is in the repository, and nothing of it has a generic name."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = {"pipelines", "trainers", "kernels", "ui", "assets"}


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel that was built, without network, from a copy of the tracked files."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in _tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(tree)], check=True)
    (wheel,) = out.glob("*.whl")
    return set(ZipFile(wheel).namelist())


def test_the_wheel_holds_exactly_the_tracked_files_of_the_packages(wheel_names: set[str]):
    expected = set()
    for name in _tracked():
        top = PurePosixPath(name).parts[0]
        if top == "studio":
            expected.add(name)
        elif top in MAPPED:
            expected.add(f"studio/{name}")
    assert {name for name in wheel_names if ".dist-info/" not in name} == expected


def test_the_wheel_has_one_top_level_name_and_its_license(wheel_names: set[str]):
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"studio"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)


def test_no_generic_name_is_ours():
    ask = "import sys, importlib.util as util; print([one and one.origin for one in map(util.find_spec, sys.argv[1:])])"
    command = [sys.executable, "-I", "-c", ask, *MAPPED]  # -I: the folder that tests run in is not on the path
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for origin in filter(None, ast.literal_eval(told)):
        assert not Path(origin).is_relative_to(ROOT) or ".venv" in Path(origin).parts


def test_what_the_code_imports_is_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    called = {"pillow": "PIL", "open_clip_torch": "open_clip"}
    names = {re.split(r"[<>=]", line)[0].replace("-", "_") for line in declared}
    names = {called.get(name, name) for name in names} | {"studio"}
    optional = {"torchvision", "triton", "xformers"}
    sources = [path for folder in ("studio", *MAPPED) for path in (ROOT / folder).glob("*.py")]
    imported = {name for path in sources for name in _imported(ast.parse(path.read_text(encoding="utf-8")))}
    assert imported - names - optional - sys.stdlib_module_names == set()


def _imported(tree: ast.Module) -> set[str]:
    """The top-level names of all imports, those inside functions too."""
    nodes = list(ast.walk(tree))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {module.split(".")[0] for module in modules}
