import json
from pathlib import Path

import pytest
import torch
from adapter_files import write_kohya

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


def test_what_is_removed_can_be_restored(run_studio, milo: Path):
    entry = json.loads(run_studio("library", "remove", "milo", "--yes", "--json").out)["trash"]
    assert [one["entry"] for one in json.loads(run_studio("library", "trash", "--json").out)["trash"]] == [entry]
    assert "milo: " in run_studio("library", "trash").out
    assert run_studio("library", "restore", "rex").code == 2
    assert json.loads(run_studio("library", "restore", "milo", "--as", "cleo", "--json").out) == {"restored": "cleo"}
    assert not milo.exists()
    assert run_studio("library", "restore", "milo").code == 2


def test_now_leaves_nothing_in_the_trash(run_studio, milo: Path):
    assert run_studio("library", "remove", "milo", "--yes", "--now").code == 0
    assert "empty" in run_studio("library", "trash").out


def test_the_trash_is_emptied_when_it_is_said_so(run_studio, milo: Path, home: Home):
    run_studio("library", "remove", "milo", "--yes")
    assert run_studio("library", "trash", "--empty", "--yes").out.strip() == "milo: deleted"
    assert list(home.library.iterdir()) == []


def imported(run_studio, tmp_path: Path, *arguments: object, **given):
    file = write_kohya(tmp_path / "Cat.safetensors", **given)
    return run_studio("library", "import", file, "--name", "cleo", "--class", "cat", *arguments)


def test_an_import_tells_what_came(run_studio, home: Home, tmp_path: Path):
    said = imported(run_studio, tmp_path, "--trigger", "sks", "--json")
    report = json.loads(said.out)
    assert said.code == 0
    assert (report["method"], report["base"], report["layers"], report["source"]) == (
        "LoRA",
        "sd15",
        1,
        "Cat.safetensors",
    )
    assert report["unread"] == {"count": 0, "examples": []}
    shown = run_studio("library", "show", "cleo").out
    assert report["sha256"] in shown
    assert "Cat.safetensors" in shown


def test_what_is_not_understood_is_a_warning_with_count_and_examples(run_studio, tmp_path: Path):
    more = {f"\x1b[31mstrange.{n}": torch.ones(1) for n in range(5)}
    said = imported(run_studio, tmp_path, "--trigger", "sks", more=more)
    assert said.code == 0
    assert "5 entries" in said.err
    assert "strange.0, strange.1, strange.2." in said.err
    assert "\x1b" not in said.err


@pytest.mark.parametrize(("trigger", "silent"), [("sks", True), ("<one> <two>", False)])
def test_several_words_that_nothing_calls_are_a_warning(run_studio, tmp_path: Path, trigger: str, silent: bool):
    more = {f"bundle_emb.<{word}>.emb_params": torch.ones(1, 768) for word in ("one", "two")}
    said = imported(run_studio, tmp_path, "--trigger", trigger, more=more)
    assert ("the words <one>, <two>, of which 'sks cat' says none" in said.err) is silent


def test_the_words_of_the_file_are_offered(run_studio, tmp_path: Path):
    said = imported(run_studio, tmp_path, metadata={"studio.trigger": "zwx", "modelspec.trigger_phrase": "zwx \x07cat"})
    assert "zwx cat" in said.out
    assert "\x07" not in said.out


def test_a_damaged_concept_is_not_drawn(run_studio, home: Home, tmp_path: Path, tiny_sd15: Path):
    imported(run_studio, tmp_path, "--trigger", "sks")
    file = home.library / "cleo/adapter.safetensors"
    content = bytearray(file.read_bytes())
    content[2000:4000] = bytes(2000)  # a valid file still
    file.write_bytes(content)
    said = run_studio("generate", "<cleo>", "--base", tiny_sd15, "--device", "cpu")
    assert said.code == 1
    assert "has changed since" in said.err
    said = run_studio("library", "export", "cleo", "--to", tmp_path / "out")
    assert said.code == 1


def test_export_prints_what_it_wrote(run_studio, tmp_path: Path):
    imported(run_studio, tmp_path, "--trigger", "sks")
    said = run_studio("library", "export", "cleo", "--to", tmp_path / "out", "--as", "kohya")
    assert [Path(line).name for line in said.out.split()] == ["cleo.safetensors", "cleo.md"]
    assert run_studio("library", "export", "cleo", "--to", tmp_path / "out").code == 2


def test_tags_are_changed_shown_and_listed_by(run_studio, milo: Path):
    assert run_studio("library", "tag", "milo", "+pets", "+old").out.strip() == "old, pets"
    assert json.loads(run_studio("library", "tag", "milo", "-old", "--json").out) == {"name": "milo", "tags": ["pets"]}
    assert run_studio("library", "tag", "milo").out.strip() == "pets"
    assert "<milo>" in run_studio("library", "list", "--tag", "pets").out
    assert "in use: pets" in run_studio("library", "list", "--tag", "old").out
    assert json.loads(run_studio("library", "list", "--tag", "old", "--json").out)["concepts"] == []
    assert "pets" in run_studio("library", "show", "milo").out


@pytest.mark.parametrize("change", ["pets", "-absent", "+../x", "+"])
def test_a_tag_that_cannot_be_is_wrong_usage(run_studio, milo: Path, change: str):
    assert run_studio("library", "tag", "milo", change).code == 2


def test_what_a_record_says_is_safe_to_show(run_studio, milo: Path, home: Home):
    write_concept(Concept("milo", "s\x1b]0;title\x07ks", "cat[red]", "base", "sdxl", "lora", milo, source="a\x1b[2J"))
    for command in (["list"], ["show", "milo"]):
        said = run_studio("library", *command)
        assert "sks cat[red]" in said.out
        assert not {"\x1b", "\x07"} & set(said.out)
