"""Adapters from elsewhere, taken into the library as concepts."""

import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from studio.adapter_family import NAMES
from studio.adapters import PEFT_WEIGHTS, Adapter, check_family, check_values, load_adapter
from studio.bases import ALIASES, EMBEDDED, FAMILY_NAMES, find_base
from studio.concepts import ADAPTER_FILE, Concept, file_hash, write_concept
from studio.errors import StudioError, UsageError
from studio.home import ensure_free, ensure_writable, write_atomic
from studio.library import Library
from studio.rotation import Rotation
from studio.tensorfile import is_pickle
from studio.trigger_words import trigger_words
from studio.untrusted import shown


@dataclass(frozen=True)
class Arrival:
    """What the user says of an adapter's file; None where the file itself is asked."""

    path: Path
    name: str
    class_word: str | None
    trigger: str | None = None
    base: str | None = None
    sha256: str | None = None
    allow_pickle: bool = False


def import_adapter(library: Library, arrival: Arrival) -> tuple[Concept, Adapter]:
    """Make the adapter of `arrival` a concept: checked, kept byte for byte, and with its hash; whole or not at all.

    A PEFT folder and a pickled file are written anew as one safetensors file. Raises UsageError where the words or the
    file cannot be used, StudioError where its content or its hash is wrong or the disk refuses.
    """
    library.check_free(arrival.name)
    path = arrival.path.expanduser().absolute()
    _check_words(arrival)
    if arrival.sha256 is not None:
        _check_expected(path / PEFT_WEIGHTS if path.is_dir() else path, arrival.sha256)
    adapter = load_adapter(path, values=False, allow_pickle=arrival.allow_pickle)
    base, family = _base_for(adapter, arrival.base)
    class_word = arrival.class_word or _noted_class(adapter)
    trigger = arrival.trigger or _suggested(adapter, class_word)
    ensure_writable(library.root)
    staging = library.root / f".importing-{uuid.uuid4().hex[:8]}.tmp"
    try:
        kept = _keep(path, staging / ADAPTER_FILE, arrival.allow_pickle)
        method, file = _kind(kept), staging / ADAPTER_FILE
        write_concept(
            Concept(
                arrival.name, trigger, class_word, base, family, method, staging,
                file_hash(file), shown(path.name),
            )
        )  # fmt: skip
        return library.add(staging, arrival.name), kept
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _keep(path: Path, file: Path, allow_pickle: bool) -> Adapter:
    """Bring the adapter in `path` to `file`, and check the values of what arrived there."""
    if path.is_dir() or is_pickle(path):
        from studio.adapter_writing import write_adapter

        adapter = load_adapter(path, allow_pickle=allow_pickle)
        check_values(adapter)
        turned = any(isinstance(factor, Rotation) for factor in adapter.factors.values())
        write_adapter(adapter, file, "lycoris" if turned else "kohya")  # which hold every kind between them
        return adapter
    ensure_free(file.parent.parent, path.stat().st_size)
    write_atomic(file, lambda temporary: shutil.copyfile(path, temporary))
    adapter = load_adapter(file)
    check_values(adapter)
    return adapter


def _check_words(arrival: Arrival) -> None:
    for option, word in (("--trigger", arrival.trigger), ("--class", arrival.class_word)):
        if word is not None and (not word or shown(word) != word):
            raise UsageError(f"{option} {word!r} is no text for a prompt.", "Give one or a few plain words.")
    if arrival.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", arrival.sha256):
        raise UsageError(
            f"--sha256 {arrival.sha256!r} is no SHA-256.",
            "Give all 64 hexadecimal digits, as the file's page shows them.",
        )


def _check_expected(file: Path, expected: str) -> None:
    if not file.is_file():
        raise UsageError(f"There is no adapter file {file}.", "Check the path.")
    if (found := file_hash(file)) != expected.lower():
        raise StudioError(
            f"{file} is not the file that was meant: its SHA-256 is {found[:12]}..., not {expected[:12].lower()}...",
            "Download it again, or compare the hash with the one that its author gives.",
        )


def _base_for(adapter: Adapter, base: str | None) -> tuple[str, str]:
    """(base, family): as asked for where that is not against what the file tells, else as the studio noted in it, else
    by the file's family."""
    if base is None and adapter.metadata.get("studio.base") == EMBEDDED:
        base = EMBEDDED
    if adapter.family is None and any(layer.startswith("transformer.") for layer in adapter.layers):
        raise UsageError(
            f"{adapter.name} changes a transformer of a family that the studio does not know.",
            f"It draws with {' and '.join(FAMILY_NAMES.values())}.",
        )
    if base in ALIASES:
        check_family(adapter, base, base)
        return base, base
    if base is not None:
        source = find_base(base)
        check_family(adapter, source.family, source.name)
        return base, source.family
    if adapter.family is None:
        raise UsageError(
            f"{adapter.name} does not tell which family of bases it was made for.",
            f"Name the base with --base: {', '.join(ALIASES)}, or another that you have.",
        )
    if adapter.family not in FAMILY_NAMES:
        raise UsageError(
            f"{adapter.name} was made for {NAMES[adapter.family]}, with which the studio cannot draw.",
            f"It draws with {' and '.join(FAMILY_NAMES.values())}.",
        )
    return adapter.family, adapter.family


def _noted_class(adapter: Adapter) -> str:
    """What the studio noted that it shows."""
    noted = shown(adapter.metadata.get("studio.class_word", ""))
    if not noted:
        raise UsageError(f"{adapter.name} does not tell what it shows.", "Say it in a word: --class cat")
    return noted


def _suggested(adapter: Adapter, class_word: str) -> str:
    """The surest word; the class at its end is left out, as it follows in prompts anyway."""
    words = trigger_words(adapter.metadata, adapter.embeddings)
    if not words:
        raise UsageError(
            f"{adapter.name} does not tell which word calls it.", "Look it up where you got the file: --trigger WORD."
        )
    return words[0].removesuffix(f" {class_word}")


def _kind(adapter: Adapter) -> str:
    """The kinds of its factors, e.g. "LoRA, LoCon"."""
    return ", ".join(dict.fromkeys(factor.kind for factor in adapter.factors.values())) or "embedding"
