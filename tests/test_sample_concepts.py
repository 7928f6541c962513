import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from small_world import shrink

from studio.concepts import Concept, write_concept
from studio.datasets import sample_folder
from studio.events import Event, Loss, Notice, silent
from studio.home import Home
from studio.trainers.dreambooth import train_concept
from studio.trainers.planning import plan_recipe
from studio.trainers.recipe import Recipe
from studio.trainers.sample_concepts import learn_sample
from studio.trainers.shipped_concepts import add_shipped
from studio.trainers.stopping import Stopped
from studio.trainers.workplace import SAMPLE_FILE


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch, tiny_sdxl: Path, tmp_path: Path) -> Path:
    return shrink(monkeypatch, tiny_sdxl, tmp_path / "base")


@pytest.fixture
def heard() -> list[Event]:
    return []


def notices(heard: list[Event]) -> str:
    return " ".join(event.message for event in heard if isinstance(event, Notice))


def stop_at_2(event: Event) -> None:
    if isinstance(event, Loss) and event.step == 2:
        raise KeyboardInterrupt


def mine(home: Home, name: str) -> Recipe:
    """A training of the user's own, of the same pictures."""
    return plan_recipe({"pictures": sample_folder("milo"), "name": name, "class_word": "cat"}, None, home)


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
    assert "learned anew" in notices(heard)
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
    with pytest.raises(KeyboardInterrupt):
        learn_sample("milo", "normal", home, stop_at_2)
    learned = learn_sample("milo", "normal", home, heard.append)
    assert [event.step for event in heard if isinstance(event, Loss)] == [2]
    assert [step for step, _ in learned.losses] == [1, 2]
    assert learned.seconds is None
    assert json.loads((learned.concept.folder / SAMPLE_FILE).read_text())["seconds"] is None


def test_a_stopped_one_goes_on_by_the_command_that_is_named(home: Home, heard: list[Event]):
    learn_sample("milo", "normal", home, silent)

    def stop(event: Event) -> None:
        if isinstance(event, Loss) and event.step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped) as stopped:
        learn_sample("milo", "normal", home, stop, anew=True)
    assert stopped.value.remedy == "The same command without --fresh goes on from there."
    learn_sample("milo", "normal", home, heard.append)
    assert [event.step for event in heard if isinstance(event, Loss)] == [2]
    with pytest.raises(Stopped) as stopped:
        learn_sample("milo", "quick", home, stop)
    assert stopped.value.remedy == "The same command goes on from there."


def test_one_of_other_settings_is_begun_again_under_the_same_name(home: Home, heard: list[Event]):
    with pytest.raises(KeyboardInterrupt):
        learn_sample("milo", "quick", home, stop_at_2)
    learned = learn_sample("milo", "normal", home, heard.append)
    assert (learned.concept.name, learned.recipe.preset) == ("milo", "normal")
    assert [event.step for event in heard if isinstance(event, Loss)] == [1, 2]
    assert "begun again" in notices(heard)


def test_one_on_another_base_is_begun_again(home: Home, base: Path, heard: list[Event]):
    with pytest.raises(KeyboardInterrupt):
        learn_sample("milo", "normal", home, stop_at_2)
    weights = next(base.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert learn_sample("milo", "normal", home, heard.append).concept.name == "milo"
    assert "begun again" in notices(heard)


def test_an_interrupted_training_of_the_users_own_is_left_alone(home: Home, heard: list[Event]):
    with pytest.raises(KeyboardInterrupt):
        train_concept(mine(home, "milo"), home, stop_at_2)
    assert learn_sample("milo", "normal", home, heard.append).concept.name == "milo-2"
    assert train_concept(mine(home, "milo"), home, resume=True).name == "milo"


def test_what_the_user_made_in_the_place_of_a_sample_is_left_alone(home: Home, heard: list[Event]):
    learn_sample("milo", "normal", home, heard.append)
    train_concept(mine(home, "milo"), home, overwrite=True)
    assert learn_sample("milo", "normal", home, heard.append).concept.name == "milo-2"


def test_what_the_user_finished_is_left_alone(home: Home, heard: list[Event]):
    with pytest.raises(KeyboardInterrupt):
        learn_sample("milo", "normal", home, stop_at_2)
    train_concept(mine(home, "milo"), home, resume=True)
    assert learn_sample("milo", "normal", home, heard.append).concept.name == "milo-2"


def test_a_shipped_concept_makes_room(home: Home, heard: list[Event]):
    add_shipped(home)
    learned = learn_sample("milo", "normal", home, heard.append)
    assert (learned.concept.name, learned.reused) == ("milo", False)
    assert "learned anew" in notices(heard)
    assert learn_sample("milo", "normal", home, heard.append).reused


def test_a_kill_after_the_concept_has_moved_in_loses_nothing(home: Home, monkeypatch: pytest.MonkeyPatch):
    def killed(*given: Any, **named: Any) -> None:
        train_concept(*given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr("studio.trainers.sample_concepts.train_concept", killed)
    with pytest.raises(KeyboardInterrupt):
        learn_sample("milo", "normal", home, silent)
    learned = learn_sample("milo", "normal", home, silent)
    assert (learned.concept.name, learned.reused, len(learned.losses)) == ("milo", True, 2)


@pytest.mark.parametrize("left", ["", '{"made_fr', "[]", '{"made_from": 1}'])
def test_a_damaged_record_counts_as_none(home: Home, heard: list[Event], left: str):
    folder = learn_sample("milo", "normal", home, heard.append).concept.folder
    (folder / SAMPLE_FILE).write_text(left)
    learned = learn_sample("milo", "normal", home, heard.append)
    assert (learned.concept.name, learned.reused) == ("milo", False)


def test_the_shipped_pictures_are_found():
    assert len(list(sample_folder("rex").glob("*.png"))) == 5
