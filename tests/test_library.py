import errno
from dataclasses import replace
from pathlib import Path

import pytest

from studio.concepts import Concept, read_concept, write_concept
from studio.errors import StudioError, UsageError
from studio.home import Home
from studio.library import Library


@pytest.fixture
def library(home: Home) -> Library:
    return Library(home)


def finished(folder: Path, name: str = "milo") -> Path:
    """A folder as a training leaves it."""
    concept = Concept(name, "sks", "cat", "picturebook", "sdxl", "lora", folder)
    (folder / "samples").mkdir(parents=True)
    (folder / "samples/1.png").write_bytes(b"png")
    concept.adapter_file.write_bytes(b"weights")
    write_concept(concept)
    return folder


def test_a_new_library_is_empty(library: Library):
    assert library.concepts() == []
    with pytest.raises(UsageError, match="no concept 'milo'"):
        library.find("milo")


def test_a_finished_folder_moves_in_whole(library: Library, tmp_path: Path):
    source = finished(tmp_path / "work")
    added = library.add(source, "milo")
    assert not source.exists()
    assert added == library.find("milo") == library.concepts()[0]
    assert added.folder == library.root / "milo"
    assert {path.name for path in added.folder.rglob("*")} == {
        "adapter.safetensors",
        "concept.json",
        "samples",
        "1.png",
    }


def test_the_folder_gives_the_name(library: Library, tmp_path: Path):
    library.add(finished(tmp_path / "work"), "rex")
    assert library.find("rex").name == "rex"


@pytest.mark.parametrize("name", ["milo", "Milo"])
def test_a_taken_name_is_refused_and_both_stay(library: Library, tmp_path: Path, name: str):
    library.add(finished(tmp_path / "one"), "milo")
    with pytest.raises(UsageError, match="a concept 'milo' already") as refused:
        library.add(finished(tmp_path / "two"), name)
    assert refused.value.remedy == "Choose another name, or remove it: studio library remove milo"
    assert (tmp_path / "two").is_dir()
    assert len(library.concepts()) == 1


@pytest.mark.parametrize("name", ["../milo", "x" * 300, "mi\0lo", "CON", "mіlo", ".milo", ""])  # noqa: RUF001
def test_bad_names_neither_enter_nor_are_looked_for(library: Library, tmp_path: Path, name: str):
    source = finished(tmp_path / "work")
    for action in (lambda: library.add(source, name), lambda: library.find(name), lambda: library.remove(name)):
        with pytest.raises(UsageError):
            action()
    assert source.is_dir()


def test_an_unfinished_folder_is_refused(library: Library, tmp_path: Path):
    source = finished(tmp_path / "work")
    (source / "adapter.safetensors").unlink()
    with pytest.raises(StudioError, match="missing"):
        library.add(source, "milo")
    assert not library.root.exists()


@pytest.mark.parametrize("count", [1, 9])
def test_one_look_at_the_folder_finds_all_there_is(library: Library, tmp_path: Path, monkeypatch, count: int):
    for n in range(count):
        finished(library.root / f"cat{n}")
    finished(library.root / "bad").joinpath("adapter.safetensors").unlink()
    finished(library.root / "no name")
    looks, glob = [], Path.glob
    monkeypatch.setattr(Path, "glob", lambda path, pattern: looks.append(path) or glob(path, pattern))
    concepts, damaged = library.everything()
    assert [one.name for one in concepts] == [f"cat{n}" for n in range(count)]
    assert list(damaged) == ["bad", "no name"]
    assert looks == [library.root]
    assert (library.concepts(), library.damaged()) == (concepts, damaged)


def test_near_names_are_offered(library: Library, tmp_path: Path):
    library.add(finished(tmp_path / "work"), "milo")
    with pytest.raises(UsageError) as refused:
        library.find("mlio")
    assert "'milo'" in refused.value.remedy


def test_a_removed_concept_is_gone(library: Library, tmp_path: Path):
    library.add(finished(tmp_path / "work"), "milo")
    library.remove("milo")
    assert list(library.root.iterdir()) == []


def test_a_damaged_concept_hides_no_other_and_can_be_removed(library: Library, tmp_path: Path):
    library.add(finished(tmp_path / "one"), "milo")
    library.add(finished(tmp_path / "two"), "rex")
    (library.root / "rex/concept.json").write_text("{")
    assert [concept.name for concept in library.concepts()] == ["milo"]
    assert list(library.damaged()) == ["rex"]
    library.remove("rex")
    assert not library.damaged()


