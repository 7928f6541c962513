import json
import shlex
import time
import tomllib
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from studio.errors import UsageError
from studio.jobs import Order
from studio.process_identity import Identity
from studio.ui import fragments, page_train, train_fields
from studio.ui.frame import Frame
from studio.ui.service import Service, TrainAsk

GIVEN = {"dataset": "sample:milo", "name": "milo", "class_word": "cat", "trigger": "", "base": "", "method": "lora",
         "preset": "quick", "overwrite": False}  # fmt: skip


@pytest.fixture
def service(home, monkeypatch):
    monkeypatch.setattr("studio.ui.service.ensure_runner", lambda home, device: None)
    return Service(home)


def test_the_table_shows_every_picture_with_its_caption_and_what_is_wrong(service, tmp_path):
    place = tmp_path / "given"
    place.mkdir()
    Image.new("RGB", (96, 96), "red").save(place / "a.png")
    (place / "a.txt").write_text("<script>alert(1)</script>")
    whole = (place / "a.png").read_bytes()
    (place / "b.png").write_bytes(whole[: len(whole) // 2])
    shown = train_fields.picture_table(service, service.datasets.add(sorted(place.iterdir())), None)
    assert "1 of 2 pictures can be used; 1 have captions" in shown
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


@pytest.mark.parametrize("missing", ["dataset", "name", "class_word"])
def test_what_is_missing_is_named_with_the_step_where_it_belongs(missing):
    with pytest.raises(UsageError, match=missing.replace("_", " ")):
        train_fields.train_ask(GIVEN | {missing: ""}, {})


def test_only_what_was_changed_becomes_a_setting(service):
    recipe = service.recipe(train_fields.train_ask(GIVEN, {}))
    rows = train_fields.settings_table(recipe)
    assert train_fields.changed_settings(rows, recipe) == {}
    changed = [[name, "7" if name == "steps" else value] for name, value in rows] + [["no_such", "1"]]
    assert train_fields.changed_settings(changed, recipe) == {"steps": 7}
    with pytest.raises(UsageError, match="steps"):
        train_fields.changed_settings([["steps", "seven"]], recipe)


def test_edited_settings_outlive_a_second_look_and_another_quality(service):
    def usual(**changes):
        return train_fields.settings_table(service.recipe(train_fields.train_ask(GIVEN | changes, {})))

    quick, normal = usual(), usual(preset="normal")
    edited = [[name, {"rank": "3", "seed": "x"}.get(name, value)] for name, value in quick]
    assert train_fields.with_edits(edited, quick, quick) == edited
    again = dict(train_fields.with_edits(edited, quick, normal))
    assert again == dict(normal) | {"rank": "3", "seed": "x"}
    assert train_fields.with_edits([], [], quick) == quick


def test_another_set_of_pictures_takes_back_only_what_the_page_wrote(service, tmp_path):
    with gr.Blocks() as blocks:
        page_train.build(Frame(service, gr.Textbox(), gr.Textbox()))
    handlers: dict[str, Any] = {str(one.name): one.fn for one in blocks.fns.values()}
    sampled, uploaded = handlers["sampled"], handlers["uploaded"]
    *_, name, word, written = sampled("milo", None, None, "")  # None: a field that is not yet in sight
    assert (name, word) == ("milo", "cat")
    *_, name, word, written = sampled("rex", name, "hound", written)
    assert (name, word) == ("rex", "hound")
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    assert uploaded([str(tmp_path / "a.png")], "", name, word, written)[-3:] == ["", "hound", ""]


def test_the_command_says_the_same_as_the_page(service):
    line = train_fields.command_of(service, train_fields.train_ask(GIVEN, {}))
    words = shlex.split(line)
    assert words[:2] == ["studio", "train-concept"]
    assert words[3:] == ["--name", "milo", "--class", "cat", "--method", "lora", "--preset", "quick"]
    longer = train_fields.command_of(service, train_fields.train_ask(GIVEN, {"steps": 7, "betas": [0.9, 0.99]}))
    settings = longer.split("<<'END'\n")[1].split("END\n")[0]
    assert tomllib.loads(settings) == {"steps": 7, "betas": [0.9, 0.99]}


def test_checks_let_a_sound_training_through_and_stop_others(service):
    shown, may = train_fields.checks(service, train_fields.train_ask(GIVEN, {}))
    assert may
    assert "5 pictures can be used" in shown
    service.train(train_fields.train_ask(GIVEN, {}))
    shown, may = train_fields.checks(service, train_fields.train_ask(GIVEN, {}))
    assert not may
    assert "trains &#39;milo&#39; already" in shown


def test_a_training_is_queued_with_its_whole_recipe(service):
    job = service.train(train_fields.train_ask(GIVEN, {"steps": 7}))
    assert (job.kind, job.state, job.pausable, job.warm) == ("train", "waiting", True, False)
    assert job.arguments["recipe"]["steps"] == 7
    assert json.dumps(job.arguments)


def test_cards_know_how_long_it_took_here_the_last_time(service):
    recipe = service.recipe(TrainAsk.read({k: v for k, v in GIVEN.items() if v}))
    told = recipe.model_dump(mode="json")
    job = service.store.submit(Order("train", "t", "x:y", {"recipe": told}, pausable=True)).id
    service.store.start(job, Identity.of())
    service.store._update(job, ("running",), started=time.time() - 2.0 * recipe.steps)
    service.store.end(job, "done", {})
    assert "about 5 min 20 s, 0.15 GB of memory, a file of 4.7 MB" in train_fields.method_cards(service, "lora", recipe)
    elsewhere = recipe.model_copy(update={"base": "sdxl"})
    assert "of memory" not in train_fields.method_cards(service, "lora", elsewhere)


def test_a_job_is_shown_with_loss_previews_and_failure_all_escaped(service, tmp_path):
    from studio.events import Loss, Notice, Preview, Validation

    hostile = "<script>alert(1)</script>${1+1}{{7*7}}"
    job = service.store.submit(Order("train", hostile, "x:y", {"prompt": hostile})).id
    service.store.start(job, Identity.of())
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    for event in (Notice(hostile), Loss(1, 0.5, 1e-4), Loss(2, 0.4, 1e-4), Validation(0, 1.0, None),
                  Validation(1, 0.6, (0.5, 0.6)), Validation(2, 0.5, (0.9, 0.9)),
                  Preview(0, (tmp_path / "p.png",), (hostile,))):  # fmt: skip
        service.store.note(job, event)
    service.store.end(job, "failed", problem=hostile, remedy=hostile, cause=hostile)
    shown = fragments.job_view(service, job) + fragments.queue(service, job) + fragments.strip(service)
    assert "<script>" not in shown
    assert "{{7*7}}" in shown
    assert "${1+1}" in shown
    assert shown.count("★ recommended") == 1
    assert 'class="smooth"' in shown
    assert "/studio/thumbs/" in shown
