import json
from pathlib import Path

import pytest

from studio.concepts import Concept, expand_prompt, read_concept, write_concept
from studio.errors import StudioError, UsageError


@pytest.fixture
def milo(tmp_path: Path) -> Concept:
    """A concept with its two files."""
    concept = Concept("milo", "sks", "cat", "picturebook", "sdxl", "lora", tmp_path)
    concept.adapter_file.write_bytes(b"weights")
    write_concept(concept)
    return concept


def test_a_concept_comes_back_as_it_was_written(milo: Concept):
    assert read_concept(milo.folder) == milo
    assert json.loads((milo.folder / "concept.json").read_text())["schema"] == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\udcff"], ids=repr)
def test_a_damaged_record_is_named(milo: Concept, text: str):
    (milo.folder / "concept.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(StudioError, match=r"concept\.json"):
        read_concept(milo.folder)


@pytest.mark.parametrize(("key", "value"), [("schema", 2), ("schema", "1"), ("trigger", 7), ("base", None)])
def test_a_record_of_another_kind_is_refused(milo: Concept, key: str, value: object):
    path = milo.folder / "concept.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(StudioError):
        read_concept(milo.folder)


def test_a_concept_without_weights_is_refused(milo: Concept):
    milo.adapter_file.unlink()
    with pytest.raises(StudioError, match=r"adapter\.safetensors"):
        read_concept(milo.folder)


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("<milo> on a hill", "sks cat on a hill"),
        ("<milo> and <milo>", "sks cat and sks cat"),
        ("milo on a hill", "milo on a hill"),
        ("1 < 2 and 3 > 2, I <3 it", "1 < 2 and 3 > 2, I <3 it"),
        ("", ""),
    ],
)
def test_a_name_in_angle_brackets_becomes_trigger_and_class(milo: Concept, prompt: str, expanded: str):
    assert expand_prompt(prompt, [milo]) == expanded


@pytest.mark.parametrize(
    ("prompt", "hint"),
    [("<mlio> here", "<milo>"), ("<rex> here", "--concept rex"), ("<lora:milo:0.8>", "NAME=STRENGTH")],
)
def test_an_unknown_name_is_refused_with_a_hint(milo: Concept, prompt: str, hint: str):
    with pytest.raises(UsageError) as refused:
        expand_prompt(prompt, [milo])
    assert hint in refused.value.remedy
