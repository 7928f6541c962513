"""Which words a picture is trained with. No torch."""

import re

from studio.images import Picture
from studio.trainers.recipe import Recipe

WORDINGS = (
    "{left} on the left and {right} on the right",
    "{right} on the right and {left} on the left",
    "{left} on the left and {right} on the right",
    "{left} and {right}",
)
"""How a prompt says that two things stand side by side: text encoders read what comes first without what follows."""


def prompt_for(picture: Picture, recipe: Recipe) -> str:
    """The picture's caption with the trigger in it, or without a caption the instance prompt.

    A caption that lacks the trigger gets it before the first class word, or else the whole phrase in front.
    """
    caption = picture.caption
    if caption is None:
        return recipe.instance_prompt
    if re.search(rf"\b{re.escape(recipe.trigger)}\b", caption):
        return caption
    phrase = f"{recipe.trigger} {recipe.class_word}"
    marked, found = re.subn(rf"\b{re.escape(recipe.class_word)}\b", lambda _: phrase, caption, count=1)
    return marked if found else f"{recipe.instance_prompt}, {caption}"


def prompts_for(picture: Picture, recipe: Recipe) -> list[str]:
    """Its prompt, and with `mix_instance_prompt` the instance prompt too, lest the caption's other words become part
    of what is learned."""
    mixed = [recipe.instance_prompt] if recipe.mix_instance_prompt else []
    return list(dict.fromkeys([prompt_for(picture, recipe), *mixed]))


def without_trigger(prompt: str, recipe: Recipe) -> str:
    """The same words without the trigger: what a class picture shows, so that only the trigger tells the two apart."""
    trigger = rf"\b{re.escape(recipe.trigger)}\b"
    if re.search(rf"\b{re.escape(recipe.class_word)}\b", prompt):
        return re.sub(rf"{trigger}\s*", "", prompt).strip()
    return re.sub(trigger, lambda _: recipe.class_word, prompt)


def beside(prompt: str, recipe: Recipe, other: str, right: bool, wording: int = 0) -> str:
    """`prompt` with `other` standing on the other side of the concept, which is on the left, or on the right, in one of
    WORDINGS.

    Where the prompt does not speak of the concept by trigger and class word, the instance prompt stands for it.
    """
    phrase = rf"(?:\b(?:an?|the) )?\b{re.escape(recipe.trigger)} {re.escape(recipe.class_word)}\b"
    found = re.search(phrase, prompt)
    before, words, after = ("", recipe.instance_prompt, "")
    if found:
        before, words, after = prompt[: found.start()], found[0], prompt[found.end() :]
    left, at_right = (other, words) if right else (words, other)
    placed = WORDINGS[wording % len(WORDINGS)].format(left=left, right=at_right)
    return f"{before}{placed}{after}"
