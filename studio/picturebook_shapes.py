"""The shapes of the picturebook world: ten classes and what they wear, in a unit square from -1 to 1, y down."""

import math

from studio.picturebook import Subject

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
    return _trimming(subject)


def _trimming(subject: Subject) -> tuple[Part, ...]:
    (tx, ty), (nx, ny, width), (hx, hy) = ANCHORS[subject.kind]
    match subject.accessory:
        case "flag":
            return (
                ("black", "polygon", _box(hx - 0.03, -1.2, hx + 0.03, hy)),
                ("accent", "polygon", (hx - 0.03, -1.2, hx - 0.55, -0.95, hx - 0.03, -0.7)),
            )
        case "kite":
            return (
                ("black", "polygon", (hx - 0.03, hy, hx + 0.03, hy, hx - 0.07, -0.6, hx - 0.13, -0.6)),
                ("accent", "polygon", (hx - 0.1, -1.25, hx + 0.2, -0.95, hx - 0.1, -0.5, hx - 0.4, -0.95)),
            )
        case "bow":
            return (
                ("accent", "polygon", (tx, ty - 0.15, tx - 0.5, ty - 0.45, tx - 0.5, ty + 0.15)),
                ("accent", "polygon", (tx, ty - 0.15, tx + 0.5, ty - 0.45, tx + 0.5, ty + 0.15)),
                ("accent", "oval", (tx - 0.14, ty - 0.3, tx + 0.14, ty)),
            )
        case "ring":
            return (
                ("accent", "oval", (tx - 0.5, ty - 0.58, tx + 0.5, ty - 0.14)),
                ("ground", "oval", (tx - 0.32, ty - 0.46, tx + 0.32, ty - 0.26)),
            )
        case "horns":
            return (
                ("accent", "polygon", (tx - 0.5, ty + 0.1, tx - 0.45, ty - 0.5, tx - 0.12, ty)),
                ("accent", "polygon", (tx + 0.5, ty + 0.1, tx + 0.45, ty - 0.5, tx + 0.12, ty)),
            )
        case "comb":
            return (
                ("accent", "oval", (tx - 0.48, ty - 0.3, tx - 0.08, ty + 0.12)),
                ("accent", "oval", (tx + 0.08, ty - 0.3, tx + 0.48, ty + 0.12)),
                ("accent", "oval", (tx - 0.22, ty - 0.48, tx + 0.22, ty + 0.06)),
            )
        case "bib":
            half = max(0.3, width * 0.6)
            return (("accent", "oval", (nx - half, ny - 0.08, nx + half, ny + 0.5)),)
        case "belt":
            return (
                ("accent", "polygon", _box(nx - width, ny + 0.24, nx + width, ny + 0.48)),
                ("grey", "polygon", _box(nx - 0.12, ny + 0.26, nx + 0.12, ny + 0.46)),
            )
    return ()
