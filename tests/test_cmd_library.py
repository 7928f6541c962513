import json
from pathlib import Path

import pytest

from studio.concepts import Concept, write_concept
from studio.home import Home


@pytest.fixture
def milo(home: Home) -> Path:
    """The folder of a concept in the library."""
    folder = home.library / "milo"
    concept = Concept("milo", "sks", "cat", "picturebook", "sdxl", "lora", folder)
    folder.mkdir(parents=True)
    concept.adapter_file.write_bytes(b"weights")
    write_concept(concept)
    return folder


def test_an_empty_library_says_what_to_do(run_studio):
    said = run_studio("library", "list")
    assert said.code == 0
    assert "train-concept" in said.out


def test_list_shows_every_concept(run_studio, milo: Path):
    said = run_studio("library", "list")
    assert "<milo>" in said.out
    assert "sks cat" in said.out


def test_list_as_json(run_studio, milo: Path, home: Home):
    (home.library / "rex").mkdir()
    (home.library / "rex/concept.json").write_text("{")
    report = json.loads(run_studio("library", "list", "--json").out)
    assert [concept["name"] for concept in report["concepts"]] == ["milo"]
    assert list(report["damaged"]) == ["rex"]


def test_show_as_json_names_the_files(run_studio, milo: Path):
    report = json.loads(run_studio("library", "show", "milo", "--json").out)
    assert report["phrase"] == "sks cat"
    assert report["adapter_bytes"] == len(b"weights")
    assert report["files"] == ["adapter.safetensors", "concept.json"]


@pytest.mark.parametrize("name", ["rex", "../milo", "x" * 300, "CON"])
@pytest.mark.parametrize("action", ["show", "remove"])
def test_a_name_that_is_not_there_is_wrong_usage(run_studio, milo: Path, action: str, name: str):
    assert run_studio("library", action, name).code == 2
    assert milo.is_dir()


def test_remove_asks_first(run_studio, milo: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda question, **_: asked.append(question))
    assert run_studio("library", "remove", "milo").code == 0
    assert str(milo) in asked[0]
    assert not milo.exists()


def test_without_an_answer_nothing_is_removed(run_studio, milo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError()))
    assert run_studio("library", "remove", "milo").code == 1
    assert milo.is_dir()


def test_yes_does_not_ask(run_studio, milo: Path):
    assert json.loads(run_studio("library", "remove", "milo", "--yes", "--json").out)["removed"] == "milo"
    assert not milo.exists()
