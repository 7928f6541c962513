"""The page Evaluate without a browser."""

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from studio.concepts import Concept, write_concept
from studio.errors import UsageError
from studio.home import Home
from studio.job_records import Order
from studio.process_identity import Identity
from studio.ui import downloads, evaluation_view, page_evaluate
from studio.ui.evaluation_view import amount, ask_of, best_rows
from studio.ui.frame import Frame
from studio.ui.service import Service
from studio.ui.thumbs import ROUTE

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def frame(home: Home, monkeypatch: pytest.MonkeyPatch) -> Frame:
    """A frame whose service starts no process."""
    monkeypatch.setattr("studio.ui.service.ensure_runner", lambda home, device: None)
    return Frame(Service(home), gr.Textbox(render=False), gr.Textbox(render=False))


def mean(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "count": 4}


def report(row: str = "auto", prompt: str = "a <milo>", file: str = "k.png") -> dict[str, Any]:
    """What keep_evaluation returns, of two rows."""
    return {
        "rows": {row: {"pictures": 4, "leak": mean(0.1), "CLIP-T": mean(24.5), "sharpness": mean(1)},
                 "merge": {"pictures": 4, "leak": mean(0.5), "CLIP-T": mean(23)}},
        "scores": {"leak": "a place shows another", "CLIP-T": "how it fits", "sharpness": EVIL},
        "worst first by": "CLIP-T",
        "pictures": [{"row": row, "prompt": prompt, "seed": 3, "file": file, "CLIP-T": 20.123}],
    }  # fmt: skip


def done(frame: Frame, result: dict[str, Any], kind: str = "evaluate", title: str = "Evaluate milo") -> int:
    store = frame.service.store
    job = store.submit(Order(kind, title, "m:f", {}))
    store.start(job.id, Identity.of())
    store.end(job.id, "done", result)
    return job.id


def test_the_page_is_laid_out(frame: Frame, home: Home):
    with gr.Blocks():
        page_evaluate.build(frame)
    assert [name for name, _, _ in frame.shows] == ["evaluate"]
    folder = home.library / "milo"
    folder.mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"weights")
    write_concept(Concept("milo", "sks", "cat", "picturebook", "sdxl", "lora", folder))
    names, samples = frame.shows[0][1]()
    assert names["choices"] == ["milo"]
    assert not samples["visible"]


def test_an_empty_library_offers_the_samples(frame: Frame):
    with gr.Blocks():
        page_evaluate.build(frame)
    assert frame.shows[0][1]()[1]["visible"]


def test_fields_say_what_is_asked():
    one = ask_of(["milo"], "scenes", "", ["auto"], seeds=2, seed=None, steps=3, guidance=None)
    assert (one.names, one.protocol, one.methods, one.seeds, one.steps) == (("milo",), "scenes", (), 2, 3)
    assert ask_of(["milo"], "dreambooth", "", []).protocol == "dreambooth"
    assert ask_of(["milo"], "checkpoints", "", []).checkpoints
    two = ask_of(["milo", "rex"], "together", "", ["auto", "merge"])
    assert (two.together, two.methods) == (2, ("auto", "merge"))
    own = ask_of([], "own", " a <milo> \n\n a <rex>\n", ["merge"])
    assert own.prompts == ("a <milo>", "a <rex>")


@pytest.mark.parametrize(
    ("names", "question", "prompts"), [([], "scenes", ""), (["milo"], "own", " \n"), (["milo"], EVIL, "")]
)
def test_what_is_missing_is_refused(names: list[str], question: str, prompts: str):
    with pytest.raises(UsageError):
        ask_of(names, question, prompts, [])


def test_unknown_concepts_and_methods_are_refused(frame: Frame):
    for ask in (ask_of(["nobody"], "scenes", "", []), ask_of([], "own", "a <../x>", ["auto"])):
        with pytest.raises(UsageError):
            frame.service.evaluate(ask)
    assert frame.service.store.jobs() == []


