"""Writes docs/settings.md: every setting of a training, its option, what it may be and what it is by default.

`make tables`. What a setting does is said here, in `MEANINGS`; all else is read off the recipe, the command and the
presets. A setting without a sentence fails a test.
"""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic_core import PydanticUndefined

from studio.bases import ALIASES, EMBEDDED, BaseSource, find_base
from studio.trainers.presets import PRESETS, defaults, read_facts
from studio.trainers.recipe import ATTENTION, Other, Recipe
from studio.ui.cli import app

INTRO = """\
# Every setting of a training

Keys of a recipe file (`--config F.toml`), and the options of `studio train-concept` where there is one. What is written
with slashes differs by preset: quick / normal / best; what differs by method follows its name. *Small bases* are those
with a `studio_base.json`, as picturebook; *full size* are SD1.5 and SDXL. How the settings work together is told in
[training.md](training.md). `make tables` writes this page anew.
"""
MEANINGS: dict[str, dict[str, str]] = {
    "What is learned": {
        "name": "What the concept is called in the library, and in prompts as `<name>`.",
        "pictures": "The folder with the pictures, or one picture; in a recipe file seen from that file's folder.",
        "class_word": "What kind of thing it is, in a word that the base knows.",
        "trigger": "The word that the concept is bound to.",
        "new_word": "Whether the trigger is a new token with rows of its own that are learned too.",
        "word_learning_rate": "The learning rate of those rows.",
        "others": "Further concepts that the same adapter learns, a table `[[others]]` each: `name`, `pictures`,"
        " `class_word`, and where they are not as usual `trigger`, `prior_prompts`, `pair_prompts`, `score_prompts`.",
        "base": "The base: picturebook, sd15, sdxl, a hub id, a folder or a file.",
        "preset": "Which of the defaults below hold.",
    },
    "The adapter": {
        "method": "What is trained: LoRA, Kronecker products (KronA, LoKr), LoHa, rotations (OFT), or two blocks.",
        "rank": "The rank of the LoRA, LoKr or LoHa; KronA and OFT have none.",
        "alpha": "The LoRA acts by alpha / rank.",
        "init": "How a LoRA begins: by chance, by the weights, or by what passes through its layers.",
        "dora": "Gives every layer a magnitude of its own (DoRA).",
        "rank_stabilised": "The LoRA acts by alpha / sqrt(rank) instead.",
        "dropout": "The share of a layer's input that the LoRA does not see in a step.",
        "factors": "KronA: the sides of its first factor.",
        "parameter_count": "KronA: the most parameters it may have, in place of `factors`.",
        "decompose_factor": "LoKr: the side of its first factor at most; without it both are as even as can be.",
        "block_size": "OFT: how many outputs a block turns.",
        "targets": "The layers that are trained, by the ends of their names.",
        "blocks": "Where given, only layers of these blocks are trained.",
        "text_rank": "The rank of a LoRA on the attention of the text encoders; 0 for none.",
        "text_learning_rate": "The learning rate of that LoRA.",
    },
    "Steps": {
        "steps": "How many optimiser steps are taken.",
        "learning_rate": "The learning rate of the adapter in the UNet.",
        "optimizer": "What takes the steps.",
        "up_rate_ratio": "LoRA+: the rate of the up matrices is so many times the others'.",
        "ema": "The decay of an average of the weights that previews and the file take; 0 for none.",
        "schedule": "How the rates fall after the warm-up: not at all, by a half cosine or by a line, to zero.",
        "warmup_steps": "In so many first steps the rates rise to their full size.",
        "batch_size": "Pictures in a micro-batch; as many class pictures come along.",
        "gradient_accumulation": "Micro-batches in a step.",
        "gradient_checkpointing": "Computes activations twice in place of keeping them: slower, in less memory.",
        "offload": "The VAE and the text encoders wait in the computer's memory; GPUs only.",
        "max_grad_norm": "Longer gradients are cut to this norm.",
        "weight_decay": "The decay of the adapter's weights; those of new words have none.",
        "betas": "The decay rates of the moments.",
        "resolution": "The side of the squares that pictures are cut to, in pixels; of buckets the root of their area.",
        "buckets": "Whether pictures keep about their own shape, in buckets of as many pixels.",
        "flip": "Shows pictures mirrored in half of their showings: only for what is the same either way.",
        "seed": "Decides every random choice.",
    },
    "The loss": {
        "timesteps": "How much noise pictures are shown with: any amount alike, or the middle more often.",
        "weighting": "How errors count by the signal-to-noise ratio of their timestep.",
        "snr_gamma": "Min-SNR's gamma.",
        "huber": "Takes the pseudo-Huber loss with this constant in place of squares.",
        "noise_offset": "Moves each channel of the noise as a whole, by a normal number times this.",
        "zero_terminal_snr": "Rescales the schedule of a base with v-prediction, so that it ends in pure noise.",
        "masked": "Learns only where masks or alpha channels say.",
    },
    "Class pictures and pictures of two": {
        "mix_instance_prompt": "Shows a captioned picture under \"a TRIGGER CLASS\" too.",
        "prior_preservation": "Holds the class by class pictures that the base draws.",
        "prior_target": "What is to be predicted on a class picture: that picture, or what the base predicts there.",
        "prior_weight": "How much the class pictures' error counts beside the pictures' error.",
        "prior_count": "How many class pictures are drawn.",
        "prior_prompts": "What they are drawn by.",
        "pair_share": "The share of the pictures that show the concept beside something else; none of a style.",
        "pair_count": "How many such pictures are made.",
        "pair_prompts": "What stands beside it there.",
    },
    "Saving and looking": {
        "held_out": "How many pictures are not trained on, but validated with.",
        "validate_every": "Steps between two measurements of validation loss and pictures; 0 for none.",
        "score_prompts": "What pictures a scorer reads then, two each; on the embedded base that is judge A.",
        "save_every": "Steps between two checkpoints.",
        "keep_checkpoints": "How many of them are kept while training.",
        "sample_every": "Steps between two rounds of preview pictures; 0 for none.",
        "sample_prompts": "What the previews show.",
        "sample_steps": "Denoising steps of a picture that the base draws: previews, class pictures, pictures of two.",
        "guidance": "Classifier-free guidance of those pictures.",
    },
}  # fmt: skip
CHOSEN = {  # what no preset holds: (small bases, full size)
    "name": ("must be given",) * 2,
    "pictures": ("must be given",) * 2,
    "class_word": ("must be given",) * 2,
    "trigger": ("`NAME0`", "the first rare word that no concept has"),
    "new_word": ("yes; b-lora: no", "no"),
    "alpha": ("the rank",) * 2,
    "base": (f"`{EMBEDDED}`", "must be given"),
    "method": ("lora",) * 2,
    "preset": ("normal",) * 2,
    "blocks": ("none; b-lora: the two that the base names", "none; b-lora: those of SDXL"),
    "prior_prompts": ("what the base names", "four about the class"),
    "sample_prompts": ("`a TRIGGER CLASS`, `a CLASS`",) * 2,
    "score_prompts": ("the concept in four scenes", "none"),
    "pair_prompts": ("eight things", "none"),
}
_METHODS = get_args(get_type_hints(Recipe)["method"])
_BOUNDS = (("ge", "≥ {}"), ("gt", "> {}"), ("le", "≤ {}"), ("lt", "< {}"))


