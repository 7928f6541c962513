import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from studio.concepts import Concept, check_hash, expand_prompt, file_hash, read_concept, write_concept
from studio.errors import StudioError, UsageError

LATER = [("sha256", 7), ("sha256", "0a"), ("source", []), ("tags", "pets"), ("tags", [7]), ("tags", {})]


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


def test_hash_source_and_tags_come_back_too(milo: Concept):
    known = replace(milo, sha256="0" * 64, source="a file.safetensors", tags=("pets", "v2"))
    write_concept(known)
    assert read_concept(milo.folder) == known


def test_a_record_of_an_older_studio_has_no_hash_and_is_used(milo: Concept):
    assert set(json.loads((milo.folder / "concept.json").read_text())) == {
        "schema", "name", "trigger", "class_word", "base", "family", "method",
    }  # fmt: skip
    assert read_concept(milo.folder).sha256 is None
    check_hash(milo)


def test_a_changed_file_is_named_with_both_hashes(milo: Concept):
    known = replace(milo, sha256=hashlib.sha256(b"weights").hexdigest(), source="cat.safetensors")
    check_hash(known)
    known.adapter_file.write_bytes(b"w\0\0\0hts")
    with pytest.raises(StudioError) as refused:
        check_hash(known)
    for content in (b"weights", b"w\0\0\0hts"):
        assert hashlib.sha256(content).hexdigest()[:12] in refused.value.problem
    assert "cat.safetensors" in refused.value.remedy


def test_a_file_is_hashed_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    digest, counted = hashlib.file_digest, []
    monkeypatch.setattr("hashlib.file_digest", lambda *given: counted.append(1) or digest(*given))
    assert file_hash(file) == file_hash(file) == hashlib.sha256(b"one").hexdigest()
    assert len(counted) == 1
    file.write_bytes(b"two")
    os.utime(file, ns=(0, 0))
    assert file_hash(file) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', "\udcff"], ids=repr)
def test_a_damaged_record_is_named(milo: Concept, text: str):
    (milo.folder / "concept.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(StudioError, match=r"concept\.json"):
        read_concept(milo.folder)


@pytest.mark.parametrize(("key", "value"), [("schema", 2), ("schema", "1"), ("trigger", 7), ("base", None), *LATER])
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
    [("<mlio> here", "<milo>"), ("<rex> here", "Add rex to them"), ("<lora:milo:0.8>", "NAME=STRENGTH")],
)
def test_an_unknown_name_is_refused_with_a_hint(milo: Concept, prompt: str, hint: str):
    with pytest.raises(UsageError) as refused:
        expand_prompt(prompt, [milo])
    assert hint in refused.value.remedy
