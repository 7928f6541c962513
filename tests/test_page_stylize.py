"""The page Stylize without a browser, and the grid of strengths that it draws."""

import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from studio.concepts import Concept, write_concept
from studio.errors import UsageError
from studio.events import Notice, Step
from studio.home import Home
from studio.job_records import Order
from studio.job_worker import Bench
from studio.library import Library
from studio.process_identity import Identity
from studio.ui import page_stylize, stylizing
from studio.ui.form_parts import decimal, whole
from studio.ui.frame import Frame
from studio.ui.service import Service
from studio.ui.stylizing import GridAsk
from studio.ui.thumbs import ROUTE

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def frame(home: Home, monkeypatch: pytest.MonkeyPatch) -> Frame:
    """A frame whose service starts no process."""
    monkeypatch.setattr("studio.ui.service.ensure_runner", lambda home, device: None)
    return Frame(Service(home), gr.Textbox(render=False), gr.Textbox(render=False))


@pytest.fixture
def library(home: Home, tiny_sdxl: Path, tiny_loras: list[Path]) -> Library:
    """milo and neon, of the whole UNet of a tiny SDXL."""
    for n, (name, class_word) in enumerate((("milo", "cat"), ("neon", "style"))):
        folder = home.library / name
        folder.mkdir(parents=True)
        shutil.copy(tiny_loras[n], folder / "adapter.safetensors")
        write_concept(Concept(name, "sks", class_word, str(tiny_sdxl), "sdxl", "lora", folder))
    return Library(home)


def put(home: Home, name: str, family: str = "sdxl", **words: str) -> None:
    """A concept whose adapter nobody reads."""
    folder = home.library / name
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"weights")
    given: dict[str, Any] = {"trigger": "sks", "class_word": "cat", "base": family, "method": "lora"} | words
    write_concept(Concept(name, family=family, folder=folder, **given))


FIELDS: dict[str, Any] = {
    "content": "milo", "style": "neon", "content_strength": 0.5, "style_strength": 1.5, "prompt": "a <milo> in <neon>",
    "count": 2, "seed": "7", "grid": False, "steps": "3", "guidance": "", "negative": " ",
}  # fmt: skip


def test_the_page_is_laid_out(frame: Frame):
    with gr.Blocks():
        page_stylize.build(frame)
    _, fill, outputs = frame.shows[0]
    assert len(fill()) == len(outputs)


def test_only_what_can_be_stylized_is_offered_and_it_is_said(frame: Frame, home: Home):
    put(home, "milo")
    put(home, "old", family="sd15")
    content, style, said, samples = page_stylize.offered(frame)
    assert not samples["visible"]
    assert content["choices"] == style["choices"] == [("words only", ""), ("milo", "milo")]
    assert "SD 1.5: old." in said


def test_an_empty_library_can_be_filled_with_samples_that_can_be_stylized(frame: Frame):
    assert page_stylize.offered(frame)[3]["visible"]
    content, style, _, samples = page_stylize.with_samples(frame)
    for one in (content, style):
        assert one["value"] in [name for _, name in one["choices"]]
    assert not samples["visible"]


def test_a_default_prompt_follows_until_the_user_writes_one(frame: Frame, home: Home):
    put(home, "milo")
    put(home, "neon")
    first, own = page_stylize.suggested(frame, "milo", "", "", "")
    assert first == own == "a <milo>"
    assert page_stylize.suggested(frame, "milo", "neon", first, own)[0] == "a <milo> in <neon>"
    assert page_stylize.suggested(frame, None, "neon", "", "")[0] == "a cat in <neon>"
    assert page_stylize.suggested(frame, "milo", "neon", "mine", own) == ("mine", "a <milo> in <neon>")
    assert page_stylize.suggested(frame, "", "", first, own) == ("", "")
    with pytest.raises(UsageError):
        page_stylize.suggested(frame, "../milo", "", "", "")


def test_wells_show_what_was_chosen_and_nothing_acts(frame: Frame, home: Home):
    put(home, "milo", trigger=EVIL, base="/private/place/tiny", method="<b>")
    shown = stylizing.well(frame.service, "milo", "content")
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "private" not in shown
    assert "Not trained as a B-LoRA" in shown
    assert "Words only" in stylizing.well(frame.service, None, "style")


def started(frame: Frame, fields: dict[str, Any]) -> str:
    return page_stylize.started(frame, **fields)