def page() -> str:
    """The whole document; raises ValueError that names a setting without a description."""
    told = [name for section in MEANINGS.values() for name in section]
    if missing := [name for name in Recipe.model_fields if name not in told]:
        raise ValueError(f"Recipe.{missing[0]} has no description: add a sentence to MEANINGS in docs/settings.py")
    options, kinds = command_options(), get_type_hints(Recipe, include_extras=True)
    lines = [INTRO]
    for title, section in MEANINGS.items():
        lines += [
            f"\n## {title}\n",
            "| setting | option | takes | small bases | full size | |",
            "|---|---|---|---|---|---|",
        ]
        for name, meaning in section.items():
            small, full = CHOSEN.get(name) or tuple(default(name, own) for own in (True, False))
            cells = (f"`{name}`", options.get(name, ""), takes(kinds[name]), small, full, meaning)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def command_options() -> dict[str, str]:
    """The options of `studio train-concept` by the setting they give."""
    command: Any = typer.main.get_command(app)
    found = {}
    for one in command.commands["train-concept"].params:
        names = [*one.opts, *one.secondary_opts]
        found[one.name] = "PATH" if one.param_type_name == "argument" else ", ".join(f"`{name}`" for name in names)
    return found


def takes(kind: Any) -> str:
    """What a setting of this annotation may be, in words."""
    if get_origin(kind) in (Union, UnionType):
        return takes(get_args(kind)[0])
    if get_origin(kind) is Annotated:
        inner, *rest = get_args(kind)
        bounds = _bounds(rest)
        return takes(inner) + (f" {bounds}" if bounds else "")
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        if first is Other:
            return "tables"
        return "texts" if rest == [...] else f"two: {takes(first)}"
    words = {str: "text", int: "whole number", float: "number", bool: "yes or no", Path: "path"}
    return words[kind]


def _bounds(extras: list[Any]) -> str:
    limits = [one for extra in extras for one in getattr(extra, "metadata", [])]
    found = [words.format(shown(getattr(one, key))) for key, words in _BOUNDS for one in limits if hasattr(one, key)]
    return ", ".join(found).replace(str(2**63), "2^63")


def default(name: str, own: bool) -> str:
    """The default of a setting: by preset where it differs, then by family and by method where those do."""
    families = [find_base(EMBEDDED)] if own else [_full_size(kind) for kind in ("sd15", "sdxl")]
    usual = _by_preset(name, families[0], "lora")
    others = [("SDXL", _by_preset(name, source, "lora")) for source in families[1:]]
    others += [(method, _by_preset(name, families[-1], method)) for method in _METHODS if method != "lora"]
    return "; ".join([usual, *_different(usual, others)])


def _different(usual: str, others: list[tuple[str, str]]) -> Iterator[str]:
    for who, value in others:
        if value != usual and not (who in _METHODS and value == dict(others).get("SDXL")):
            yield f"{who}: {value}"


def _full_size(kind: Any) -> BaseSource:
    return BaseSource(kind, ALIASES[kind], "hub", kind)


def _by_preset(name: str, source: BaseSource, method: str) -> str:
    own = Recipe.model_fields[name].default
    values = []
    for preset in PRESETS:
        value = defaults(source, read_facts(source), preset, "CLASS", "TRIGGER", method).get(name, own)
        values.append("" if value is PydanticUndefined else shown(value))
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def shown(value: Any) -> str:
    """A value as a reader says it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == ():
        return "none"
    if value == ATTENTION:
        return "the attention"
    if isinstance(value, tuple):
        return ", ".join(shown(one) for one in value)
    return str(value) if isinstance(value, str | int) else f"{value:g}"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page(), encoding="utf-8")
