"""A concept: what was learned, and the words that call it."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from studio.errors import StudioError, UsageError
from studio.home import write_atomic

SCHEMA = 1
CONCEPT_FILE = "concept.json"
ADAPTER_FILE = "adapter.safetensors"
_PLACEHOLDER = re.compile(r"<([^<>\s]+)>")


@dataclass(frozen=True)
class Concept:
    """A trained subject or style: its adapter's folder, the base it was made for, and its words."""

    name: str
    trigger: str
    class_word: str
    base: str
    family: str
    method: str
    folder: Path

    @property
    def phrase(self) -> str:
        """What `<name>` in a prompt stands for: the trigger, then the class word."""
        return f"{self.trigger} {self.class_word}"

    @property
    def adapter_file(self) -> Path:
        """The trained weights."""
        return self.folder / ADAPTER_FILE


_WORDS = ("name", "trigger", "class_word", "base", "family", "method")


def write_concept(concept: Concept) -> Path:
    """Write `concept.json` into the concept's folder; returns its path."""
    fields = asdict(concept)
    record = {"schema": SCHEMA} | {word: fields[word] for word in _WORDS}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    return write_atomic(concept.folder / CONCEPT_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def read_concept(folder: Path) -> Concept:
    """The concept kept in `folder`; raises StudioError where its files are missing, damaged or too new."""
    path = folder / CONCEPT_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
        words = {word: record[word] for word in _WORDS}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StudioError(
            f"{path} cannot be read as a concept: {error!r}.", f"Train it again, or remove the folder {folder}."
        ) from error
    if schema != SCHEMA:
        raise StudioError(
            f"{path} has schema {schema!r}; this studio knows {SCHEMA}.", "Update concept-studio, or train it again."
        )
    if not all(isinstance(word, str) for word in words.values()):
        raise StudioError(f"{path} holds something else than text: {words}.", "Train the concept again.")
    concept = Concept(**words, folder=folder)
    if not concept.adapter_file.is_file():
        raise StudioError(f"{concept.adapter_file} is missing.", "Train the concept again.")
    return concept


def placeholders(prompt: str) -> list[str]:
    """The names that stand in `prompt` as `<name>`, each once, in order."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(prompt)))


def expand_prompt(prompt: str, concepts: Sequence[Concept]) -> str:
    """`prompt` with every `<name>` replaced by the phrase of the concept of that name.

    Raises UsageError for a name that is not among `concepts`: a typing error must not become a silent wrong picture.
    """
    phrases = {concept.name: concept.phrase for concept in concepts}

    def phrase(match: re.Match[str]) -> str:
        name = match[1]
        if name not in phrases:
            raise UsageError(
                f"The prompt names <{name}>, which is not among the concepts in use.", _remedy(name, phrases)
            )
        return phrases[name]

    return _PLACEHOLDER.sub(phrase, prompt)


def _remedy(name: str, phrases: dict[str, str]) -> str:
    near = get_close_matches(name, phrases, n=1)
    if near:
        return f"Did you mean <{near[0]}>?"
    if name.startswith("lora:"):
        return "Weights are not written into the prompt here: use --concept NAME=STRENGTH and <NAME>."
    used = ", ".join(f"<{known}>" for known in phrases) or "none"
    return f"In use: {used}. Add it with --concept {name}, or take it out of the prompt."
