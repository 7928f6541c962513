import pytest

from studio.errors import StudioError, UsageError


@pytest.mark.parametrize(("kind", "code"), [(StudioError, 1), (UsageError, 2)])
def test_an_error_knows_its_exit_code_and_says_problem_then_remedy(kind: type[StudioError], code: int):
    error = kind("The folder is empty.", "Put pictures into it.")
    assert error.exit_code == code
    assert str(error) == "The folder is empty.\nPut pictures into it."


def test_an_error_without_remedy_is_one_line():
    assert str(StudioError("It broke.")) == "It broke."
