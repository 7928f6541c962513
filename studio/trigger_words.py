"""The words that an adapter of unknown origin says it answers to. No torch."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from studio.untrusted import shown

LENGTH, COUNT = 60, 5


def trigger_words(metadata: Mapping[str, str], tokens: Iterable[str] = ()) -> list[str]:
    """What the metadata names, best first and fit to be shown, at most five: the studio's own note, the phrase of the
    model specification, the `tokens` of embeddings that the file brings along, and the training's most frequent tags.
    """
    said = [metadata.get("studio.trigger", ""), metadata.get("modelspec.trigger_phrase", ""), *tokens]
    said += _frequent_tags(metadata.get("ss_tag_frequency", ""))
    words = [shown(text, LENGTH) for text in said if len(text) <= LENGTH]
    return list(dict.fromkeys(filter(None, words)))[:COUNT]


def _frequent_tags(text: str) -> list[str]:
    """The most frequent tags of kohya's {folder: {tag: count}}, over all folders."""
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):
        return []
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        if isinstance(tags, dict):
            counts.update({tag: count for tag, count in tags.items() if type(count) is int})
    return [tag for tag, _ in counts.most_common(COUNT)]
