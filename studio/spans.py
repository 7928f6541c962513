"""Where a concept's words are in a prompt, and which tokens they become, by offsets. No torch at import."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.concepts import PLACEHOLDER, Concept, expand_prompt, whole_word
from studio.errors import UsageError


@dataclass(frozen=True)
class Spelled:
    """A prompt with every `<name>` spelled out, and where: (start, end) in characters, by concept."""

    text: str
    places: dict[str, list[tuple[int, int]]]

    def tokens(self, tokenizer: Any, name: str) -> list[int]:
        """The positions of the concept's tokens in what `tokenizer` makes of the text, its beginning mark counted.

        Raises UsageError where the words lie beyond what the tokenizer reads.
        """
        coded = tokenizer(
            rows_spelled(self.text, tokenizer),
            truncation=True,
            max_length=tokenizer.model_max_length,
            return_offsets_mapping=True,
        )
        places = [[len(rows_spelled(self.text[:end], tokenizer)) for end in place] for place in self.places[name]]
        found = [
            position
            for position, (start, end) in enumerate(coded["offset_mapping"])
            if start < end and any(start < last and end > first for first, last in places)
        ]
        if not found:
            raise UsageError(
                f"The words of <{name}> lie beyond the {tokenizer.model_max_length} tokens that the base reads.",
                "Shorten the prompt, or name the concept earlier.",
            )
        return found

    def with_words(self, phrases: Sequence[str]) -> "Spelled":
        """The same prompt with those of `phrases` at its end that it does not say yet."""
        text = self.text
        for phrase in phrases:
            if not re.search(whole_word(phrase), text):
                text = f"{text}, {phrase}" if text else phrase
        return Spelled(text, self.places)

    def reworded(self, phrases: Mapping[str, str]) -> "Spelled":
        """The same prompt with other words where some concepts stand, by name."""
        spots = sorted((start, end, name) for name, spans in self.places.items() for start, end in spans)
        places: dict[str, list[tuple[int, int]]] = {name: [] for name in self.places}
        text, read = "", 0
        for start, end, name in spots:
            text += self.text[read:start]
            words = phrases.get(name, self.text[start:end])
            places[name].append((len(text), len(text) + len(words)))
            text, read = text + words, end
        return Spelled(text + self.text[read:], places)


def rows_spelled(text: str, tokenizer: Any) -> str:
    """`text` as diffusers gives it to `tokenizer`: a word of several embedding rows becomes a word for each."""
    from studio.hush import hushed

    with hushed():  # a text beyond the tokenizer's limit is told of elsewhere
        from diffusers.loaders import TextualInversionLoaderMixin

        return TextualInversionLoaderMixin().maybe_convert_prompt([text], tokenizer)[0]


def spell(prompt: str, concepts: Sequence[Concept]) -> Spelled:
    """`prompt` with the phrase of each concept for its `<name>`; raises UsageError for a name not among `concepts`."""
    expand_prompt(prompt, concepts)  # which knows what to say of a name that is not there
    phrases = {concept.name: concept.phrase for concept in concepts}
    places: dict[str, list[tuple[int, int]]] = {concept.name: [] for concept in concepts}
    text, read = "", 0
    for found in PLACEHOLDER.finditer(prompt):
        text += prompt[read : found.start()]
        places[found[1]].append((len(text), len(text) + len(phrases[found[1]])))
        text, read = text + phrases[found[1]], found.end()
    return Spelled(text + prompt[read:], places)
