import sqlite3

import pytest
from PIL import Image

from studio.errors import UsageError
from studio.ui import app
from studio.ui.api import number_of
from studio.ui.asks import ComposeAsk, EvaluateAsk, StylizeAsk, lasting
from studio.ui.service import Service, TrainAsk

TRAINING = {"dataset": "sample:milo", "name": "milo", "class_word": "cat", "preset": "quick"}


@pytest.fixture
def service(home, monkeypatch):
    monkeypatch.setattr("studio.ui.service.ensure_runner", lambda home, device: None)
    return Service(home)


@pytest.fixture
def private(tmp_path):
    """A folder of pictures that nobody uploaded."""
    folder = tmp_path / "private"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (96, 96), (n, 0, 0)).save(folder / f"{n}.png")
    return folder


@pytest.mark.parametrize("key", ["pictures", "name", "class_word", "base", "trigger", "method", "preset", "others"])
def test_settings_cannot_say_what_has_a_field_of_its_own(service, private, key):
    others = [{"name": "rex", "class_word": "dog", "pictures": str(private)}]
    value = {"pictures": str(private), "others": others}.get(key, "x")
    with pytest.raises(UsageError, match=key):
        service.train(TrainAsk.read(TRAINING | {"settings": {key: value}}))
    assert service.store.jobs() == []


@pytest.mark.parametrize("base", ["/etc", "../models/mine", "models/mine.safetensors", "~/mine", "C:\\mine"])
def test_a_base_is_called_by_name_and_not_by_a_place_on_the_disk(service, base):
    asked = {"prompt": "a cat", "base": base}
    for ask in (
        lambda: service.train(TrainAsk.read(TRAINING | {"base": base})),
        lambda: service.compose(ComposeAsk.read(asked)),
        lambda: service.stylize(StylizeAsk.read(asked)),
        lambda: service.evaluate(EvaluateAsk.read({"names": ("milo",), "base": base})),
    ):
        with pytest.raises(UsageError, match="base"):
            ask()


@pytest.mark.parametrize("given", [{"clip": "/etc"}, {"references": {"milo": "/etc"}}])
def test_networks_and_pictures_on_the_disk_are_named_in_a_terminal_only(service, given):
    with pytest.raises(UsageError, match=next(iter(given))):
        service.compose(ComposeAsk.read({"prompt": "a cat"} | given))
    with pytest.raises(UsageError, match=next(iter(given))):
        service.evaluate(EvaluateAsk.read({"names": ("milo",)} | given))


@pytest.mark.parametrize("given", ["a cat", None, [1], 3, ["prompt"]])
def test_what_is_no_object_is_refused_in_a_sentence(given):
    with pytest.raises(UsageError, match="no object of settings"):
        ComposeAsk.read(given)


@pytest.mark.parametrize("given", ["abc", None, 10**30, -1, 1.5, True, "", "1" * 5000])
def test_what_is_no_number_of_a_job_is_refused(given):
    with pytest.raises(UsageError, match="no number of a job"):
        number_of(given)


@pytest.mark.parametrize("given", [12, "12"])
def test_a_job_goes_by_its_number(given):
    assert number_of(given) == 12


@pytest.mark.parametrize(
    ("network", "kept"),
    [("nets", "{here}/nets"), ("./nets", "{here}/nets"), ("RN50=w.pt", "RN50={here}/w.pt"),
     ("timm:vit=../w.pt", "timm:vit={here}/../w.pt"), ("RN50/openai", "RN50/openai"), ("owner/net", "owner/net"),
     (None, None)],
)  # fmt: skip
def test_a_network_that_is_named_from_here_is_kept_for_every_working_directory(tmp_path, monkeypatch, network, kept):
    (tmp_path / "nets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert lasting(network) == (kept and kept.format(here=tmp_path))


def test_the_samples_that_come_trained_are_whole_and_stay_out_of_the_way_of_ones_own(service):
    from studio.concepts import check_hash
    from studio.images import find_pictures
    from studio.library import Library
    from studio.trainers.recipe import build_recipe, read_toml

    assert service.add_samples() == ["milo", "rex", "neon"]
    for concept in Library(service.home).concepts():
        check_hash(concept)
        assert find_pictures(build_recipe([read_toml(concept.folder / "recipe.toml")]).pictures)
    own = service.library.tag("milo", {"mine"}, ())
    service.library.remove("rex")
    service.add_samples()
    assert service.library.find("milo").tags == own.tags
    assert service.library.find("rex").class_word == "dog"


def test_a_look_at_the_jobs_that_fails_is_logged_and_the_server_goes_on(service, monkeypatch, caplog):
    looks = iter([sqlite3.OperationalError("database is locked"), OSError("no more processes"), KeyboardInterrupt()])

    def wake():
        raise next(looks)

    monkeypatch.setattr(service, "wake", wake)
    monkeypatch.setattr(app.time, "sleep", lambda seconds: None)
    with pytest.raises(KeyboardInterrupt):
        app.stand_by(service)
    assert [str(record.exc_info[1]) for record in caplog.records] == ["database is locked", "no more processes"]
