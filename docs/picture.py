"""Draws docs/picturebook.png with the shipped base: twelve captions, two seeds each, none picked: `make picture`."""

from pathlib import Path

from PIL import Image

from studio.models import find_base, load_base
from studio.trainers.picturebook import PREVIEW_PROMPTS, contact_sheet

COLUMNS, SCALE = 6, 2

base = load_base(find_base("picturebook"), "cpu")
size = base.native_size[0]
drawn = contact_sheet(base.pipe, size)  # a row for each seed
rows = len(PREVIEW_PROMPTS) // COLUMNS
sheet = Image.new("RGB", (COLUMNS * size, 2 * rows * size))
for row in range(2 * rows):
    left, top = row // 2 * COLUMNS * size, row % 2 * size
    sheet.paste(drawn.crop((left, top, left + COLUMNS * size, top + size)), (0, row * size))
sheet = sheet.resize((sheet.width * SCALE, sheet.height * SCALE), Image.Resampling.NEAREST)
sheet.save(Path(__file__).with_name("picturebook.png"), optimize=True)
