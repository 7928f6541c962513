"""What each optimiser asks of a recipe: its package, its usual settings, and what does not go with it. No torch."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from studio.errors import UsageError

if TYPE_CHECKING:
    from studio.trainers.recipe import Recipe

OptimizerName = Literal["adamw", "adamw-8bit", "prodigy", "adafactor", "adamw-schedule-free"]
_PACKAGES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt", "adamw-schedule-free": "schedulefree"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "prodigy": {"learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0},
    "adamw-schedule-free": {"schedule": "constant"},
}
FOREIGN: dict[str, tuple[str, ...]] = {"adafactor": ("betas",)}
"""Settings that say nothing to an optimiser."""


def check_installed(optimizer: str) -> None:
    """Raise UsageError where the package of `optimizer` is missing."""
    package = _PACKAGES.get(optimizer)
    if package and find_spec(package) is None:
        raise UsageError(
            f"The optimizer {optimizer} is in the package {package}, which is not installed.",
            'pip install "concept-studio[optimizers]"',
        )


def usual_settings(optimizer: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """What `optimizer` outweighs of a preset; Prodigy, which knows one rate, takes that of `chosen` for every part."""
    usual = _SETTINGS.get(optimizer, {})
    if optimizer == "prodigy":
        rate = chosen.get("learning_rate", usual["learning_rate"])
        usual = usual | {"word_learning_rate": rate, "text_learning_rate": rate}
    return usual


def numbers_kept(recipe: "Recipe") -> int:
    """How many float32 a checkpoint holds at most for each that is trained."""
    return {"prodigy": 5}.get(recipe.optimizer, 3) + bool(recipe.ema)


def bytes_kept(recipe: "Recipe") -> int:
    """How many bytes of memory the optimiser, and the average, keep for each number that is trained."""
    return {"adamw-8bit": 2, "adafactor": 0, "prodigy": 16}.get(recipe.optimizer, 8) + 4 * bool(recipe.ema)
