"""An inspection as one HTML file that needs nothing else: charts inside, no scripts, every text escaped."""

from pathlib import Path

from studio.home import write_atomic
from studio.ui.inspect_words import Inspection, facts, numbers
from studio.ui.report import template_of

BAR_WIDTH, LABEL_WIDTH, ROW_HEIGHT = 420, 240, 24
TOP_LAYERS = 40


def write_page(found: Inspection, path: Path) -> Path:
    """Write the page of `found` to `path`. Raises StudioError where the disk refuses."""
    text = render_page(found)
    return write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))


def render_page(found: Inspection) -> str:
    """The page of `found` as one HTML document."""
    charts = {"Norm of the change by block": found.block_norms}
    if found.intruders is not None:
        charts["Intruder dimensions by block"] = {k: float(n) for k, n in (found.block_intruders or {}).items()}
        most = sorted(found.intruders.items(), key=lambda pair: -pair[1])[:TOP_LAYERS]
        charts["Layers with most intruder dimensions"] = {layer: float(count) for layer, count in most if count}
    sizes = {"bar": BAR_WIDTH, "label": LABEL_WIDTH, "row": ROW_HEIGHT}
    shown = {title: values for title, values in charts.items() if values}
    return template_of("inspect.html", {"numbers": numbers}).render(
        found=found, facts=facts(found), charts=shown, **sizes
    )
