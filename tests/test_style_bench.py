import json
from pathlib import Path

import pytest
from small_world import shrink

from studio.concepts import Concept
from studio.picturebook import STYLES
from studio.pipelines.style_bench import ANY, BOTH, SHOWN, WHOLE, WORDS, StyleBench, _tasks
from studio.trainers import presets

LEARNED = [
    (Concept(scene.style, "zwx", scene.subjects[0].kind, "picturebook", "sdxl", "b-lora", Path()), scene)
    for scene in SHOWN
]


def test_every_style_is_shown_once_by_things_that_nothing_else_shares():
    assert sorted(scene.style for scene in SHOWN) == sorted(STYLES)
    subjects = [scene.subjects[0] for scene in SHOWN]
    assert len({one.kind for one in subjects}) == len({one.colour for one in subjects}) == len(SHOWN)


def test_no_words_name_a_style_that_a_half_should_bring():
    tasks = _tasks(LEARNED)
    for task in (ANY, BOTH, WHOLE):
        assert all(one.style is not None for one in tasks[task])
        assert not any(style in one.plain for one in tasks[task] for style in STYLES)
    assert all(one.style is None and one.wanted["style"] in one.prompt for one in tasks[WORDS])
    assert all(one.content is not None and one.wanted["style"] != one.content.name for one in tasks[WORDS])
    assert all(one.content is not one.style for one in tasks[BOTH])
    assert _tasks(LEARNED)[WHOLE][0].plain == "a cat"


def test_the_command_learns_draws_and_reports(
    run_studio, monkeypatch: pytest.MonkeyPatch, tiny_sdxl: Path, tmp_path: Path
):
    shrink(monkeypatch, tiny_sdxl, tmp_path / "base")
    few = {**presets._OF_METHOD["b-lora", True], "steps": 2, "rank": 2, "alpha": 2.0}
    monkeypatch.setitem(presets._OF_METHOD, ("b-lora", True), few)
    monkeypatch.setattr(StyleBench, "__init__", _in_one_step(StyleBench.__init__))
    report = json.loads(run_studio("bench", "styles", "--seeds", "1", "--out", tmp_path / "out", "--json").out)
    assert report["steps of training"] == 2
    counts = {task: found["with the halves"]["style"]["count"] for task, found in report["tasks"].items()}
    assert counts == {ANY: 20, WORDS: 20, BOTH: 10, WHOLE: 5}
    assert (tmp_path / "out" / "styles.png").is_file()


def _in_one_step(init):
    return lambda self, seeds: init(self, seeds, steps=1)
