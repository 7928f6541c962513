"""The report is read back with the standard library's HTML parser."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from studio.errors import StudioError
from studio.stats import Share
from studio.ui.report import loss_chart, picture_uri, render_report, shown_width, tally, write_report
from studio.ui.story import TRUE, Command, ConceptStory, Growth, Mark, Measure, SceneRow, Shot, Story

NASTY = '"><script>alert(1)</script>'


def shot(prompt: str, *marks: Mark) -> Shot:
    return Shot(Image.new("RGB", (8, 8), "green"), prompt, 7, marks)


def concept(name: str, reused: bool = False, seconds: float | None = 65.0) -> ConceptStory:
    kinds = {f"with {name}": [True, False, True], "base": [False], TRUE: [True, True]}
    measure = Measure(f"Is it {name}?", {kind: Share.of(hits) for kind, hits in kinds.items()})
    return ConceptStory(
        name=name,
        phrase="sks cat",
        class_word="cat",
        photos=(Image.new("RGB", (8, 8)),) * 5,
        steps=12,
        seconds=seconds,
        reused=reused,
        losses=tuple((step, 1 / step) for step in range(1, 13)),
        growth=(Growth(0, (shot("a sks cat early"),)), Growth(12, (shot("a sks cat late"),))),
        scenes=(
            SceneRow(f"a <{name}> at night", f'studio generate "a <{name}> at night"', (shot("a sks cat before"),),
                     (shot("a sks cat after", Mark(name, True), Mark("place", False)),)),
        ),
        measures=(measure,),
    )  # fmt: skip


def story(*concepts: ConceptStory) -> Story:
    first, second = concepts or (concept("milo"), concept("rex"))
    return Story(
        concepts=(first, second),
        pair_scenes=(SceneRow("both <milo> and <rex>", "studio x", (shot("pair before"),), (shot("pair after"),)),),
        pair_measures=(Measure("Both in place?", {kind: Share.of([True, False]) for kind in ("merged", "composed")}),),
        candidates=28,
        times=(("Learn milo", 61.0), ("Draw milo", 9.0)),
        machine="2 CPU cores; Linux",
        settings="8 x 8 px",
        commands=(Command("studio library list", "What there is"),),
        library=Path("/somewhere/library"),
    )


class Page(HTMLParser):
    """All tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(story()))


def test_it_loads_nothing_and_runs_nothing(page: Page):
    sources = [a.get(key) or "" for _, a in page.tags for key in ("src", "href", "srcset", "data") if key in a]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"url\(|@import", render_report(story()))


def test_every_picture_has_words_and_every_prompt_a_picture(page: Page):
    alts = [image["alt"] for image in page.images()]
    assert all(alts)
    assert {
        "a sks cat early",
        "a sks cat late",
        "a sks cat before",
        "a sks cat after",
        "pair before",
        "pair after",
    } <= {*alts}


def test_the_pictures_inside_are_the_ones_given(page: Page):
    image = next(image for image in page.images() if image["alt"] == "pair after")
    data = base64.b64decode((image["src"] or "").split(",")[1])
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (0, 128, 0)


def test_figures_are_those_of_the_story(page: Page):
    words = " ".join(page.text.split())
    for expected in ("2 of 3", "1 of 2", "0.21 to 0.94", "28 candidates", "1 min 10 s", "12 steps in 1 min 05 s"):
        assert expected in words
    assert "for all of this run: 12 pictures on 2 CPU cores" in words  # those judged, without the true drawings


def test_prompts_commands_and_marks_are_shown(page: Page):
    words = " ".join(page.text.split())
    for expected in ("a <milo> at night", 'studio generate "a <rex> at night"', "seed 7", "✓ milo: yes", "✗ place: no"):
        assert expected in words


def test_names_are_escaped():
    text = render_report(story(concept(NASTY), concept("rex")))
    assert "<script" not in text
    assert NASTY in Page(text).text


@pytest.mark.parametrize(
    ("reused", "seconds", "words"),
    [(True, 65.0, "took 1 min 05 s then"), (True, None, "is reused here"), (False, None, "an earlier run had done")],
)
def test_what_was_not_measured_now_is_said_so(reused: bool, seconds: float | None, words: str):
    text = Page(render_report(story(concept("milo", reused, seconds), concept("rex")))).text
    assert words in " ".join(text.split())
    assert "without what an earlier run had learned" in " ".join(text.split())


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path):
    assert write_report(story(), tmp_path / "new").read_text(encoding="utf-8").endswith("</html>")
    (tmp_path / "file").touch()
    with pytest.raises(StudioError):
        write_report(story(), tmp_path / "file")


def test_small_pieces():
    assert tally(Share.of([True] * 7 + [False])) == "7 of 8"
    assert [shown_width(Image.new("RGB", (side, side))) for side in (96, 128, 64, 512)] == [192, 256, 192, 512]
    assert picture_uri(Image.new("RGB", (2, 2))).startswith("data:image/png;base64,iVBOR")


def test_the_loss_chart_ends_where_the_training_ends():
    chart = loss_chart(((1, 4.0), (2, 2.0), (3, 2.0), (4, 1.0)))
    assert chart.raw == "160.0,0.0 320.0,75.0 480.0,75.0 640.0,112.5"
    assert chart.smooth == "320.0,37.5 480.0,75.0 640.0,93.8"
    assert chart.words == "The mean of the first 2 steps is 3.000, that of the last 2 is 1.500."
