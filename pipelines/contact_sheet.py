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
