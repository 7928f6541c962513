"""A concept: what was learned, and the words that call it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from studio.errors import StudioError, UsageError
from studio.home import write_atomic
from studio.untrusted import shown

SCHEMA = 1
CONCEPT_FILE = "concept.json"
ADAPTER_FILE = "adapter.safetensors"
PLACEHOLDER = re.compile(r"<([^<>\s]+)>")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Concept:
    """A trained subject or style: its adapter's folder, the base it was made for, and its words.

    `sha256` is that of the adapter's file when it entered the library, None where an older studio kept none; `source`
    is the file that an imported one came from; `tags` are the user's.
    """

    name: str
    trigger: str
    class_word: str
    base: str
    family: str
    method: str
    folder: Path
    sha256: str | None = None
    source: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def phrase(self) -> str:
        """What `<name>` in a prompt stands for: the trigger, then the class word."""
        return f"{self.trigger} {self.class_word}"

    @property
    def adapter_file(self) -> Path:
        """The trained weights."""
        return self.folder / ADAPTER_FILE

    @property
    def file_state(self) -> tuple[int, int]:
        """When the adapter's file was changed [ns], and its size: other content, another state. Zeros for no file."""
        try:
            about = self.adapter_file.stat()
        except OSError:
            return 0, 0
        return about.st_mtime_ns, about.st_size


_WORDS = ("name", "trigger", "class_word", "base", "family", "method")
_LATER = ("sha256", "source", "tags")  # written where known, so that older records stay readable


def write_concept(concept: Concept) -> Path:
    """Write `concept.json` into the concept's folder; returns its path."""
    fields = asdict(concept)
    record = {"schema": SCHEMA} | {word: fields[word] for word in _WORDS}
    record |= {key: fields[key] for key in _LATER if fields[key]}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    return write_atomic(concept.folder / CONCEPT_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def read_concept(folder: Path) -> Concept:
    """The concept kept in `folder`; raises StudioError where its files are missing, damaged or too new."""
    path = folder / CONCEPT_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
        words = {word: record[word] for word in _WORDS}
        later = {key: record[key] for key in _LATER if key in record}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StudioError(
            f"{path} cannot be read as a concept: {error!r}.", f"Train it again, or remove the folder {folder}."
        ) from error
    if schema != SCHEMA:
        raise StudioError(
            f"{path} has schema {schema!r}; this studio knows {SCHEMA}.", "Update concept-studio, or train it again."
        )
    if not all(isinstance(word, str) for word in words.values()) or not _are_sound(later):
        raise StudioError(f"{path} holds something else than text: {words | later}.", "Train the concept again.")
    later["tags"] = tuple(later.get("tags", ()))
    concept = Concept(**words, folder=folder, **later)
    if not concept.adapter_file.is_file():
        raise StudioError(f"{concept.adapter_file} is missing.", "Train the concept again.")
    return concept


def _are_sound(later: dict[str, Any]) -> bool:
    tags, sha256 = later.get("tags", []), later.get("sha256", "0" * 64)
    texts = [later.get("source", ""), sha256, *(tags if isinstance(tags, list) else [None])]
    return all(isinstance(text, str) for text in texts) and _HASH.fullmatch(sha256) is not None


def file_hash(file: Path) -> str:
    """The SHA-256 of `file` in hex; computed once in a process for as long as size and time of change stay."""
    about = file.stat()
    return _hash(file, about.st_size, about.st_mtime_ns)


@lru_cache
def _hash(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_hash(concept: Concept) -> None:
    """Raise StudioError where the adapter's file is not the one that the library took in."""
    if concept.sha256 is None or (now := file_hash(concept.adapter_file)) == concept.sha256:
        return
    again = f"studio library import {concept.source}" if concept.source else "studio train-concept"
    raise StudioError(
        f"{concept.adapter_file} has changed since it entered the library: its SHA-256 was {concept.sha256[:12]}..."
        f" and is {now[:12]}...",
        f"Put the file back from a copy, or remove the concept (studio library remove {concept.name})"
        f" and make it again ({again} ...).",
    )


def whole_word(text: str) -> str:
    """The pattern of `text` where it stands by itself; it may begin or end in marks, such as `<toy>` or `s*`."""
    return rf"(?<!\w){re.escape(text)}(?!\w)"


def placeholders(prompt: str) -> list[str]:
    """The names that stand in `prompt` as `<name>`, each once, in order."""
    return list(dict.fromkeys(PLACEHOLDER.findall(prompt)))


def expand_prompt(prompt: str, concepts: Sequence[Concept]) -> str:
    """`prompt` with every `<name>` replaced by the phrase of the concept of that name.

    Raises UsageError for a name that is not among `concepts`: a typing error must not become a silent wrong picture.
    """
    phrases = {concept.name: concept.phrase for concept in concepts}

    def phrase(match: re.Match[str]) -> str:
        name = match[1]
        if name not in phrases:
            plain = shown(name)  # a prompt may come with a stranger's picture
            raise UsageError(
                f"The prompt names <{plain}>, which is not among the concepts in use.", _remedy(plain, phrases)
            )
        return phrases[name]

    return PLACEHOLDER.sub(phrase, prompt)


def _remedy(name: str, phrases: dict[str, str]) -> str:
    near = get_close_matches(name, phrases, n=1)
    if near:
        return f"Did you mean <{near[0]}>?"
    if name.startswith("lora:"):
        return "Weights are not written into the prompt here: use --concept NAME=STRENGTH and <NAME>."
    used = ", ".join(f"<{known}>" for known in phrases) or "none"
    return f"In use: {used}. Add {name} to them, or take <{name}> out of the prompt."
