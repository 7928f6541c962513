"""The ways in which the studio says no."""

from importlib.metadata import requires

_INSTALLED_AS = {"PIL": "pillow", "open_clip": "open-clip-torch"}  # where it is not what is imported


class StudioError(Exception):
    """A failure that the user can act on: what went wrong, and what to do next. Exit code 1."""

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class UsageError(StudioError):
    """What was asked for cannot be done as asked: wrong argument, name, file or setting. Exit code 2."""

    exit_code = 2


class Cancelled(StudioError):
    """The user took back what was asked for. Exit code 130, as shells have it for what was stopped."""

    exit_code = 130


def named(error: BaseException) -> str:
    """What to call an error that nobody foresaw."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, known by name so that torch stays unimported
        return f"Out of memory on the device. {str(error).partition('.')[0]}."
    return f"{type(error).__name__}: {error}".strip()


def missing_package(name: str) -> StudioError:
    """What to say where the import of module `name` finds nothing."""
    package = name.partition(".")[0]
    if package == "studio":
        return StudioError(f"The studio's own {name} is missing.", "Install the studio again, in a new environment.")
    wanted = _INSTALLED_AS.get(package, package).replace("_", "-")
    lines = [line.partition(";")[0].strip() for line in requires("concept-studio") or ()]
    needed = next((line for line in lines if line.rstrip("0123456789.,<>=") == wanted), wanted)
    return StudioError(
        f"The package {package!r} is not installed.",
        f"Install it: pip install '{needed}'. Or install the studio again, in a new environment.",
    )
