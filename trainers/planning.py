"""From what a user says to a complete recipe: preset, then recipe file, then command line. No torch."""

from math import inf
from pathlib import Path
from typing import Any

from studio.bases import EMBEDDED, find_base, role_blocks, scheduler_config
from studio.errors import UsageError
from studio.home import Home
from studio.library import Library
from studio.trainers.optimizer_choice import FOREIGN, check_installed, usual_settings
from studio.trainers.presets import FITTING, BaseFacts, defaults, free_trigger, read_facts
from studio.trainers.recipe import Recipe, build_recipe, read_toml
from studio.trainers.workplace import RECIPE_FILE, check_start, workplace_of
from studio.trainers.zero_snr import check_rescalable

_NEEDED = {
    "pictures": "Give the folder with the pictures: studio train-concept FOLDER --name NAME --class WORD",
    "name": "Give the concept a name: --name milo",
    "class_word": "Say what kind of thing it is, in a word the base knows: --class cat",
}
_KRONA = ("factors", "parameter_count")
_TEXT = ("text_rank", "text_learning_rate")
_PLUS = ("up_rate_ratio",)
_LOKR = ("decompose_factor",)
_OFT = ("block_size",)
_LORA = ("dora", "rank_stabilised", "dropout", "init")
_RANK = ("rank", "alpha")
_FOREIGN = {  # settings that say nothing to a method
    "lora": _KRONA + _LOKR + _OFT,
    "b-lora": _KRONA + _LOKR + _OFT + _TEXT + ("others",),
    "krona": _RANK + _LORA + _LOKR + _OFT + _TEXT + _PLUS,
    "lokr": _LORA + _KRONA + _OFT + _TEXT + _PLUS,
    "loha": _LORA + _KRONA + _LOKR + _OFT + _TEXT + _PLUS,
    "oft": _RANK + _LORA + _KRONA + _LOKR + _TEXT + _PLUS,
}


