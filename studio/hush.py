"""Keep the libraries below quiet where the studio says itself what is going on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import diffusers.utils.logging as diffusers_logging
import transformers.utils.logging as transformers_logging


@contextmanager
def hushed() -> Iterator[None]:
    """Errors only, and no bars, from diffusers and transformers; their settings are restored at the end."""
    levels = [(log, log.get_verbosity()) for log in (diffusers_logging, transformers_logging)]
    bars = [(log, log.is_progress_bar_enabled()) for log in (diffusers_logging, transformers_logging)]
    for log, _ in levels:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of a second adapter, as intended
            yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        for log, shown in bars:
            if shown:
                log.enable_progress_bar()
