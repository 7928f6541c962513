import subprocess
import sys
import types

import pytest

import studio


@pytest.mark.parametrize("name", studio.__all__)
def test_every_public_name_is_there_and_documented(name: str):
    thing = getattr(studio, name)
    assert not isinstance(thing, types.ModuleType)
    assert thing.__name__ == name
    assert thing.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        studio.nonsense  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_names_that_need_no_torch_do_not_import_it():
    code = "from studio import Library, Concept, find_base, Recipe, Home; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