def test_the_number_of_pictures_is_told_before():
    assert amount(["milo"], "scenes", None, [], 1) == amount(["milo"], "scenes", "", [], 1)  # a hidden field is None
    assert amount(["milo", "rex"], "scenes", "", [], 4).startswith("32 ")
    assert amount(["milo"], "dreambooth", "", [], 4).startswith("100 ")
    assert amount([], "own", "one\ntwo\n", ["auto", "merge"], 2).startswith("8 ")
    assert amount(["a", "b", "c"], "together", "", ["auto"], 4).startswith("12 ")
    assert amount(["a"], "checkpoints", "", [], 4) == ""


def test_which_way_is_better_is_as_the_scores_say():
    from studio.pipelines.evaluation_table import SENSES

    ways = {"lower": evaluation_view.LOWER_IS_BETTER, "": evaluation_view.NEITHER_IS_BETTER}
    for better, names in ways.items():
        assert names == {name for name, sense in SENSES.items() if sense.better == better}


def test_the_best_of_a_column():
    rows = report()["rows"]
    assert best_rows(rows, "leak") == {"auto"}
    assert best_rows(rows, "CLIP-T") == {"auto"}
    assert best_rows(rows, "sharpness") == set()
    assert best_rows({"one": {"leak": mean(1)}, "two": {"leak": mean(1)}}, "leak") == set()


def test_the_table_and_the_worst_pictures(frame: Frame, home: Home):
    folder = home.cache / "evaluations/pictures"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "k.png")
    shown = evaluation_view.evaluation(frame.service, done(frame, report()))
    assert shown.count('class="number top"') == 2
    assert "24.50<small>24.40 to 24.60</small>" in shown
    assert shown.count(ROUTE) == 1
    assert "a &lt;milo&gt;" in shown
    assert "20.12" in shown


def test_strangers_words_do_not_act_and_no_path_leads_out(frame: Frame, home: Home, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "k.png")
    number = done(frame, report(EVIL, EVIL, str(tmp_path / "k.png")), title=EVIL)
    shown = evaluation_view.evaluation(frame.service, number)
    assert "<script" not in shown
    assert ROUTE not in shown
    assert str(tmp_path) not in shown
    assert "<script" not in evaluation_view.evaluations(frame.service, number)


def test_what_became_of_a_job_is_shown(frame: Frame):
    assert "will stand here" in evaluation_view.evaluation(frame.service, None)
    other = done(frame, {}, kind="compose")
    assert "will stand here" in evaluation_view.evaluation(frame.service, other)
    assert "No evaluation yet" in evaluation_view.evaluations(frame.service, None)
    job = frame.service.store.submit(Order("evaluate", "Evaluate milo", "m:f", {}))
    assert "state-waiting" in evaluation_view.evaluation(frame.service, job.id)
    assert 'aria-current="true"' in evaluation_view.evaluations(frame.service, job.id)


def test_reports_among_the_outputs_are_handed_out(frame: Frame, home: Home):
    folder = home.outputs / "evaluation-1"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("report")
    (folder / "pictures.csv").write_text("row\n")
    number = done(frame, report() | {"report": str(folder / "report.html")})
    html, csv = (page_evaluate.saved(frame, str(number), name) for name in ("report.html", "pictures.csv"))
    assert (Path(html["value"]).name, Path(csv["value"]).name) == ("evaluation-1.html", "evaluation-1.csv")
    assert Path(csv["value"]).read_text() == "row\n"
    assert not Path(html["value"]).is_relative_to(home.root)
    assert page_evaluate.saved(frame, str(number), "report.html") == html


@pytest.mark.parametrize("name", ["report.html", "../../jobs.sqlite", "report.json"])
def test_nothing_else_is_handed_out(frame: Frame, home: Home, tmp_path: Path, name: str):
    (tmp_path / "report.html").write_text("secret")
    (home.outputs / "link").mkdir(parents=True)
    (home.outputs / "link/report.html").symlink_to(tmp_path / "report.html")
    for place in (tmp_path, home.outputs / "link", home.outputs / ".." / "..", home.outputs / "gone"):
        number = done(frame, report() | {"report": str(place / "report.html")})
        assert downloads.report_file(frame.service.store.job(number), home.outputs, name) is None
    assert page_evaluate.saved(frame, "", name) == gr.update(visible=False)
    assert page_evaluate.saved(frame, "99", name) == gr.update(visible=False)
