"""A demo's story as one HTML file that needs nothing else: pictures inside, no scripts, light and dark."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from PIL import Image

from studio.home import write_atomic
from studio.stats import Share
from studio.ui.progress import duration
from studio.ui.story import Story

REPORT_FILE = "report.html"
PICTURE_PIXELS = 192  # about how wide a small picture is shown; always a whole multiple of its own pixels
CHART_WIDTH, CHART_HEIGHT = 640, 150


@dataclass(frozen=True)
class LossChart:
    """Polylines of a loss in a box of CHART_WIDTH x CHART_HEIGHT, and the same in words."""

    raw: str
    smooth: str
    top: float
    last_step: int
    words: str


def write_report(story: Story, folder: Path) -> Path:
    """Write the report of `story` into `folder`; returns its path. Raises StudioError where the disk refuses."""
    text = render_report(story)
    return write_atomic(folder / REPORT_FILE, lambda file: file.write_text(text, encoding="utf-8"))


def render_report(story: Story) -> str:
    """The report of `story` as one HTML document."""
    filters = {"uri": picture_uri, "duration": duration, "tally": tally, "shown": shown_width, "chart": loss_chart}
    return template_of("demo.html", filters).render(story=story, chart_width=CHART_WIDTH, chart_height=CHART_HEIGHT)


def template_of(name: str, filters: Mapping[str, Callable[..., object]], folder: str = "report") -> Template:
    """The page `name` of the assets, in which every text is escaped and a name that is missing is an error."""
    text = (files("studio.assets") / folder / name).read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= filters
    return page.from_string(text)


def picture_uri(picture: Image.Image) -> str:
    """The picture as a PNG in a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shown_width(picture: Image.Image, wanted: int = PICTURE_PIXELS) -> int:
    """The width in CSS pixels nearest to `wanted` that is a whole multiple of the picture's."""
    return picture.width * max(1, round(wanted / picture.width))


def tally(share: Share) -> str:
    """`7 of 8`."""
    return f"{round(share.value * share.count)} of {share.count}"


def loss_chart(losses: tuple[tuple[int, float], ...]) -> LossChart:
    """The loss of every step, and its running mean over a tenth of the training."""
    values = [loss for _, loss in losses]
    window = min(len(values), max(2, len(values) // 10))
    means = [sum(values[n - window : n]) / window for n in range(window, len(values) + 1)]
    last, top = losses[-1][0], max(values)

    def line(points: list[tuple[int, float]]) -> str:
        return " ".join(
            f"{step / last * CHART_WIDTH:.1f},{(1 - loss / top) * CHART_HEIGHT:.1f}" for step, loss in points
        )

    steps = [step for step, _ in losses][window - 1 :]
    words = f"The mean of the first {window} steps is {means[0]:.3f}, that of the last {window} is {means[-1]:.3f}."
    return LossChart(line(list(losses)), line(list(zip(steps, means, strict=True))), top, last, words)
