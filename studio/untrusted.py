"""A stranger's text, e.g. the metadata of a downloaded file, made safe to show. No torch."""

import re
import unicodedata

_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # colours, cursor movements
    r"|(?:\x1b[P\]X^_]|[\x90\x9d\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, device strings
    r"|\x1b[ -/]*[0-~]?"
)


def shown(text: str, limit: int = 200) -> str:
    """`text` on one line of at most `limit` characters, without terminal sequences, control or invisible characters.

    What would reorder or hide the text around it goes too. Markup of rich or HTML stays: escape it where it would act.
    """
    # Only the beginning can be shown, so only the beginning is looked at.
    start = _SEQUENCE.sub("", text[: 20 * limit])
    spaced = (" " if char.isspace() else char for char in start)
    plain = "".join(char for char in spaced if unicodedata.category(char)[0] != "C")
    line = " ".join(plain.split())
    return line if len(line) <= limit and len(text) <= 20 * limit else line[: limit - 1] + "…"
