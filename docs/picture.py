"""Draws the README's pictures, from seeds that nobody picked: `make picture`.

docs/picturebook.png is the shipped base alone: twelve captions, two seeds each. docs/together.png is two concepts in
one picture, added up and composed, below what they were learned from; those that the library lacks are learned.
"""

from pathlib import Path

from PIL import Image

from studio.datasets import sample_folder
from studio.events import silent
from studio.home import Home
from studio.models import BaseModel, find_base, load_base
from studio.pipelines.compose import compose
from studio.pipelines.contact_sheet import comparison_sheet
from studio.pipelines.methods import METHODS
from studio.pipelines.settings import GenerateSettings
from studio.trainers.picturebook_pipeline import PREVIEW_PROMPTS, contact_sheet
from studio.trainers.sample_concepts import learn_sample

HERE = Path(__file__).parent
COLUMNS, SCALE = 6, 2
PAIRS = (("rex", "zara"), ("luna", "dash"), ("bella", "bolt"))
SCENES = ("on grass, outline style", "at night, flat style")
SEED = 9_700_000


def main() -> None:
    """Both."""
    base = load_base(find_base("picturebook"), "cpu")
    alone(base).save(HERE / "picturebook.png", optimize=True)
    together(base, Home.resolve()).save(HERE / "together.png", optimize=True)


def alone(base: BaseModel) -> Image.Image:
    """COLUMNS captions beside each other, their two seeds below each other."""
    size = base.native_size[0]
    drawn = contact_sheet(base.pipe, size)  # a row for each seed
    rows = len(PREVIEW_PROMPTS) // COLUMNS
    sheet = Image.new("RGB", (COLUMNS * size, 2 * rows * size))
    for row in range(2 * rows):
        left, top = row // 2 * COLUMNS * size, row % 2 * size
        sheet.paste(drawn.crop((left, top, left + COLUMNS * size, top + size)), (0, row * size))
    return larger(sheet)


def together(base: BaseModel, home: Home) -> Image.Image:
    """A column for each pair in each scene."""
    names = sorted({name for pair in PAIRS for name in pair})
    concepts = {name: learn_sample(name, "normal", home, silent).concept for name in names}
    rows: dict[str, list[Image.Image]] = {"learned from": [], "added up": [], "composed": []}
    heads: list[str] = []
    for pair in PAIRS:
        chosen = [(concepts[name], 1.0) for name in pair]
        for name, scene in zip(pair, SCENES, strict=True):
            prompt = f"a <{pair[0]}> on the left and a <{pair[1]}> on the right {scene}"
            settings = GenerateSettings(prompt, steps=25, guidance=2.5, seed=SEED)
            rows["learned from"].append(Image.open(sample_folder(name) / "1.png").convert("RGB"))
            for row, method in (("added up", "merge"), ("composed", "auto")):
                rows[row] += compose(base, settings, chosen, METHODS[method].make(), silent)
            heads.append(f"{name}; {' + '.join(pair)}, {scene.partition(',')[0]}")
    return comparison_sheet({title: list(map(larger, row)) for title, row in rows.items()}, heads)


def larger(picture: Image.Image) -> Image.Image:
    """With its pixels kept."""
    return picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