def plan_recipe(given: dict[str, Any], config: Path | None, home: Home, vram: int | None = None) -> Recipe:
    """The recipe for the settings `given` and those of the file `config`, which weigh less.

    The rest comes from the preset for the base, and from what fits into `vram` GB of a GPU's memory. Raises UsageError
    for what is missing, unknown or out of range.
    """
    chosen = (read_toml(config) if config else {}) | given
    for key, remedy in _NEEDED.items():
        if key not in chosen:
            verb = "are" if key == "pictures" else "is"
            raise UsageError(f"The {key.replace('_', ' ')} {verb} missing.", remedy)
    base = chosen.get("base", EMBEDDED)
    source = find_base(base)
    facts = read_facts(source)
    method = chosen.get("method", "lora")
    new_word = chosen.get(
        "new_word", facts.own and method != "b-lora" and chosen.get("trigger") not in facts.identifiers
    )
    others = _tables(chosen.get("others", ()))
    triggers = _triggers([chosen, *others], None if new_word else facts, home)
    trigger = triggers[0]
    preset = defaults(source, facts, chosen.get("preset", "normal"), chosen["class_word"], trigger, method)
    if others:
        for other, word in zip(others, triggers[1:], strict=True):
            usual = defaults(source, facts, preset["preset"], other["class_word"], word, method)
            preset["sample_prompts"] += usual["sample_prompts"]
            other |= _usual_of_other(usual, word) | other
            other |= _lasting(other)
        subjects = zip(triggers, [chosen, *others], strict=True)
        together = " and ".join(f"a {word} {one['class_word']}" for word, one in subjects)
        preset["sample_prompts"] = tuple(dict.fromkeys([*preset["sample_prompts"], together]))
        chosen["others"] = others
    optimizer = chosen.get("optimizer", "adamw")
    preset |= usual_settings(optimizer, chosen)
    _refuse_foreign("method", method, _FOREIGN, given, chosen, preset)
    _refuse_foreign("optimizer", optimizer, FOREIGN, given, chosen, preset)
    if vram is not None:
        preset |= _fitting(vram, facts.own)
    if method == "b-lora":
        preset["blocks"] = tuple(role_blocks(source).values())
    if "parameter_count" in chosen and "factors" not in chosen:
        preset.pop("factors", None)
    if (steps := _positive(chosen.get("steps"))) is not None:
        preset["warmup_steps"] = min(preset["warmup_steps"], int(steps) // 10)  # lest a short training ends in it
    if (rank := _positive(chosen.get("rank"))) is not None:
        preset["alpha"] = rank  # the scale alpha / rank stays what the preset was tuned for
    words, lasting = {"trigger": trigger, "new_word": new_word}, _lasting(chosen | {"base": base})
    recipe = build_recipe([preset, words, chosen, lasting])
    check_installed(recipe.optimizer)
    if recipe.zero_terminal_snr:
        check_rescalable(scheduler_config(source))
    return recipe


def _positive(given: Any) -> float | None:
    """The number that a setting will be read as; None for what is refused later."""
    try:
        number = float(given)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < inf else None


def _refuse_foreign(
    option: str,
    value: str,
    foreign: dict[str, tuple[str, ...]],
    given: dict[str, Any],
    chosen: dict[str, Any],
    preset: dict[str, Any],
) -> None:
    """Raise UsageError for a setting that says nothing to `value`; a file may have it as it would be anyway, which is
    how finished recipes are written."""
    usual = {key: field.default for key, field in Recipe.model_fields.items()} | preset
    for key in foreign.get(value, ()):
        found = chosen.get(key, usual[key])
        if key in given or (tuple(found) if isinstance(found, list) else found) != usual[key]:
            raise UsageError(
                f"{key} says nothing to the {option} {value}.", f"Leave it out, or choose another --{option}."
            )


def _fitting(vram: int, own: bool) -> dict[str, Any]:
    if own:
        raise UsageError("--vram is for bases of full size; this one takes less than 1 GB.", "Leave it out.")
    sizes = [size for size in FITTING if size <= vram]
    if not sizes:
        raise UsageError(f"--vram is {vram}.", f"From {min(FITTING)} GB on there are settings for it.")
    return FITTING[max(sizes)]


def _lasting(chosen: dict[str, Any]) -> dict[str, Any]:
    """The pictures and the base of `chosen`, if it says any, as they hold from every working directory."""
    found: dict[str, Any] = {}
    if "pictures" in chosen:
        found["pictures"] = Path(chosen["pictures"]).expanduser().absolute()
    if "base" in chosen:
        found["base"] = find_base(chosen["base"]).lasting
    return found


def resumed_recipe(given: dict[str, Any], config: Path | None, home: Home) -> Recipe:
    """The recipe of the interrupted training that `given` or `config` names, with what they change in it."""
    chosen = (read_toml(config) if config else {}) | given
    if "name" not in chosen:
        raise UsageError("The name is missing.", "Say which training goes on: --name milo --resume")
    check_start(home, [chosen["name"]], resume=True, overwrite=True)
    begun = read_toml(workplace_of(home, chosen["name"]).folder / RECIPE_FILE)
    if "others" in chosen:  # what is not said of them is as it was
        known = {one["name"]: one for one in begun.get("others", ())}
        chosen["others"] = [known.get(one["name"], {}) | one | _lasting(one) for one in _tables(chosen["others"])]
    return build_recipe([begun, chosen, _lasting(chosen)])


def _tables(others: Any) -> list[dict[str, Any]]:
    """The further concepts as they were given; raises UsageError where one lacks what only the user knows."""
    if not isinstance(others, list | tuple) or not all(isinstance(one, dict) for one in others):
        raise UsageError(f"others is {others!r}.", "Write a table [[others]] for each further concept of the training.")
    for number, one in enumerate(others, 1):
        if missing := [key for key in _NEEDED if not one.get(key)]:
            raise UsageError(
                f"Table {number} of others has no {missing[0]}.", f"It needs {', '.join(_NEEDED)}; as in --with."
            )
    return [dict(one) for one in others]


def _triggers(concepts: list[dict[str, Any]], known: BaseFacts | None, home: Home) -> list[str]:
    """The word of each concept: the one given, else a new one, or the next free one of those that the base knows."""
    if known is None:
        return [one.get("trigger") or f"{one['name']}0" for one in concepts]  # as no word of a base is written
    names = [one["name"] for one in concepts]
    used = {concept.trigger for concept in Library(home).concepts() if concept.name not in names}
    used |= {one["trigger"] for one in concepts if one.get("trigger")}
    chosen: list[str] = []
    for one in concepts:
        chosen.append(one.get("trigger") or free_trigger(known, used | set(chosen)))
    return chosen


def _usual_of_other(usual: dict[str, Any], trigger: str) -> dict[str, Any]:
    """What a further concept takes of the settings that are usual for its class."""
    kept = {key: usual[key] for key in ("prior_prompts", "pair_prompts", "score_prompts") if key in usual}
    if not usual.get("pair_share"):
        kept.pop("pair_prompts", None)
    return kept | {"trigger": trigger}
