"""The command `studio`: its commands, and how it ends (0 done, 1 failed, 2 wrong usage, 130 stopped).

Nothing imported here may import torch: `studio --help` answers at once. Commands import what is heavy when they run.
"""

import os
import sys
import tempfile
import traceback
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

from studio.errors import StudioError, missing_package, named

try:
    import typer
    from rich.console import Console

    from studio.ui import (
        cmd_bench,
        cmd_check,
        cmd_combine,
        cmd_compose,
        cmd_convert,
        cmd_demo,
        cmd_doctor,
        cmd_evaluate,
        cmd_generate,
        cmd_inspect,
        cmd_jobs,
        cmd_library,
        cmd_stylize,
        cmd_train,
        cmd_ui,
    )
except ModuleNotFoundError as error:
    sys.exit(f"error: {missing_package(error.name or str(error))}")

app = typer.Typer(
    name="studio",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a handful of photos to pictures in which several of your concepts appear together.",
)
app.command("demo")(cmd_demo.demo)
app.command("check")(cmd_check.check)
app.command("train-concept")(cmd_train.train_concept)
app.command("generate")(cmd_generate.generate)
app.command("compose")(cmd_compose.compose)
app.command("stylize")(cmd_stylize.stylize)
app.command("evaluate")(cmd_evaluate.evaluate)
app.command("convert")(cmd_convert.convert)
app.add_typer(cmd_library.app, name="library")
app.add_typer(cmd_bench.app, name="bench")
app.command("merge-adapters")(cmd_combine.merge_adapters)
app.command("resize")(cmd_combine.resize)
app.command("split")(cmd_combine.split)
app.command("inspect")(cmd_inspect.inspect)
app.add_typer(cmd_jobs.app, name="jobs")
app.command("ui")(cmd_ui.ui)
app.command("doctor")(cmd_doctor.doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"concept-studio {version('concept-studio')}")
        raise typer.Exit


@app.callback()
def studio(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an unexpected error.")] = False,
) -> None:
    """Stand before every command; typer shows these options, `main` acts on `--debug`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default) and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal lacks must not undo what is done
    try:
        app(given, prog_name="studio")
    except StudioError as error:
        _say_no(error.problem, error.remedy)
        return error.exit_code
    except SystemExit as end:
        if end.code == 130:
            _console().print("Stopped.")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        _say_no(*_unexpected(error, debug="--debug" in given))
        return 1
    return 0


def _console() -> Console:
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def _say_no(problem: str, remedy: str) -> None:
    console = _console()
    console.print("error:", style="bold red", end=" ")
    console.print(problem)
    if remedy:
        console.print(remedy)


def _unexpected(error: Exception, *, debug: bool) -> tuple[str, str]:
    """Name an error that nobody foresaw, and keep its traceback: on the screen or in a file."""
    problem = named(error)
    if debug:
        traceback.print_exception(error)
        return problem, ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = missing_package(error.name)
        return missing.problem, missing.remedy
    handle, path = tempfile.mkstemp(prefix="studio-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    return problem, f"The full traceback is in {path}; `studio --debug ...` shows it at once."


if __name__ == "__main__":
    sys.exit(main())
