"""What a training takes by default: by family of the base, by what the base says of itself, and by preset."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.bases import FACTS_FILE, BaseSource, source_sizes
from studio.errors import UsageError
from studio.trainers.recipe import ATTENTION

RARE_TOKENS = ("sks", "ohwx", "zwx", "olis", "kuw", "vtw", "pllt", "ukj", "qxr", "bnha", "wqz", "hlky")
BESIDE = (
    "a red {class_word}",
    "a yellow {class_word}",
    "a blue striped {class_word}",
    "a purple house",
    "an orange fish",
    "a green car",
    "a white dog",
    "a pink tree",
)
SCENES = ("at night, flat style", "on grass, outline style", "in the sky, pixel style", "on sand, watercolor style")
PLACES = (
    "on the beach",
    "in the snow",
    "with a city in the background",
    "on a wooden floor",
)  # read if a CLIP is given
PRESETS = ("quick", "normal", "best")
FITTING: dict[int, dict[str, Any]] = {  # by GB of a GPU's memory: docs/training.md has what they are estimated to take
    8: {"gradient_checkpointing": True, "batch_size": 1, "offload": True},
    12: {"gradient_checkpointing": True, "batch_size": 1},
    24: {"gradient_checkpointing": False, "batch_size": 1},
}
_OF_ONE_PICTURE: dict[str, Any] = {
    "targets": ATTENTION,
    "schedule": "constant",
    "warmup_steps": 0,
    "buckets": False,
    "prior_preservation": False,
    "timesteps": "uniform",
    "mix_instance_prompt": False,
    "pair_share": 0.0,
}
_OF_METHOD: dict[tuple[str, bool], dict[str, Any]] = {  # by method, and whether the base is the studio's own
    ("krona", True): {"factors": (4, 4), "learning_rate": 0.012},
    ("krona", False): {"factors": (64, 8), "learning_rate": 1e-3, "schedule": "constant", "gradient_accumulation": 4},
    ("lokr", True): {"decompose_factor": 4, "learning_rate": 0.012},
    ("lokr", False): {"learning_rate": 1e-3},
    ("loha", True): {"rank": 8, "alpha": 8.0, "learning_rate": 0.02},
    ("loha", False): {"rank": 8, "alpha": 8.0, "learning_rate": 1e-3},
    ("oft", True): {"block_size": 16, "learning_rate": 1e-3},
    ("oft", False): {"block_size": 32, "learning_rate": 1e-4},
    ("b-lora", True): _OF_ONE_PICTURE | {"steps": 300, "learning_rate": 4e-3, "batch_size": 2},
    ("b-lora", False): _OF_ONE_PICTURE | {"rank": 64, "alpha": 64.0, "steps": 1000, "learning_rate": 5e-5},
}


@dataclass(frozen=True)
class BaseFacts:
    """What a base tells about itself: blank identifiers, its size in pixels, and what class pictures should show.

    `own` marks the studio's small bases, which were trained with size conditioning equal to the picture's size.
    """

    identifiers: tuple[str, ...]
    native_size: int
    prior_prompts: tuple[str, ...]
    own: bool


def read_facts(source: BaseSource) -> BaseFacts:
    """The facts of `source`: from its `studio_base.json` where it has one, else what is known of its family."""
    file = Path(source.location) / FACTS_FILE
    if file.is_file():
        facts = json.loads(file.read_text(encoding="utf-8"))
        prompts = tuple(facts.get("prior_prompts", ("a {class_word}",)))
        return BaseFacts(tuple(facts["identifiers"]), int(facts["native_size"]), prompts, own=True)
    prompts = ("a {class_word}", "a photo of a {class_word}", "a painting of a {class_word}", "a {class_word} outdoors")
    return BaseFacts(RARE_TOKENS, min(source_sizes(source).native), prompts, own=False)


def free_trigger(facts: BaseFacts, used: set[str]) -> str:
    """The first identifier of the base that no concept of the library uses; raises UsageError where all are taken."""
    for identifier in facts.identifiers:
        if identifier not in used:
            return identifier
    raise UsageError(
        f"All {len(facts.identifiers)} identifiers of this base are in use.",
        "Choose a word of your own with --trigger.",
    )


def defaults(
    source: BaseSource, facts: BaseFacts, preset: str, class_word: str, trigger: str, method: str
) -> dict[str, Any]:
    """The settings of `preset` for this base and method: everything a recipe needs but its name, pictures, class and
    trigger."""
    if preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", f"Take one of {', '.join(PRESETS)}.")
    chosen = _own(preset, class_word) if facts.own else _full(preset, source.family)
    chosen |= _OF_METHOD.get((method, facts.own), {})
    prompts = tuple(prompt.format(class_word=class_word) for prompt in facts.prior_prompts)
    subject = f"a {trigger} {class_word}"
    return chosen | {
        "preset": preset,
        "resolution": facts.native_size,
        "prior_prompts": prompts,
        "sample_prompts": (subject, f"a {class_word}"),
        "score_prompts": tuple(f"{subject} {scene}" for scene in (SCENES if facts.own else PLACES)),
    }


def _own(preset: str, class_word: str) -> dict[str, Any]:
    """For picturebook and its like: minutes on two CPU cores.

    The convolutions are what draws a shape that the base has never seen: without them hats and balloons stay blobs.
    """
    steps = {"quick": 160, "normal": 420, "best": 1200}[preset]
    return {
        "rank": 16,
        "alpha": 16.0,
        "targets": (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
        "steps": steps,
        "timesteps": "logit-normal",
        "learning_rate": 4e-3,
        "word_learning_rate": 1e-3,
        "betas": (0.9, 0.99),
        "mix_instance_prompt": True,
        "prior_target": "base",
        "prior_weight": 3.0,
        "pair_share": 0.0 if class_word == "style" else 0.5,  # a style stands beside nothing
        "pair_prompts": tuple(other.format(class_word=class_word) for other in BESIDE),
        "schedule": "cosine",
        "warmup_steps": 10,
        "batch_size": 3,
        "prior_count": {"quick": 16, "normal": 32, "best": 64}[preset],
        "validate_every": 200 if preset == "best" else 0,
        "sample_every": steps // 2,
        "sample_steps": 12,
        "save_every": 100,
        "guidance": 2.5,
    }


def _full(preset: str, family: str) -> dict[str, Any]:
    """For SD1.5 and SDXL at full size, on a GPU."""
    steps = {"quick": 400, "normal": 800, "best": 1600}[preset]
    return {
        "rank": 32 if preset == "best" else 16,
        "alpha": 32.0 if preset == "best" else 16.0,
        "steps": steps,
        "learning_rate": 1e-4,
        "schedule": "cosine",
        "warmup_steps": steps // 20,
        "batch_size": 1,
        "gradient_checkpointing": True,
        "buckets": True,
        "prior_count": {"quick": 50, "normal": 100, "best": 200}[preset],
        "sample_every": 200,
        "validate_every": 200,
        "sample_steps": 25,
        "save_every": 200,
        "guidance": 5.0 if family == "sdxl" else 7.5,
    }
