"""Draws picturebook scenes with Pillow, deterministically: the same scene gives the same pixels.

Shapes live in a unit square from -1 to 1, y down. Patterns and blocks lie on lattices of the canvas whose
periods are multiples of 4 px, so that a VAE of factor 4 sees each in one phase only.
"""

import math
import random
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from studio.picturebook import Scene, Subject

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

Part = tuple[str, str, tuple[float, ...]]  # (fill, "oval" | "polygon", coordinates)


def _star() -> tuple[float, ...]:
    radii = [(1.0 if i % 2 == 0 else 0.45, math.pi * (i / 5 - 0.5)) for i in range(10)]
    return tuple(v for r, a in radii for v in (r * math.cos(a), r * math.sin(a) + 0.05))


def _heart() -> tuple[float, ...]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return tuple(
        v
        for a in angles
        for v in (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16.5 - 0.05,
        )
    )


def _box(left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    return (left, top, right, top, right, bottom, left, bottom)


SHAPES: dict[str, tuple[Part, ...]] = {
    "cat": (
        ("body", "polygon", (0.42, 0.75, 0.92, 0.55, 0.82, -0.05, 0.98, -0.1, 1.0, 0.7, 0.5, 1.0)),
        ("body", "oval", (-0.62, -0.1, 0.62, 1.0)),
        ("body", "polygon", (-0.68, -0.3, -0.6, -1.0, -0.12, -0.72)),
        ("body", "polygon", (0.68, -0.3, 0.6, -1.0, 0.12, -0.72)),
        ("body", "oval", (-0.7, -0.85, 0.7, 0.2)),
        ("black", "oval", (-0.42, -0.48, -0.18, -0.16)),
        ("black", "oval", (0.18, -0.48, 0.42, -0.16)),
        ("pink", "polygon", (-0.12, -0.12, 0.12, -0.12, 0.0, 0.04)),
    ),
    "dog": (
        ("body", "polygon", (-0.75, -0.02, -1.0, -0.62, -0.84, -0.68, -0.55, 0.0)),
        ("body", "polygon", _box(-0.75, 0.3, -0.47, 1.0)),
        ("body", "polygon", _box(0.17, 0.3, 0.45, 1.0)),
        ("body", "oval", (-0.85, -0.18, 0.55, 0.6)),
        ("body", "oval", (0.0, -0.9, 0.85, 0.1)),
        ("body", "oval", (0.5, -0.45, 1.0, 0.0)),
        ("dark", "oval", (0.0, -0.85, 0.32, 0.05)),
        ("black", "oval", (0.46, -0.62, 0.64, -0.42)),
        ("black", "oval", (0.84, -0.4, 1.02, -0.2)),
    ),
    "fish": (
        ("body", "polygon", (-0.45, 0.0, -1.0, -0.6, -0.85, 0.0, -1.0, 0.6)),
        ("dark", "polygon", (-0.2, -0.45, 0.1, -0.85, 0.4, -0.45)),
        ("body", "oval", (-0.65, -0.58, 1.0, 0.58)),
        ("white", "oval", (0.48, -0.28, 0.8, 0.04)),
        ("black", "oval", (0.58, -0.2, 0.76, -0.02)),
    ),
    "car": (
        ("body", "polygon", (-0.62, -0.05, -0.36, -0.62, 0.34, -0.62, 0.62, -0.05)),
        ("glass", "polygon", (-0.44, -0.08, -0.27, -0.46, -0.05, -0.46, -0.05, -0.08)),
        ("glass", "polygon", (0.07, -0.08, 0.07, -0.46, 0.26, -0.46, 0.44, -0.08)),
        ("body", "polygon", (-1.0, 0.05, -0.9, -0.08, 0.9, -0.08, 1.0, 0.1, 1.0, 0.5, -1.0, 0.5)),
        ("black", "oval", (-0.75, 0.22, -0.25, 0.72)),
        ("black", "oval", (0.25, 0.22, 0.75, 0.72)),
        ("grey", "oval", (-0.6, 0.37, -0.4, 0.57)),
        ("grey", "oval", (0.4, 0.37, 0.6, 0.57)),
    ),
    "house": (
        ("body", "polygon", _box(-0.72, -0.2, 0.72, 0.95)),
        ("dark", "polygon", (-0.98, -0.15, 0.0, -0.98, 0.98, -0.15)),
        ("brown", "polygon", _box(-0.2, 0.38, 0.18, 0.95)),
        ("glass", "polygon", _box(0.32, 0.08, 0.6, 0.38)),
        ("glass", "polygon", _box(-0.6, 0.08, -0.32, 0.38)),
    ),
    "tree": (
        ("brown", "polygon", (-0.16, 0.2, 0.16, 0.2, 0.22, 1.0, -0.22, 1.0)),
        ("body", "oval", (-0.95, -0.45, 0.1, 0.45)),
        ("body", "oval", (-0.1, -0.45, 0.95, 0.45)),
        ("body", "oval", (-0.6, -1.0, 0.6, 0.15)),
    ),
    "star": (("body", "polygon", _star()),),
    "heart": (("body", "polygon", _heart()),),
    "mug": (
        ("dark", "oval", (0.3, -0.4, 1.0, 0.5)),
        ("ground", "oval", (0.48, -0.2, 0.82, 0.3)),
        ("body", "polygon", (-0.8, -0.62, 0.58, -0.62, 0.5, 0.85, -0.72, 0.85)),
        ("dark", "oval", (-0.8, -0.82, 0.58, -0.42)),
    ),
    "robot": (
        ("grey", "polygon", _box(-0.06, -1.0, 0.06, -0.7)),
        ("grey", "polygon", _box(-0.42, 0.6, -0.14, 1.0)),
        ("grey", "polygon", _box(0.14, 0.6, 0.42, 1.0)),
        ("grey", "polygon", _box(-0.9, 0.0, -0.55, 0.24)),
        ("grey", "polygon", _box(0.55, 0.0, 0.9, 0.24)),
        ("body", "polygon", _box(-0.58, -0.08, 0.58, 0.68)),
        ("body", "polygon", _box(-0.5, -0.82, 0.5, -0.16)),
        ("white", "polygon", _box(-0.36, -0.64, -0.08, -0.38)),
        ("white", "polygon", _box(0.08, -0.64, 0.36, -0.38)),
        ("black", "polygon", _box(-0.26, -0.56, -0.14, -0.42)),
        ("black", "polygon", _box(0.14, -0.56, 0.26, -0.42)),
    ),
}

# where accessories go: top of the head (x, y), neck (x, y, half width), and where a balloon is held (x, y)
ANCHORS: dict[str, tuple[tuple[float, float], tuple[float, float, float], tuple[float, float]]] = {
    "cat": ((0.0, -0.78), (0.0, 0.14, 0.6), (-0.6, 0.3)),
    "dog": ((0.4, -0.82), (0.25, 0.08, 0.45), (-0.7, 0.0)),
    "fish": ((0.3, -0.6), (0.2, 0.0, 0.2), (-0.5, -0.1)),
    "car": ((0.0, -0.6), (0.0, 0.0, 0.8), (-0.85, 0.0)),
    "house": ((0.0, -0.85), (0.0, -0.1, 0.72), (-0.8, -0.2)),
    "tree": ((0.0, -0.92), (0.0, 0.4, 0.4), (-0.7, 0.0)),
    "star": ((0.0, -0.75), (0.0, 0.0, 0.5), (-0.8, -0.2)),
    "heart": ((0.0, -0.6), (0.0, 0.0, 0.8), (-0.8, -0.3)),
    "mug": ((-0.1, -0.68), (-0.1, 0.1, 0.68), (-0.75, -0.2)),
    "robot": ((0.0, -0.8), (0.0, -0.12, 0.56), (-0.8, 0.1)),
}


def accessory_parts(subject: Subject) -> tuple[Part, ...]:
    """The accessory's shapes, in the subject's unit square, filled with its accent colour."""
    (tx, ty), (nx, ny, width), (hx, hy) = ANCHORS[subject.kind]
    match subject.accessory:
        case "hat":
            return (
                ("accent", "polygon", _box(tx - 0.5, ty - 0.1, tx + 0.5, ty + 0.06)),
                ("accent", "polygon", _box(tx - 0.3, ty - 0.55, tx + 0.3, ty)),
            )
        case "crown":
            spikes = ((-0.42, 0.05), (-0.48, -0.5), (-0.2, -0.2), (0.0, -0.55), (0.2, -0.2), (0.48, -0.5), (0.42, 0.05))
            return (("accent", "polygon", tuple(v for x, y in spikes for v in (tx + x, ty + y))),)
        case "scarf":
            return (
                ("accent", "polygon", _box(nx - width, ny - 0.13, nx + width, ny + 0.13)),
                ("accent", "polygon", _box(nx + width * 0.3, ny, nx + width * 0.3 + 0.26, ny + 0.6)),
            )
        case "balloon":
            return (
                ("black", "polygon", (hx - 0.02, hy, hx + 0.04, hy, hx - 0.08, -0.6, hx - 0.14, -0.6)),
                ("accent", "oval", (hx - 0.42, -1.25, hx + 0.2, -0.55)),
            )
    return ()


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


def _draw_subject(image: Image.Image, subject: Subject, box: tuple[float, float, float, float], ink: int) -> None:
    """Draw one subject into `box` (pixels of the supersampled canvas), its parts outlined where `ink` > 0."""
    left, top, right, bottom = box
    cx, cy, rx, ry = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    body = RGB[subject.colour]
    fills = {"body": body, "dark": tuple(int(c * 0.6) for c in body), "accent": RGB[subject.accent]}
    fills["ground"] = image.getpixel((int(min(max(cx, 0), image.width - 1)), 2))
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
    for subject, (left, top, right, bottom) in zip(scene.subjects, scene.boxes(), strict=True):
        centre, half = (left + right) / 2 * image.width, (bottom - top) / 2 * image.height
        box = (centre - half, top * image.height, centre + half, bottom * image.height)
        _draw_subject(image, subject, box, ink)
    return _restyle(image.resize((width, height), Image.Resampling.BOX), scene.style, rng)
