"""An inspection as one HTML file that needs nothing else: charts inside, no scripts, every text escaped."""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from studio.home import write_atomic
from studio.ui.inspect_words import Inspection, facts, numbers

BAR_WIDTH, LABEL_WIDTH, ROW_HEIGHT = 420, 240, 24
TOP_LAYERS = 40


def write_page(found: Inspection, path: Path) -> Path:
    """Write the page of `found` to `path`. Raises StudioError where the disk refuses."""
    text = render_page(found)
    return write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))


def render_page(found: Inspection) -> str:
    """The page of `found` as one HTML document."""
    template = (files("studio.assets") / "report" / "inspect.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["numbers"] = numbers
    charts = {"Norm of the change by block": found.block_norms}
    if found.intruders is not None:
        charts["Intruder dimensions by block"] = {k: float(n) for k, n in (found.block_intruders or {}).items()}
        most = sorted(found.intruders.items(), key=lambda pair: -pair[1])[:TOP_LAYERS]
        charts["Layers with most intruder dimensions"] = {layer: float(count) for layer, count in most if count}
    sizes = {"bar": BAR_WIDTH, "label": LABEL_WIDTH, "row": ROW_HEIGHT}
    shown = {title: values for title, values in charts.items() if values}
    return page.from_string(template).render(found=found, facts=facts(found), charts=shown, **sizes)
