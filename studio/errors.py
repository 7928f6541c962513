"""The ways in which the studio says no."""


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
