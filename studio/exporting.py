"""Concepts of the library as files for others, with a model card."""

import json
import shutil
from pathlib import Path
from shlex import quote

from studio.adapter_targets import TARGETS
from studio.adapters import load_concept
from studio.bases import ALIASES
from studio.concepts import Concept, check_hash
from studio.errors import UsageError
from studio.home import write_atomic
from studio.tensorfile import read_header
from studio.untrusted import shown


def export_concept(concept: Concept, to: Path, kind: str | None = None) -> list[Path]:
    """Write the adapter of `concept` and its model card; returns [what others load, the card].

    `to` is a .safetensors file, or a folder in which it gets the concept's name. Without `kind` the file is copied as
    it is; "peft" makes a folder. Raises UsageError for an unknown kind and for a place that is taken, StudioError where
    the file has changed since it entered the library, or the disk refuses.
    """
    if kind is not None and kind not in TARGETS:
        raise UsageError(f"There is no format {kind!r}.", f"Choose one of {', '.join(TARGETS)}.")
    target, card = _places(concept, to.expanduser(), kind)
    for path in (target, card):
        if path.exists():
            raise UsageError(f"{path} exists already.", "Choose another place with --to, or remove it first.")
    check_hash(concept)
    if kind is None:
        write_atomic(target, lambda file: shutil.copyfile(concept.adapter_file, file))
    else:
        from studio.adapter_writing import write_adapter

        write_adapter(load_concept(concept), target, to=kind)
    text = _card(concept, target.name)
    return [target, write_atomic(card, lambda file: file.write_text(text, encoding="utf-8"))]


def _places(concept: Concept, to: Path, kind: str | None) -> tuple[Path, Path]:
    single = to.suffix.lower() == ".safetensors"
    if kind == "peft":
        if single:
            raise UsageError(f"--to {to}: a PEFT adapter is a folder.", "Give a folder.")
        return to / concept.name, to / concept.name / "README.md"
    file = to if single else to / f"{concept.name}.safetensors"
    return file, file.with_suffix(".md")


def _card(concept: Concept, file: str) -> str:
    phrase, base = shown(concept.phrase).replace("`", "'"), shown(concept.base).replace("`", "'")
    notes = read_header(concept.adapter_file).metadata
    facts = {
        "method": concept.method,
        "came from": concept.source or "",
        "SHA-256 in the library": concept.sha256 or "",
    }
    facts |= {key.removeprefix("studio."): text for key, text in notes.items() if key.startswith("studio.")}
    words = f"--class {quote(shown(concept.class_word))} --trigger {quote(shown(concept.trigger))}"
    again = f"studio library import {quote(file)} --name {concept.name} {words}"
    again += f" --base {quote(base)}" * (concept.base not in ALIASES)  # which follow from the file
    rows = "\n".join(f"| {_cell(key)} | {_cell(text)} |" for key, text in facts.items() if text)
    return f"""---
base_model: {json.dumps(base, ensure_ascii=False)}
tags: [lora, text-to-image, {concept.family}]
instance_prompt: {json.dumps(phrase, ensure_ascii=False)}
---

# {concept.name}

An adapter for the base `{base}`. In prompts it is called `{phrase}`.

```
{again}
studio generate "<{concept.name}> on a hill"
```

| | |
|---|---|
{rows}
"""


def _cell(text: str) -> str:
    """Text for a table in Markdown, in which a stranger's markup does not act."""
    plain = shown(text)
    for mark, escape in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("[", "\\["), ("`", "\\`")):
        plain = plain.replace(mark, escape)
    return plain
