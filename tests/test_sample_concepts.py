import json
from pathlib import Path

import pytest
from small_world import shrink

from studio.concepts import Concept, write_concept
from studio.datasets import sample_folder
from studio.events import Event, Loss, Notice
from studio.home import Home
from studio.trainers.sample_concepts import RECORD_FILE, learn_sample


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch, tiny_sdxl: Path, tmp_path: Path) -> Path:
    return shrink(monkeypatch, tiny_sdxl, tmp_path / "base")


@pytest.fixture
def heard() -> list[Event]:
    return []


def notices(heard: list[Event]) -> str:
    return " ".join(event.message for event in heard if isinstance(event, Notice))


def foreign(home: Home, name: str) -> Concept:
    """A concept of the library that was not learned from the samples."""
    folder = home.library / name
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"mine")
    concept = Concept(name, "sks", "cat", "picturebook", "sdxl", "lora", folder)
    write_concept(concept)
    return concept


def test_a_sample_is_learned_once_and_then_reused(home: Home, heard: list[Event]):
    first = learn_sample("milo", "normal", home, heard.append)
    trained = len([event for event in heard if isinstance(event, Loss)])
    again = learn_sample("milo", "normal", home, heard.append)
    assert (first.reused, again.reused) == (False, True)
    assert (first.concept.name, first.concept.class_word, trained) == ("milo", "cat", 2)
    assert len([event for event in heard if isinstance(event, Loss)]) == trained
    assert again.losses == first.losses
    assert again.seconds == first.seconds


def test_it_is_learned_anew_on_another_base_and_on_demand(home: Home, base: Path, heard: list[Event]):
    learn_sample("milo", "normal", home, heard.append)
    weights = next(base.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert not learn_sample("milo", "normal", home, heard.append).reused
    assert "another base" in notices(heard)
    assert not learn_sample("milo", "normal", home, heard.append, anew=True).reused
    assert learn_sample("milo", "normal", home, heard.append).reused


def test_another_concept_of_the_name_is_left_alone(home: Home, heard: list[Event]):
    mine = foreign(home, "milo")
    learned = learn_sample("milo", "normal", home, heard.append)
    assert learned.concept.name == "milo-2"
    assert learned.concept.trigger != mine.trigger
    assert mine.adapter_file.read_bytes() == b"mine"
    assert "milo-2" in notices(heard)
    assert learn_sample("milo", "normal", home, heard.append).concept.name == "milo-2"


def test_an_interrupted_training_goes_on(home: Home, heard: list[Event]):
    def stop(event: Event) -> None:
        if isinstance(event, Loss) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_sample("milo", "normal", home, stop)
    learned = learn_sample("milo", "normal", home, heard.append)
    assert [event.step for event in heard if isinstance(event, Loss)] == [2]
    assert learned.seconds is None
    assert json.loads((learned.concept.folder / RECORD_FILE).read_text())["seconds"] is None


def test_the_shipped_pictures_are_found():
    assert len(list(sample_folder("rex").glob("*.png"))) == 5