def test_from_another_disk_a_concept_is_copied_whole(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = finished(tmp_path / "work")
    rename = Path.rename

    def other_disk(path: Path, target: Path) -> Path:
        if path == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", other_disk)
    assert library.add(source, "milo").adapter_file.read_bytes() == b"weights"
    assert not source.exists()


def test_a_full_disk_leaves_the_work_and_no_half_concept(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = finished(tmp_path / "work")

    def other_disk(path: Path, target: Path) -> Path:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(_: Path, target: Path) -> None:
        target.mkdir()
        (target / "adapter.safetensors").write_bytes(b"wei")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", other_disk)
    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(StudioError) as refused:
        library.add(source, "milo")
    assert str(source) in refused.value.remedy
    assert (source / "adapter.safetensors").exists()
    assert list(library.root.iterdir()) == []


def test_a_file_in_the_place_of_the_library_is_an_error_of_the_studio(library: Library, tmp_path: Path):
    library.root.touch()
    with pytest.raises(StudioError, match="Cannot keep"):
        library.add(finished(tmp_path / "work"), "milo")


def test_tags_are_added_and_taken(library: Library, tmp_path: Path):
    library.add(finished(tmp_path / "work"), "milo")
    assert library.tag("milo", ["pets", "v2"], []).tags == ("pets", "v2")
    assert library.tag("milo", ["new", "pets"], ["v2"]).tags == ("new", "pets")
    assert library.find("milo").tags == ("new", "pets")


@pytest.mark.parametrize(("add", "take"), [(["../x"], []), ([""], []), (["a b"], []), ([], ["v2"])])
def test_bad_and_absent_tags_are_refused(library: Library, tmp_path: Path, add: list[str], take: list[str]):
    library.add(finished(tmp_path / "work"), "milo")
    library.tag("milo", ["pets"], [])
    with pytest.raises(UsageError):
        library.tag("milo", add, take)
    assert library.find("milo").tags == ("pets",)


def test_what_was_thrown_away_comes_back_as_it_was(library: Library, tmp_path: Path):
    added = library.add(finished(tmp_path / "work"), "milo")
    before = {path.relative_to(added.folder): path.read_bytes() for path in added.folder.rglob("*") if path.is_file()}
    thrown = library.trash("milo")
    assert (thrown.name, thrown.bytes) == ("milo", sum(map(len, before.values())))
    assert library.concepts() == []
    assert library.trashed() == [thrown]
    assert library.restore(thrown.entry) == "milo"
    assert library.concepts() == [added]
    assert {p.relative_to(added.folder): p.read_bytes() for p in added.folder.rglob("*") if p.is_file()} == before
    assert library.trashed() == []


def test_the_trash_keeps_several_of_a_name_the_latest_first(library: Library, tmp_path: Path):
    for n in range(2):
        folder = finished(tmp_path / str(n))
        (folder / "adapter.safetensors").write_bytes(b"weights" * (n + 1))
        library.add(folder, "milo")
        library.trash("milo")
    latest, first = library.trashed()
    assert latest.bytes > first.bytes
    assert latest.when >= first.when
    library.restore(latest.entry)
    with pytest.raises(UsageError, match="already"):
        library.restore(first.entry)
    assert library.restore(first.entry, "milo-1") == "milo-1"


def test_a_damaged_concept_can_be_thrown_away(library: Library, tmp_path: Path):
    library.add(finished(tmp_path / "work"), "milo")
    (library.root / "milo/concept.json").write_text("{")
    thrown = library.trash("milo")
    assert not library.damaged()
    assert library.restore(thrown.entry) == "milo"
    assert list(library.damaged()) == ["milo"]


@pytest.mark.parametrize("entry", ["", "..", "../milo", "20260101T000000000000-00000000", "x" * 300, "\0"])
def test_only_what_is_in_the_trash_is_restored(library: Library, tmp_path: Path, entry: str):
    library.add(finished(tmp_path / "work"), "milo")
    library.trash("milo")
    with pytest.raises(UsageError, match="not in the trash"):
        library.restore(entry)
    assert library.concepts() == []


def test_what_else_lies_in_the_trash_is_not_taken_for_a_concept(library: Library):
    for name in ("20260101T000000000000-00000000", "notes/milo", "20260101T000000000001-00000000/a"):
        (library.root / ".trash" / name).mkdir(parents=True)
    (library.root / ".trash/20260101T000000000001-00000000/b").mkdir()
    assert library.trashed() == []
    assert library.empty_trash() == 0
    assert list(library.root.iterdir()) == []


def test_an_emptied_trash_is_gone(library: Library, tmp_path: Path):
    assert library.empty_trash() == 0
    library.add(finished(tmp_path / "one"), "milo")
    library.add(finished(tmp_path / "two"), "rex")
    library.trash("milo")
    assert library.empty_trash() == 1
    assert [one.name for one in library.root.iterdir()] == ["rex"]


def test_a_renamed_concept_keeps_all_but_its_name(library: Library, tmp_path: Path):
    before = library.add(finished(tmp_path / "work"), "milo")
    after = library.rename("milo", "cleo")
    assert replace(after, name="milo", folder=before.folder) == before
    assert [one.name for one in library.concepts()] == ["cleo"]
    assert read_concept(after.folder).name == "cleo"
    assert (after.folder / "samples/1.png").is_file()


@pytest.mark.parametrize("name", ["rex", "REX", "../x", "", "milo"])
def test_a_name_that_cannot_be_leaves_the_old_one(library: Library, tmp_path: Path, name: str):
    library.add(finished(tmp_path / "one"), "milo")
    library.add(finished(tmp_path / "two", "rex"), "rex")
    with pytest.raises(UsageError):
        library.rename("milo", name)
    assert [one.name for one in library.concepts()] == ["milo", "rex"]
    assert read_concept(library.root / "milo").name == "milo"


def test_a_disk_that_refuses_leaves_the_old_name(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library.add(finished(tmp_path / "work"), "milo")

    def refuse(path: Path, target: Path) -> Path:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    for action in (lambda: library.rename("milo", "cleo"), lambda: library.trash("milo")):
        with pytest.raises(StudioError, match="Cannot"):
            action()
    monkeypatch.undo()
    assert read_concept(library.root / "milo").name == library.find("milo").name == "milo"
    assert library.trashed() == []
