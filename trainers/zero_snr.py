"""Zero terminal SNR (Lin et al. 2023, arXiv:2305.08891): a schedule whose last timestep is pure noise. No torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from studio.errors import UsageError
from studio.pipelines.schedulers import ZERO_SNR

if TYPE_CHECKING:
    from studio.models import BaseModel
    from studio.trainers.recipe import Recipe

RESCALED: dict[str, Any] = {"rescale_betas_zero_snr": True}


def check_rescalable(config: Mapping[str, Any]) -> None:
    """Raise UsageError where a scheduler of configuration `config` cannot, or need not, be rescaled for training."""
    kind = config.get("prediction_type", "epsilon")
    if kind != "v_prediction":
        raise UsageError(
            f"zero_terminal_snr needs a base with v_prediction, and this one predicts {kind!r}: at the last timestep"
            " the noise is all there is to see, so that nothing could be learned there.",
            "Leave zero_terminal_snr out, or use a base with v_prediction.",
        )
    if config.get("rescale_betas_zero_snr"):
        raise UsageError(
            "The base's own schedule ends in pure noise already; zero_terminal_snr would change nothing.",
            "Leave zero_terminal_snr out.",
        )


@contextmanager
def drawing_as_trained(base: "BaseModel", recipe: "Recipe") -> Iterator[None]:
    """With `recipe.zero_terminal_snr`, `base` draws by Euler's method on its rescaled schedule, from the last timestep
    on, while the block runs."""
    if not recipe.zero_terminal_snr:
        yield
        return
    from diffusers import EulerDiscreteScheduler

    own: Any = base.pipe.scheduler
    base.pipe.scheduler = EulerDiscreteScheduler.from_config(own.config, **ZERO_SNR)
    try:
        yield
    finally:
        base.pipe.scheduler = own
