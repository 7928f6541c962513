"""An evaluation as one HTML file that needs nothing else: the table, the worst pictures, a sheet of each row."""

from pathlib import Path

from PIL import Image

from studio.home import write_atomic
from studio.pipelines.contact_sheet import contact_sheet
from studio.pipelines.evaluation import Found, Scored
from studio.pipelines.evaluation_table import SENSES, main_score, report_of, scores_of, worst_first
from studio.ui.figures import figure
from studio.ui.report import picture_uri, template_of

WORST = 24  # pictures shown one by one
COLUMNS = 8  # at most, of the sheets
WIDTH = 160  # CSS pixels of each


def write_page(found: Found, path: Path) -> Path:
    """Write the page of `found` to `path`; raises StudioError where the disk refuses."""
    text = render_page(found)
    return write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))


def render_page(found: Found) -> str:
    """The page of `found` as one HTML document."""
    template = template_of("evaluate.html", {"figure": figure, "uri": lambda one: picture_uri(_opened(one))})
    table = report_of(found)["rows"]
    return template.render(
        rows=list(table), table=table, pictures=found.pictures, best=best_rows(found), main=main_score(found),
        senses={name: SENSES[name] for name in scores_of(found)}, worst=worst_first(found)[:WORST], width=WIDTH,
        sheets={row: picture_uri(_sheet(found, row)) for row in table},
    )  # fmt: skip


def best_rows(found: Found) -> dict[str, list[str]]:
    """For each score the rows of the best mean; none where all are alike, or neither way is better."""
    table = report_of(found)["rows"]
    best: dict[str, list[str]] = {}
    for name in scores_of(found):
        means = {row: told[name]["value"] for row, told in table.items() if name in told}
        better = {"higher": max, "lower": min}.get(SENSES[name].better)
        top = [row for row, value in means.items() if better and value == better(means.values())]
        best[name] = top if len(top) < len(means) else []
    return best


def _sheet(found: Found, row: str) -> Image.Image:
    prompts: dict[str, list[Image.Image]] = {}
    for one in found.pictures:
        if one.row == row:
            prompts.setdefault(one.prompt, []).append(_opened(one))
    return contact_sheet(prompts, columns=min(COLUMNS, max(map(len, prompts.values()))))


def _opened(one: Scored) -> Image.Image:
    with Image.open(one.file) as file:
        return file.convert("RGB")
