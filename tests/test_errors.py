import re

import pytest

from studio.errors import StudioError, UsageError, missing_package


@pytest.mark.parametrize(("kind", "code"), [(StudioError, 1), (UsageError, 2)])
def test_an_error_knows_its_exit_code_and_says_problem_then_remedy(kind: type[StudioError], code: int):
    error = kind("The folder is empty.", "Put pictures into it.")
    assert error.exit_code == code
    assert str(error) == "The folder is empty.\nPut pictures into it."


def test_an_error_without_remedy_is_one_line():
    assert str(StudioError("It broke.")) == "It broke."


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("PIL.Image", "pip install 'pillow>="),
        ("torch", "pip install 'torch[<>]"),
        ("huggingface_hub", "pip install 'huggingface-hub[<>]"),
        ("open_clip", "pip install 'open-clip-torch[<>]"),
        ("click", "pip install 'click'"),
        ("studio.nowhere", "^Install the studio again"),
    ],
)
def test_a_missing_package_is_installed_by_its_own_name(module: str, said: str):
    assert re.search(said, missing_package(module).remedy)
