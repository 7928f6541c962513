"""The sizes at which pictures of any shape are trained: aspect-ratio buckets of about the same area. No torch."""

from collections.abc import Iterable, Sequence

from studio.bases import Sizes

Size = tuple[int, int]  # width, height in pixels
_STEP = 64  # of full-size bases, as kohya's scripts have it
_SMALL = 512  # pixels: bases below it go by their own step


def training_sizes(sizes: Sizes, resolution: int, buckets: bool) -> tuple[Size, ...]:
    """The sizes for training at `resolution` a base of `sizes`: the square and, with `buckets`, the shapes beside it.

    A bucket's sides are multiples of 64 (of a small base's own step), from half the resolution to twice; one of them is
    as long as it can be beside the other with an area of at most resolution squared.
    """
    square = (resolution, resolution)
    if not buckets:
        return (square,)
    step = sizes.step if min(sizes.native) < _SMALL else max(_STEP, sizes.step)
    least, most = -(-resolution // 2 // step) * step, 2 * resolution // step * step
    fitting = ((side, min(most, resolution**2 // side // step * step)) for side in range(least, most + 1, step))
    shapes = {(long, short) for long, short in fitting if short >= least > 0}
    return (square, *sorted((shapes | {(short, long) for long, short in shapes}) - {square}))


def kept_share(width: int, height: int, size: Size) -> float:
    """What remains of a picture that is scaled to cover `size` and cut to it."""
    across, upright = width * size[1], height * size[0]
    return min(across, upright) / max(across, upright)


def nearest_size(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """That of `sizes` of which the aspect ratio is nearest by the ratio of the two: least of the picture is cut away.

    Of several, the larger; then the first.
    """
    return max(sizes, key=lambda size: (kept_share(width, height, size), size[0] * size[1]))


def told_sizes(sizes: Iterable[Size]) -> str:
    """How many pictures have which size, most first: "3 pictures at 1024 x 1024, 2 at 832 x 1216"."""
    listed = list(sizes)
    counts = sorted({size: listed.count(size) for size in listed}.items(), key=lambda one: (-one[1], one[0]))
    (size, count), *others = counts
    first = f"{count} picture{'s' * (count > 1)} at {size[0]} x {size[1]}"
    return ", ".join([first, *(f"{count} at {size[0]} x {size[1]}" for size, count in others)])
