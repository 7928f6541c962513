"""Draws picturebook scenes with Pillow, deterministically: the same scene gives the same pixels.

Patterns and blocks lie on lattices of the canvas whose
periods are multiples of 4 px, so that a VAE of factor 4 sees each in one phase only.
"""

import random
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from studio.picturebook import Scene, Subject
from studio.picturebook_shapes import SHAPES, accessory_parts

RGB = {
    "red": (214, 40, 40), "orange": (245, 130, 25), "yellow": (250, 215, 40), "green": (35, 135, 60),
    "blue": (40, 85, 215), "purple": (120, 40, 160), "pink": (245, 135, 190), "white": (248, 248, 250),
    "black": (25, 25, 30), "brown": (120, 72, 36), "grey": (140, 140, 150), "glass": (190, 225, 240),
}  # fmt: skip
GROUND = {
    "paper": (236, 230, 218), "grass": (122, 200, 84), "sky": (136, 200, 250), "sand": (230, 196, 132),
    "night": (20, 20, 58),
}  # fmt: skip
_SCALE = 2  # supersampling


@lru_cache(maxsize=512)
def _pattern(width: int, height: int, pattern: str, first: tuple[int, ...], second: tuple[int, ...]) -> Image.Image:
    """The whole canvas in one pattern; period 16 px at 96 px of height, 8 px at 64."""
    unit = (8 if height >= 96 else 4) * _SCALE
    image = Image.new("RGB", (width, height), first)
    draw = ImageDraw.Draw(image)
    for y in range(0, height, 2 * unit):
        if pattern == "striped":
            draw.rectangle((0, y, width, y + unit - 1), fill=second)
        for x in range(0, width, 2 * unit):
            if pattern == "dotted":
                inset = unit * 0.3
                draw.ellipse((x + inset, y + inset, x + unit * 1.7, y + unit * 1.7), fill=second)
            elif pattern == "checkered":
                draw.rectangle((x, y, x + unit - 1, y + unit - 1), fill=second)
                draw.rectangle((x + unit, y + unit, x + 2 * unit - 1, y + 2 * unit - 1), fill=second)
    return image


@lru_cache(maxsize=8)
def _hatching(width: int, height: int) -> Image.Image:
    """Diagonal lines, 8 px apart."""
    mask = Image.new("L", (width * _SCALE, height * _SCALE))
    draw = ImageDraw.Draw(mask)
    for x in range(-height * _SCALE, width * _SCALE, 8 * _SCALE):
        draw.line((x, height * _SCALE, x + height * _SCALE, 0), fill=190, width=int(1.5 * _SCALE))
    return mask.resize((width, height), Image.Resampling.BOX)


def _draw_subject(
    image: Image.Image, subject: Subject, box: tuple[float, float, float, float], ground: tuple[int, ...], ink: int
) -> None:
    """Draw one subject into `box` (pixels of the supersampled canvas), its parts outlined where `ink` > 0; `ground` is
    the colour seen through its holes."""
    left, top, right, bottom = box
    cx, cy, rx, ry = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    body = RGB[subject.colour]
    dark = tuple(int(c * 0.6) for c in body)
    fills = {"body": body, "dark": dark, "accent": RGB[subject.accent], "ground": ground}
    patterned = _pattern(*image.size, subject.pattern, body, RGB[subject.second])
    draw = ImageDraw.Draw(image)
    mask = Image.new("L", image.size)
    stencil = ImageDraw.Draw(mask)
    parts = SHAPES[subject.kind] + accessory_parts(subject)
    if ink:
        for fill, kind, unit in parts:
            if fill != "black" and fill != "ground":
                _shape(draw, kind, _place(unit, cx, cy, rx, ry), RGB["black"], ink)
    for index, (fill, kind, unit) in enumerate(parts):
        points = _place(unit, cx, cy, rx, ry)
        if fill == "body":
            _shape(stencil, kind, points, 255)
            if index + 1 == len(parts) or parts[index + 1][0] != "body":
                image.paste(patterned, mask=mask)
                stencil.rectangle((0, 0, *image.size), fill=0)
        else:
            _shape(draw, kind, points, fills.get(fill) or RGB[fill])


def _place(unit: tuple[float, ...], cx: float, cy: float, rx: float, ry: float) -> list[float]:
    return [cx + v * rx if i % 2 == 0 else cy + v * ry for i, v in enumerate(unit)]


