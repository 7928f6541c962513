"""Many pictures on one sheet, so that a benchmark's pictures can be looked at."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

LINE, GAP = 16, 4  # pixels
PAPER, INK = "white", "black"


def contact_sheet(rows: Mapping[str, Sequence[Image.Image]], columns: int = 16) -> Image.Image:
    """The pictures of each row under its title, at most `columns` beside each other; raises ValueError for none."""
    cells = [picture.size for pictures in rows.values() for picture in pictures]
    if not cells:
        raise ValueError("a sheet of nothing")
    width, height = (max(sizes) + GAP for sizes in zip(*cells, strict=True))
    lines = [-(-len(pictures) // columns) for pictures in rows.values()]
    sheet = Image.new("RGB", (columns * width + GAP, sum(LINE + n * height + GAP for n in lines)), PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for (title, pictures), count in zip(rows.items(), lines, strict=True):
        draw.text((GAP, top + 2), title, fill=INK)
        for n, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + n % columns * width, top + LINE + n // columns * height))
        top += LINE + count * height + GAP
    return sheet


def comparison_sheet(rows: Mapping[str, Sequence[Image.Image]], heads: Sequence[str], columns: int = 14) -> Image.Image:
    """A row for each way to draw and a column for each thing drawn, both labelled; in bands of `columns`."""
    pictures = [picture for row in rows.values() for picture in row]
    width, height = (max(sizes) + GAP for sizes in zip(*(picture.size for picture in pictures), strict=True))
    side = 6 * max(map(len, rows)) + 2 * GAP
    bands = [range(at, min(at + columns, len(heads))) for at in range(0, len(heads), columns)]
    tall = LINE + len(rows) * height + GAP
    sheet = Image.new("RGB", (side + max(map(len, bands)) * width, len(bands) * tall), PAPER)
    draw = ImageDraw.Draw(sheet)
    for top, band in zip(range(0, len(bands) * tall, tall), bands, strict=True):
        for column, n in enumerate(band):
            draw.text((side + column * width, top + 2), heads[n], fill=INK)
        for y, (title, row) in zip(range(top + LINE, top + tall, height), rows.items(), strict=False):
            draw.text((GAP, y + height // 2 - LINE // 2), title, fill=INK)
            for column, n in enumerate(band):
                sheet.paste(row[n], (side + column * width, y))
    return sheet
