"""`studio evaluate`, on a tiny base with a CLIP of random weights."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace

import pytest
from PIL import Image
from test_encoders import tiny_clip  # noqa: F401

from studio.concepts import Concept, read_concept, write_concept
from studio.events import Notice
from studio.jobs import JobStore
from studio.pipelines import evaluation
from studio.ui.asks import EvaluateAsk
from studio.ui.evaluating import plan_evaluation
from studio.ui.judging import Eyes

BOTH = "a <milo> and a <rex> on the grass"
QUICK = ("--steps", 1, "--device", "cpu")


@pytest.fixture
def library(home, tiny_sdxl, tiny_loras, tmp_path):
    """milo and rex, whose pictures lie where their recipes say."""
    for n, name in enumerate(("milo", "rex")):
        folder, pictures = home.library / name, tmp_path / f"pictures of {name}"
        folder.mkdir(parents=True)
        pictures.mkdir()
        Image.new("RGB", (40, 40), ("red", "blue")[n]).save(pictures / "1.png")
        shutil.copy(tiny_loras[n], folder / "adapter.safetensors")
        (folder / "recipe.toml").write_text(f"pictures = {json.dumps(str(pictures))}\n")
        write_concept(Concept(name, ("sks", "ohwx")[n], "cat", str(tiny_sdxl), "sdxl", "lora", folder))
    return home.library


@pytest.fixture
def run(run_studio, library, tiny_clip, tmp_path):  # noqa: F811
    def evaluate(*arguments):
        return run_studio("evaluate", *arguments, "--clip", tiny_clip, "--out", tmp_path / "out", *QUICK, "--json")

    return evaluate


def test_methods_are_rows_and_nothing_is_made_twice(run, tmp_path):
    asked = ("--prompt", BOTH, "--methods", "merge,composite", "--seeds", 2)
    first, second = run(*asked), run(*asked)
    assert first.code == second.code == 0, first.err + second.err
    told, again = json.loads(first.out), json.loads(second.out)
    assert list(told["rows"]) == ["merge", "composite"]
    assert (told.pop("drawn now"), again.pop("drawn now")) == (4, 0)
    assert told == again
    assert {"CLIP-T", "CLIP-I", "CLIP-margin", "diversity", "sharpness", "seconds"} < set(told["rows"]["merge"])
    assert set(told["over merge"]) == {"composite"}
    margins = [one["CLIP-margin"] for one in told["pictures"]]
    assert margins == sorted(margins)
    mean = sum(one["CLIP-T"] for one in told["pictures"] if one["row"] == "merge") / 2
    assert told["rows"]["merge"]["CLIP-T"]["value"] == pytest.approx(mean, abs=1e-3)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "pictures.csv").read_text())))
    assert [row["row"] for row in rows] == ["merge", "merge", "composite", "composite"]


def test_what_is_named_from_here_is_written_down_for_every_working_directory(
    run_studio,
    home,
    library,
    tiny_sdxl,
    tiny_clip,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    for name, place in (("base", tiny_sdxl), ("clip", tiny_clip)):
        (tmp_path / name).symlink_to(place)
    given = ("--prompt", BOTH, "--methods", "merge", "--seeds", 1, "--base", "base", "--clip", "./clip", "--out", "out")
    assert run_studio("evaluate", *given, *QUICK).code == 0
    asked = JobStore(home).jobs()[0].arguments
    assert (asked["base"], asked["clip"]) == (str(tmp_path / "base"), str(tmp_path / "clip"))


def test_the_page_needs_nothing_else(run, tmp_path):
    assert run("--prompt", BOTH, "--seeds", 1).code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    assert "<script" not in page
    assert "a &lt;milo&gt; and a &lt;rex&gt;" in page


def test_what_a_composition_warns_of_is_told_once(run, monkeypatch):
    compose = evaluation.compose

    def warning(base, settings, concepts, composer, emit, *rest):
        emit(Notice("one layer has no effect"))
        return compose(base, settings, concepts, composer, emit, *rest)

    monkeypatch.setattr(evaluation, "compose", warning)
    ended = run("--prompt", BOTH, "--prompt", "a <milo>", "--methods", "merge", "--seeds", 1)
    assert ended.err.count("one layer has no effect") == 1


def test_an_interrupted_call_goes_on(run, monkeypatch):
    compose, drawn = evaluation.compose, []

    def stopped(*given):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(given)
        return compose(*given)

    asked = ("--prompt", BOTH, "--prompt", "a <milo>", "--methods", "merge", "--seeds", 2)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "compose", stopped)
        assert run(*asked).code == 130
    assert json.loads(run(*asked).out)["drawn now"] == 2


def test_concepts_are_rows_of_their_protocol(run, tmp_path):
    told = json.loads(run("milo", "--seeds", 1).out)
    assert told["rows"]["milo"]["pictures"] == 25  # DreamBooth's, since the base is none of ours


def test_groups_stand_side_by_side(run):
    told = json.loads(run("milo", "rex", "--together", 2, "--methods", "regional", "--seeds", 1).out)
    (one,) = told["pictures"]
    assert one["prompt"].startswith("a <milo> on the left and a <rex> on the right")
    assert "CLIP-leak" in one


@pytest.mark.parametrize(
    ("asked", "widths"),
    [
        ({"names": ("milo", "rex", "bolt"), "together": 3}, [144]),
        ({"names": ("milo", "rex", "bolt"), "together": 2}, [None] * 3),
        ({"prompts": ("a <milo>, a <rex> and a <bolt>", BOTH)}, [144, None]),
    ],
)
def test_three_have_the_room_that_compose_gives_them(home, library, asked, widths):
    shutil.copytree(library / "milo", library / "bolt")
    for name in ("milo", "rex", "bolt"):
        write_concept(replace(read_concept(library / name), name=name, base="picturebook"))
    cases = plan_evaluation(home, EvaluateAsk.read(asked), {}, Eyes()).cases
    assert [case.settings.width for case in cases] == widths


def test_captions_are_drawn_beside_their_pictures_and_others_beside_the_bases(run, tmp_path):
    (tmp_path / "pictures of milo" / "1.txt").write_text("a cat on sand")
    told = json.loads(run("milo", "--protocol", "captions", "--seeds", 1).out)
    pairs = [one["prompt"] for one in told["pictures"] if "CLIP-pair" in one]
    drifts = {one["prompt"]: one["CLIP-drift"] for one in told["pictures"] if "CLIP-drift" in one}
    assert pairs == ["a <milo> on sand"]
    assert len(drifts) == 5
    assert all(0 < drift < 2 for drift in drifts.values())
    assert json.loads(run("milo", "--protocol", "captions", "--seeds", 1).out)["drawn now"] == 0


def test_steps_of_a_training_are_rows(run, library, tiny_loras):
    (library / "milo" / "steps").mkdir()
    shutil.copy(tiny_loras[1], library / "milo" / "steps" / "step-000040.safetensors")
    told = json.loads(run("milo", "--checkpoints", "--seeds", 1).out)
    assert list(told["rows"]) == ["step 40", "milo, as it is"]
    assert told["drawn now"] == 50


def test_composlora_takes_the_sets_of_the_tags(run, run_studio):
    for name, tag in (("milo", "character"), ("rex", "style")):
        assert run_studio("library", "tag", name, f"+{tag}").code == 0
    told = json.loads(run("--protocol", "composlora", "--seeds", 1).out)
    assert [one["prompt"] for one in told["pictures"]] == ["<milo>, <rex>"]


def test_lost_pictures_are_told_and_can_be_given(run, library, tmp_path):
    lost = tmp_path / "pictures of milo"
    lost.rename(tmp_path / "moved")
    ended = run("--prompt", "a <milo>", "--seeds", 1)
    assert "--references milo=FOLDER" in ended.err
    assert "CLIP-I" not in json.loads(ended.out)["rows"]["auto"]
    given = run("--prompt", "a <milo>", "--seeds", 1, "--references", f"milo={tmp_path / 'moved'}")
    assert "CLIP-I" in json.loads(given.out)["rows"]["auto"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing to evaluate"),
        (("nobody",), "no concept 'nobody'"),
        (("milo", "--protocol", "dreams"), "no protocol 'dreams'"),
        (("--prompt", BOTH, "--methods", "magic"), "no method 'magic'"),
        (("milo", "--checkpoints"), "kept no steps"),
        (("milo", "rex", "--checkpoints"), "about one concept"),
        (("milo", "--together", 2), "the number of concepts is 1"),
        (("milo", "rex", "--together", 0), "together is 0"),
        (("milo", "--protocol", "scenes"), "'scenes' does not ask this"),
        (("milo", "rex", "--together", 2, "--methods", "switch"), "leave no turn"),
        (("milo", "--prompt", "a cat"), "names no concept"),
        (("milo", "--prompt", "a <milo>", "--methods", "regional"), "needs a box"),
        (("milo", "--references", "rex=/tmp"), "none of the concepts"),
        (("milo", "--protocol", "captions", "--references", "milo=/nowhere"), "/nowhere"),
        (("milo", "--prompts", "no such file"), "Cannot read the prompts"),
        (("--protocol", "composlora"), "nothing to evaluate"),
        (("milo", "--methods", "auto,composite"), "--methods has no effect"),
        (("milo", "--protocol", "captions", "--methods", "auto"), "--methods has no effect"),
        (("milo", "--checkpoints", "--methods", "auto"), "--methods has no effect"),
        (("milo", "--box", "milo=0,0,1,1"), "--box has no effect"),
        (("milo", "rex", "--together", 2, "--box", "milo=0,0,1,1"), "--box has no effect"),
        (("--prompt", BOTH, "--box", "mlio=0,0,1,1"), "box for 'mlio'"),
        (("--prompt", BOTH, "--together", 2), "--prompt and --together do not go together"),
        (("--prompt", BOTH, "--protocol", "captions"), "--prompt and --protocol do not go together"),
        (("milo", "rex", "--together", 2, "--protocol", "captions"), "--together and --protocol do not go together"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_base_is_loaded(run, monkeypatch, arguments, words):
    monkeypatch.setattr("studio.models.load_base", lambda *given, **named: pytest.fail("the base was loaded"))
    ended = run(*arguments)
    assert ended.code == 2
    assert words in ended.err