def _shape(
    draw: ImageDraw.ImageDraw, kind: str, points: list[float], fill: tuple[int, ...] | int, ink: int = 0
) -> None:
    if kind == "oval":
        x0, y0, x1, y1 = points
        draw.ellipse((x0 - ink, y0 - ink, x1 + ink, y1 + ink), fill=fill)
    else:
        draw.polygon(points, fill=fill)
        if ink:
            draw.line([*points, *points[:4]], fill=fill, width=2 * ink, joint="curve")


def _draw_ground(image: Image.Image, background: str, rng: random.Random) -> None:
    width, height = image.size
    draw = ImageDraw.Draw(image)
    s = height / 96
    places = [(rng.random() * width, rng.random() * height) for _ in range(14)]
    if background == "grass":
        for x, y in places:
            draw.line((x, y, x + 2 * s, y - 6 * s), fill=(70, 150, 50), width=max(1, int(2 * s)))
    elif background == "sand":
        for x, y in places:
            draw.ellipse((x, y, x + 3 * s, y + 3 * s), fill=(190, 150, 90))
    elif background == "night":
        for x, y in places:
            draw.ellipse((x, y, x + 3 * s, y + 3 * s), fill=(255, 250, 200))
    elif background == "sky":
        for x, y in ((places[0][0] * 0.5, height * 0.1), (width * 0.6 + places[1][0] * 0.3, height * 0.82)):
            draw.ellipse((x, y, x + 34 * s, y + 14 * s), fill="white")
            draw.ellipse((x + 10 * s, y - 6 * s, x + 26 * s, y + 12 * s), fill="white")


def _watercolor(image: Image.Image, rng: random.Random) -> Image.Image:
    noise = Image.frombytes("L", (8, 8), rng.randbytes(64)).resize(image.size, Image.Resampling.BICUBIC)
    soft = image.filter(ImageFilter.GaussianBlur(2.2 * image.height / 96))
    pale = Image.blend(soft, Image.new("RGB", image.size, "white"), 0.42)
    return Image.composite(pale, soft, noise.point([90 + v * 165 // 255 for v in range(256)]))


def _restyle(image: Image.Image, style: str, rng: random.Random) -> Image.Image:
    if style == "pixel":
        small = image.resize((image.width // 4, image.height // 4), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.NEAREST)
    if style == "watercolor":
        return _watercolor(image, rng)
    if style == "hatched":
        image.paste(RGB["black"], mask=_hatching(*image.size))
    elif style == "sepia":
        return ImageOps.colorize(image.convert("L"), (50, 25, 5), (250, 235, 200))
    elif style in ("blueprint", "neon"):
        return _edges(image, style)
    return image


def _edges(image: Image.Image, style: str) -> Image.Image:
    """Only the contours: white on blue ("blueprint"), or in their own colours on black ("neon")."""
    wide = ImageOps.expand(image, 4).filter(ImageFilter.FIND_EDGES)
    edges = ImageOps.expand(ImageOps.crop(wide, 6), 2).filter(ImageFilter.MaxFilter(3))
    if style == "neon":
        bright = edges.point([min(255, 2 * v) for v in range(256)] * 3)
        return ImageChops.add(bright, Image.new("RGB", image.size, (16, 0, 32)))
    lines = edges.convert("L").point([min(255, 3 * v) for v in range(256)])
    return ImageOps.colorize(lines, (28, 70, 160), (245, 250, 255))


def render(scene: Scene, width: int = 96, height: int = 96) -> Image.Image:
    """The scene as an RGB picture of `width` x `height` px; the same arguments give the same pixels."""
    rng = random.Random(f"draw {scene.seed}")
    shade = rng.uniform(0.96, 1.03)
    colour = tuple(min(255, int(c * shade)) for c in GROUND[scene.background])
    image = Image.new("RGB", (width * _SCALE, height * _SCALE), colour)
    _draw_ground(image, scene.background, rng)
    ink = round(1.3 * _SCALE * height / 96) if scene.style == "outline" else 0
    for subject, (left, top, right, bottom) in zip(scene.subjects, scene.boxes(width / height), strict=True):
        centre, half = (left + right) / 2 * image.width, (bottom - top) / 2 * image.height
        box = (centre - half, top * image.height, centre + half, bottom * image.height)
        _draw_subject(image, subject, box, colour, ink)
    return _restyle(image.resize((width, height), Image.Resampling.BOX), scene.style, rng)
