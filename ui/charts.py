"""The loss of a training as lines of an SVG: at most some hundred points, raw and smoothed, and in words."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 150
MOST_POINTS = 500
_OUTLIERS = 0.02  # of all losses, which may lie above the picture
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Chart:
    """Polylines in a box of WIDTH x HEIGHT, ticks and measured points as mappings, and the same in words."""

    raw: str
    smooth: str
    ticks: tuple[dict[str, object], ...]
    measured: tuple[dict[str, object], ...]
    first: int
    last: int
    words: str


def chart_of(losses: Points, measured: Points = (), smoothing: float = 0.9) -> Chart:
    """The chart of (step, loss), `smoothing` being the share of the running mean that stays at each step."""
    smooth, mean = [], losses[0][1]
    for step, loss in losses:
        mean = smoothing * mean + (1 - smoothing) * loss
        smooth.append((step, mean))
    first, last = losses[0][0], losses[-1][0]
    ordered = sorted(loss for _, loss in losses)
    top = max(ordered[int((len(ordered) - 1) * (1 - _OUTLIERS))], *(loss for _, loss in measured), 1e-9) * 1.05

    def place(step: float, loss: float) -> tuple[float, float]:
        x = (step - first) / max(last - first, 1) * WIDTH
        return round(x, 1), round((1 - min(loss / top, 1.0)) * HEIGHT, 1)

    def line(points: Points) -> str:
        return " ".join("{},{}".format(*place(*point)) for point in points)

    ticks = tuple({"y": round((1 - part) * HEIGHT, 1), "text": f"{part * top:.3g}"} for part in (0.0, 0.5, 1.0))
    dots = []
    for step, loss in measured:
        if first <= step <= last:
            x, y = place(step, loss)
            dots.append({"x": x, "y": y, "text": f"validation loss {loss:.4f} at step {step}"})
    words = f"{smooth[0][1]:.3f} at step {first}, {smooth[-1][1]:.3f} at step {last}, smoothed"
    return Chart(line(thinned(losses)), line(thinned(smooth)), ticks, tuple(dots), first, last, words)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most about `most` of `points`: of equal stretches the means."""
    if len(points) <= most:
        return points
    size = -(-len(points) // most)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]