def test_fields_become_a_job(frame: Frame, library: Library):
    number = page_stylize.started(frame, *FIELDS.values())
    job = frame.service.store.job(int(number))
    asked = {key: job.arguments[key] for key in ("content", "style", "count", "seed", "steps", "style_strength")}
    assert asked == {"content": "milo", "style": "neon", "count": 2, "seed": 7, "steps": 3, "style_strength": 1.5}
    assert (job.kind, job.work) == ("stylize", "studio.ui.work:stylize")
    grid = frame.service.store.job(int(started(frame, FIELDS | {"grid": True})))
    assert grid.work == "studio.ui.stylizing:stylize_grid"
    assert "style_strength" not in grid.arguments


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "", "style": None}, {"content": "nobody"}, {"prompt": "a cat"}, {"prompt": ""}, {"seed": EVIL},
        {"seed": "-1"}, {"steps": "2.5"}, {"steps": "0"}, {"guidance": "nan"}, {"content_strength": 1e9},
        {"grid": True, "style": ""}, {"prompt": "a <milo> in <other>"},
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(frame: Frame, library: Library, changes: dict[str, Any]):
    with pytest.raises(UsageError):
        started(frame, FIELDS | changes)
    assert frame.service.store.jobs() == []


def test_concepts_of_sd15_are_refused(frame: Frame, home: Home, tiny_sd15: Path, tiny_loras: list[Path]):
    put(home, "old", family="sd15", base=str(tiny_sd15))
    shutil.copy(tiny_loras[0], home.library / "old/adapter.safetensors")
    with pytest.raises(UsageError, match="no block is known"):
        started(frame, FIELDS | {"content": "old", "style": "", "prompt": "a <old>"})


def test_a_grid_draws_every_strength_with_every_other(home: Home, library: Library):
    heard = []
    given = {"prompt": "a <milo> in <neon>", "content": "milo", "style": "neon", "steps": 2, "seed": 7}
    result = stylizing.stylize_grid(GridAsk.read(given).arguments(), Bench(home, heard.append, "cpu", 1, 1))
    made = result["pictures"]
    assert [(one["content"], one["style"]) for one in made] == [
        (content, style) for content in (0.5, 1.0, 1.5) for style in (0.5, 1.0, 1.5)
    ]
    assert len({Image.open(one["path"]).tobytes() for one in made}) > 1
    steps = [one for one in heard if isinstance(one, Step)]
    assert [one.step for one in steps] == list(range(1, 19))
    assert {one.total for one in steps} == {18}
    assert any(isinstance(one, Notice) for one in heard)


def done(frame: Frame, result: dict[str, object], title: str = "a picture") -> int:
    store = frame.service.store
    job = store.submit(Order("stylize", title, "m:f", {}))
    store.start(job.id, Identity.of())
    store.end(job.id, "done", result)
    return job.id


def test_a_grid_is_shown_as_one(frame: Frame, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    cells = [{"path": tmp_path / "1.png", "seed": 7, "content": c, "style": s} for c in (0.5, 1) for s in (0.5, 1)]
    number = done(frame, {"pictures": cells, "grid": [0.5, 1], "prompt": EVIL})
    shown = stylizing.stylized(frame.service, number)
    assert shown.count(ROUTE) == 4
    assert f"/studio/pictures/{number}/3" in shown
    assert "<script" not in shown
    assert str(tmp_path) not in shown


def test_what_became_of_a_job_is_shown(frame: Frame, home: Home):
    assert "will stand here" in stylizing.stylized(frame.service, None)
    assert "will stand here" in stylizing.stylized(frame.service, 99)
    job = frame.service.store.submit(Order("stylize", EVIL, "m:f", {}))
    assert "state-waiting" in stylizing.stylized(frame.service, job.id)
    frame.service.store.start(job.id, Identity.of())
    frame.service.store.end(job.id, "failed", problem=EVIL, remedy="Do that.")
    shown = stylizing.stylized(frame.service, job.id)
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
    assert "Do that." in shown


def test_numbers_as_they_are_typed():
    assert (whole("", "Seed:"), whole(" 12 ", "Seed:"), whole(None, "Seed:")) == (None, 12, None)
    assert (decimal("2,5", "x"), decimal("", "x"), decimal("-1", "x")) == (2.5, None, -1)
    for wrong in ("1.5", "-1", "x", "²", "9" * 30):
        with pytest.raises(UsageError):
            whole(wrong, "Seed:")
    for wrong in ("x", "inf", "nan"):
        with pytest.raises(UsageError):
            decimal(wrong, "x")
