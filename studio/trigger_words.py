"""The words that an adapter of unknown origin says it answers to. No torch."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from studio.untrusted import shown

LENGTH, COUNT = 60, 5
TAGS_KEY = "ss_tag_frequency"
_COUNT_LIMIT = 2**53


def trigger_words(metadata: Mapping[str, str], tokens: Iterable[str] = ()) -> list[str]:
    """What the metadata names, best first and fit to be shown, at most five: the studio's own note, the phrase of the
    model specification, the `tokens` of embeddings that the file brings along, and the training's most frequent tags.
    """
    said = [metadata.get("studio.trigger", ""), metadata.get("modelspec.trigger_phrase", ""), *tokens]
    said += [tag for tag, _ in tag_counts(metadata).most_common(COUNT)]
    words = [shown(text, LENGTH) for text in said if len(text) <= LENGTH]
    return list(dict.fromkeys(filter(None, words)))[:COUNT]


def tag_counts(metadata: Mapping[str, str]) -> Counter[str]:
    """How often each tag occurs in the captions, as kohya's trainer counts them, {folder: {tag: count}}."""
    try:
        folders = json.loads(metadata.get(TAGS_KEY, "{}"))
    except (ValueError, RecursionError):
        return Counter()
    counts: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if type(count) is int and 0 < count < _COUNT_LIMIT:
                counts[tag] += count
    return counts
