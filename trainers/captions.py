"""Which words a picture is trained with. No torch."""

import re
from dataclasses import replace

from studio.concepts import PLACEHOLDER
from studio.images import Picture, find_pictures
from studio.trainers.recipe import Recipe

WORDINGS = (
    "{left} on the left and {right} on the right",
    "{right} on the right and {left} on the left",
    "{left} on the left and {right} on the right",
    "{left} and {right}",
)
"""How a prompt says that two things stand side by side: text encoders read what comes first without what follows."""


def pictures_of(recipe: Recipe) -> list[list[Picture]]:
    """The pictures of each concept of `recipe`; in their captions `<name>` is spelled out for each of them.

    Raises UsageError as `find_pictures` does.
    """
    phrases = {one.name: f"{one.trigger} {one.class_word}" for one in recipe.views}

    def spelled(caption: str | None) -> str | None:
        return caption and PLACEHOLDER.sub(lambda found: phrases.get(found[1], found[0]), caption)

    return [
        [replace(picture, caption=spelled(picture.caption)) for picture in find_pictures(view.pictures)]
        for view in recipe.views
    ]


def prompt_for(picture: Picture, recipe: Recipe) -> str:
    """The picture's caption with the trigger in it, or without a caption the instance prompt.

    A caption that lacks the trigger gets it before the first class word that no other concept's trigger stands before,
    or else the whole phrase in front.
    """
    caption = picture.caption
    if caption is None:
        return recipe.instance_prompt
    if _says(caption, recipe.trigger):
        return caption
    phrase = f"{recipe.trigger} {recipe.class_word}"
    free = "".join(rf"(?<!\b{re.escape(other.trigger)} )" for other in recipe.others)
    marked, found = re.subn(rf"{free}\b{re.escape(recipe.class_word)}\b", lambda _: phrase, caption, count=1)
    return marked if found else f"{recipe.instance_prompt}, {caption}"


def prompts_for(picture: Picture, recipe: Recipe) -> list[str]:
    """Its prompt, and with `mix_instance_prompt` the instance prompt too, lest the caption's other words become part
    of what is learned; not where it shows another concept, which would."""
    prompt = prompt_for(picture, recipe)
    mixed = [recipe.instance_prompt] if recipe.mix_instance_prompt and not names_another(prompt, recipe) else []
    return list(dict.fromkeys([prompt, *mixed]))


def names_another(prompt: str, recipe: Recipe) -> bool:
    """Whether another concept of the training is called in `prompt`."""
    return any(_says(prompt, other.trigger) for other in recipe.others)


def without_trigger(prompt: str, recipe: Recipe) -> str:
    """The same words without any trigger: what a class picture shows, so that only the trigger tells the two apart."""
    for one in (recipe, *recipe.others):
        trigger = rf"\b{re.escape(one.trigger)}\b"
        if re.search(rf"\b{re.escape(one.class_word)}\b", prompt):
            prompt = re.sub(rf"{trigger}\s*", "", prompt).strip()
        else:
            prompt = re.sub(trigger, lambda _, word=one.class_word: word, prompt)
    return prompt


def _says(text: str, trigger: str) -> bool:
    return re.search(rf"\b{re.escape(trigger)}\b", text) is not None


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
