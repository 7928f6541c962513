"""What a picture is asked to be. Torch-free, so that wrong settings are refused before anything heavy is loaded."""

import math
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec

from studio.bases import EMBEDDED, BaseSource, Sizes, source_sizes
from studio.errors import UsageError
from studio.pipelines.schedulers import DEFAULT, SCHEDULERS

SEED_LIMIT = 2**63
LONGER, LARGER = 8, 4  # how many times the native side one side of a picture may have, and both of a square
ALWAYS = 1024  # pixels that a side of any base's pictures may have
ATTENTIONS = ("sdpa", "xformers")


@dataclass(frozen=True)
class GenerateSettings:
    """Settings of one generation. `width` and `height` in pixels, None for the base's native size.

    Picture i of `count` has the seed `seed + i`. `guidance` is the classifier-free scale; up to 1 there is none.
    Raises UsageError for values that cannot be meant.
    """

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int = 25
    guidance: float = 5.0
    scheduler: str = DEFAULT
    seed: int = 0
    count: int = 1
    vae_tiling: bool = False
    offload: bool = False
    attention: str = ATTENTIONS[0]
    compiled: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("width", self.width),
            ("height", self.height),
            ("steps", self.steps),
            ("count", self.count),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}.", "Give a whole number of at least 1.")
        if not math.isfinite(self.guidance) or self.guidance < 0:
            raise UsageError(f"guidance is {self.guidance}.", "Give a number of at least 0; 3 to 8 are usual.")
        if not 0 <= self.seed <= SEED_LIMIT - self.count:
            raise UsageError(f"The seed is {self.seed}.", "Give a whole number from 0 to 2^63 less the count.")
        if self.attention not in ATTENTIONS:
            raise UsageError(f"There is no attention {self.attention!r}.", f"Use one of: {', '.join(ATTENTIONS)}.")
        if self.compiled and (self.offload or self.attention != ATTENTIONS[0]):
            other = "--offload" if self.offload else f"--attention {self.attention}"
            raise UsageError(f"--compile and {other} do not go together.", "Leave out one of them.")
        if self.attention == "xformers" and find_spec("xformers") is None:
            raise UsageError(
                "xformers is not installed.", "Leave out --attention, or: pip install 'concept-studio[gpu]'"
            )
        if self.scheduler not in SCHEDULERS:
            near = get_close_matches(self.scheduler, SCHEDULERS, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise UsageError(
                f"There is no scheduler {self.scheduler!r}.", f"{hint}Use one of: {', '.join(SCHEDULERS)}."
            )

    def size_for(self, sizes: Sizes) -> tuple[int, int]:
        """Width and height in pixels, the base's own where not set; raises UsageError for sizes between its steps, and
        for those that no base draws and no memory holds."""
        size = (self.width or sizes.native[0], self.height or sizes.native[1])
        step = sizes.step
        for name, value in zip(("width", "height"), size, strict=True):
            if value % step:
                below, above = value // step * step, (value // step + 1) * step
                nearest = f"{below} or {above}" if below else str(above)
                raise UsageError(f"The {name} {value} is not a multiple of {step} pixels.", f"Use {nearest}.")
        (width, height), longest = sizes.native, max(LONGER * max(sizes.native), ALWAYS)
        largest = max((LARGER * width, LARGER * height), (ALWAYS, ALWAYS), key=math.prod)
        if max(size) > longest or math.prod(size) > math.prod(largest):
            raise UsageError(
                f"{size[0]} x {size[1]} pixels are far more than the base draws.",
                f"Its own size is {width} x {height}. It takes sides up to {longest} pixels, and no more pixels than"
                f" {largest[0]} x {largest[1]}.",
            )
        return size


def usual_width(source: BaseSource, things: int) -> int | None:
    """The width in pixels on which so many things have room side by side; None for the base's own.

    The embedded base learned three of them on a canvas half as wide again.
    """
    return source_sizes(source).native[0] * 3 // 2 if source.name == EMBEDDED and things > 2 else None


def usual_guidance(source: BaseSource) -> float:
    """The classifier-free scale that suits most pictures of `source`."""
    if source.name == EMBEDDED:
        return 2.5
    return 5.0 if source.family == "sdxl" else 7.5
