"""Which words a picture is trained with. No torch."""

import re
from dataclasses import replace

from studio.concepts import PLACEHOLDER, whole_word
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

    The trigger is written as the recipe has it. A caption that lacks it gets it before the first class word that no
    other concept's trigger stands before, or else the whole phrase in front.
    """
    caption = picture.caption
    if caption is None:
        return recipe.instance_prompt
    trigger = whole_word(recipe.trigger)
    if re.search(trigger, caption, re.IGNORECASE):
        return re.sub(trigger, lambda _: recipe.trigger, caption, flags=re.IGNORECASE)
    phrase = f"{recipe.trigger} {recipe.class_word}"
    free = "".join(rf"(?<!{whole_word(other.trigger)} )" for other in recipe.others)
    own = f"{free}{whole_word(recipe.class_word)}"
    marked, found = re.subn(own, lambda _: phrase, caption, count=1, flags=re.IGNORECASE)
    return marked if found else f"{recipe.instance_prompt}, {caption}"


def prompts_for(picture: Picture, recipe: Recipe) -> list[str]:
    """Its prompt, and with `mix_instance_prompt` the instance prompt too, lest the caption's other words become part
    of what is learned; not where it shows another concept, which would."""
    prompt = prompt_for(picture, recipe)
    mixed = [recipe.instance_prompt] if recipe.mix_instance_prompt and not names_another(prompt, recipe) else []
    return list(dict.fromkeys([prompt, *mixed]))


def names_another(prompt: str, recipe: Recipe) -> bool:
    """Whether another concept of the training is called in `prompt`."""
    return any(re.search(whole_word(other.trigger), prompt, re.IGNORECASE) for other in recipe.others)


def without_trigger(prompt: str, recipe: Recipe) -> str:
    """The same words without any trigger: what a class picture shows, so that only the trigger tells the two apart."""
    for one in (recipe, *recipe.others):
        trigger = whole_word(one.trigger)
        if re.search(whole_word(one.class_word), prompt, re.IGNORECASE):
            prompt = re.sub(rf"{trigger}\s*", "", prompt, flags=re.IGNORECASE).strip()
        else:
            prompt = re.sub(trigger, lambda _, word=one.class_word: word, prompt, flags=re.IGNORECASE)
    return prompt


def beside(prompt: str, recipe: Recipe, other: str, right: bool, wording: int = 0) -> str:
    """`prompt` with `other` standing on the other side of the concept, which is on the left, or on the right, in one of
    WORDINGS.

    Where the prompt does not speak of the concept by trigger and class word, the instance prompt stands for it.
    """
    phrase = rf"(?:\b(?:an?|the) )?{whole_word(f'{recipe.trigger} {recipe.class_word}')}"
    found = re.search(phrase, prompt, re.IGNORECASE)
    before, words, after = ("", recipe.instance_prompt, "")
    if found:
        before, words, after = prompt[: found.start()], found[0], prompt[found.end() :]
    left, at_right = (other, words) if right else (words, other)
    placed = WORDINGS[wording % len(WORDINGS)].format(left=left, right=at_right)
    return f"{before}{placed}{after}"
