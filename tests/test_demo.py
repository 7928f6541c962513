import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from small_world import shrink
from soaking import soaked
from test_report import story as small_story

from studio.home import Home
from studio.library import Library
from studio.ui.commands import command_maker, next_commands

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tiny_sdxl: Path, tmp_path: Path) -> Path:
    return shrink(monkeypatch, tiny_sdxl, tmp_path / "base")


def alts(page: Path) -> list[str]:
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag == "img":
                found.append(dict(attrs)["alt"] or "")

    Reader().feed(page.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_the_demo_learns_draws_scores_and_reports(run_studio, small: Path, home: Home):
    said = run_studio("demo", "--quick", "--json", "--out", home.root / "mine")
    assert said.code == 0, said.err
    report = json.loads(said.out)
    assert report["report"] == str(home.root / "mine" / "report.html")
    assert report["pictures"] == 28  # not all are shown: of both together the untrained base's are only judged
    assert report["concepts"]["rex"]["Is it rex?"]["true drawings"]["count"] == 4
    assert {concept.name for concept in Library(home).concepts()} == {"milo", "rex"}
    words = alts(Path(report["report"]))
    for prompt in ("a milo0 cat at night, flat style", "a rex0 dog on sand, pixel style"):
        assert words.count(prompt) >= 2  # the base's and the trained one's
    assert "a milo0 cat on the left and a rex0 dog on the right on paper, flat style" in words


def test_it_tells_where_the_report_is(run_studio, home: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.ui.demo.run_demo", lambda *_: small_story())
    _, path, link = run_studio("demo").out.splitlines()
    assert Path(path).is_relative_to(home.outputs)
    assert Path(path).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert link == Path(path).as_uri()


def test_without_the_base_nothing_begins(run_studio, small: Path, home: Home, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.bases.embedded_folder", lambda: home.root / "nowhere")
    said = run_studio("demo")
    assert (said.code, "comes with the studio is missing" in said.err) == (1, True)
    assert not home.library.exists()


def test_without_the_judge_nothing_begins(run_studio, small: Path, home: Home, monkeypatch: pytest.MonkeyPatch):
    from studio.errors import StudioError

    def missing(which: str) -> None:
        raise StudioError(f"The weights of judge {which} are missing.", "Train them.")

    monkeypatch.setattr("studio.judge.Judge.load", staticmethod(missing))
    said = run_studio("demo")
    assert (said.code, "judge A" in said.err) == (1, True)
    assert not home.library.exists()


def test_a_file_is_no_folder_for_the_report(run_studio, tmp_path: Path):
    (tmp_path / "report").touch()
    assert run_studio("demo", "--out", tmp_path / "report").code == 2


def test_commands_run_this_studio_on_this_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    own = tmp_path / "bin" / "studio"
    own.parent.mkdir()
    own.touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(own.with_name("python")))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert command_maker(None)("library list") == "bin/studio library list"
    monkeypatch.setenv("PATH", str(own.parent))
    assert command_maker(Path("my home"))("library list") == 'studio library list --home "my home"'
    lines = [command.line for command in next_commands("milo", "rex", command_maker(None))]
    assert any(re.search(r'generate ".*<milo>', line) for line in lines)


def test_make_demo_runs_the_demo():
    recipe = re.search(r"^demo:.*\n\t(.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    assert recipe[1].endswith("studio demo")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@soaked
def test_the_real_demo_knows_the_true_drawings(run_studio, home: Home):
    said = run_studio("demo", "--quick", "--json")
    report = json.loads(said.out)
    gains = []
    for name, measures in report["concepts"].items():
        shares = measures[f"Is it {name}?"]
        assert shares["true drawings"]["value"] >= 0.75
        assert shares["untrained base"]["value"] <= 0.25
        gains.append(shares[f"with {name}"]["value"] - shares["untrained base"]["value"])
    assert min(gains) >= 0
    assert max(gains) > 0  # something is learned
