"""How numbers are written on pages."""


def figure(value: float) -> str:
    """Two digits behind the point, fewer for what is large."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
