"""The two ways in which the studio says no."""


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
