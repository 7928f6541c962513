import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from studio.errors import StudioError, UsageError
from studio.ui import cli


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `studio library list` raise."""

    def arm(error: BaseException) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr("studio.ui.cmd_library.Library", fail)

    return arm


def test_the_version_is_the_distributions(run_studio):
    said = run_studio("--version")
    assert (said.code, said.out) == (0, f"concept-studio {version('concept-studio')}\n")


def test_no_command_shows_the_help(run_studio):
    said = run_studio()
    assert said.code == 2
    assert "library" in said.out + said.err


@pytest.mark.parametrize("arguments", [["nonsense"], ["library", "show"], ["library", "list", "--nonsense"]])
def test_wrong_usage_ends_with_2(run_studio, arguments: list[str]):
    assert run_studio(*arguments).code == 2


@pytest.mark.parametrize(("kind", "code"), [(StudioError, 1), (UsageError, 2)])
def test_an_error_of_the_studio_is_two_lines_and_its_code(run_studio, failing, kind: type[StudioError], code: int):
    failing(kind("The folder [/x] is empty.", "Put pictures into it."))
    said = run_studio("library", "list")
    assert (said.code, said.out, said.err) == (code, "", "error: The folder [/x] is empty.\nPut pictures into it.\n")


def test_an_interruption_is_one_line_and_130(run_studio, failing):
    failing(KeyboardInterrupt())
    said = run_studio("library", "list")
    assert (said.code, said.err) == (130, "Stopped.\n")


def test_an_unexpected_error_is_one_line_and_a_file(run_studio, failing, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(ZeroDivisionError("division by zero"))
    said = run_studio("library", "list")
    (kept,) = tmp_path.glob("studio-error-*.txt")
    assert said.code == 1
    assert said.err.splitlines()[0] == "error: ZeroDivisionError: division by zero"
    assert str(kept) in said.err
    assert "Traceback" not in said.err
    assert "Traceback" in kept.read_text()


def test_a_package_that_a_command_lacks_is_named_with_what_installs_it(run_studio, failing):
    failing(ModuleNotFoundError("No module named 'pydantic.fields'", name="pydantic.fields"))
    said = run_studio("library", "list")
    assert said.code == 1
    assert said.err.splitlines()[0] == "error: The package 'pydantic' is not installed."
    assert "pip install 'pydantic<" in said.err or "pip install 'pydantic>" in said.err  # with the right versions


@pytest.fixture
def fresh() -> Iterator[None]:
    """Within, no module of the studio has been imported."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "studio"}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "studio"]:
        del sys.modules[name]
    sys.modules.update(before)


def needed() -> list[str]:
    """What the packages that the studio needs are called when they are imported."""
    found = {
        canonicalize_name(Requirement(line).name) for line in requires("concept-studio") or () if "extra" not in line
    }
    of = packages_distributions().items()
    return sorted(name for name, owners in of if name[0] != "_" and found & {*map(canonicalize_name, owners)})


@pytest.mark.parametrize("package", needed())
def test_a_missing_package_is_named_or_left_to_the_doctor(package: str, fresh: None, monkeypatch: pytest.MonkeyPatch):
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    if package in ("typer", "rich", "platformdirs"):
        with pytest.raises(SystemExit, match=f"The package '{package}' is not installed.\n.*pip install '{package}>="):
            import_module("studio.ui.cli")
    else:
        import_module("studio.ui.cli")
        import_module("studio.doctor")


def test_debug_shows_the_traceback(run_studio, failing):
    failing(ZeroDivisionError("division by zero"))
    assert "Traceback" in run_studio("--debug", "library", "list").err


def test_a_device_out_of_memory_is_said_in_plain_words(run_studio, failing):
    error = type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB.")
    failing(error)
    assert "error: Out of memory on the device. CUDA out of memory." in run_studio("library", "list").err


def test_the_home_option_goes_before_the_variable(run_studio, tmp_path: Path):
    assert str(tmp_path) in run_studio("library", "list", "--home", tmp_path).out


def test_the_installed_command_ends_with_the_same_code(tmp_path: Path):
    studio = [str(Path(sys.executable).with_name("studio")), "library", "show", "milo"]
    ended = subprocess.run(studio, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")


@pytest.mark.parametrize("as_json", [False, True])
def test_what_the_terminal_cannot_encode_is_escaped(tmp_path: Path, monkeypatch, as_json: bool):
    name = "été №2 猫 😀.png"
    Image.effect_noise((120, 120), 90).save(tmp_path / name)
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="cp1252"))
    assert cli.main(["check", str(tmp_path), *["--json"] * as_json]) == 0
    sys.stdout.flush()
    said = written.getvalue().decode("cp1252")
    if as_json:
        assert json.loads(said)["pictures"][0]["file"] == name
    else:
        assert r"été \u21162 \u732b" in said


BARE = "import typer; app = typer.Typer(); app.command()(lambda: None); app.command('b')(lambda: None); app(['--help'])"


def test_help_answers_in_half_a_second():
    """Or, where the machine is slow, in two and a half times what a bare application of typer takes there."""
    bare = min(_processor_seconds("-c", BARE) for _ in range(5))
    assert min(_processor_seconds("-m", "studio.ui.cli", "--help") for _ in range(5)) < max(0.5, 2.5 * bare)


def _processor_seconds(*arguments: str) -> float:
    """The processor time of one Python process: unlike the clock's, it is the same on a busy machine."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_every_registered_command_has_help(run_studio):
    commands = [info.name for info in cli.app.registered_commands] + [group.name for group in cli.app.registered_groups]
    for name in commands:
        assert run_studio(name, "--help").code == 0
