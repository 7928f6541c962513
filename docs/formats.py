"""Writes docs/formats.md: every convention of adapter files, as the studio and as plain diffusers load it.

`make formats`. The files, the tiny random bases and the dense truth are those of tests/adapter_zoo.py.
"""

import importlib.metadata
import logging
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from adapter_zoo_bases import ROWS, Case, build_bases, build_case, far, loaded_by_diffusers, outputs

from studio.adapters import load_adapter
from studio.attaching import attach

INTRO = """\
# Adapter files, and who reads them right

One file of every convention, loaded onto tiny random bases of the SD1.5 and SDXL architectures. The truth is the base
with the dense change, computed in float64 from the formulas, added to its float32 weights. *Effect* is the largest
difference that the adapter makes to what the text encoders and the UNet compute; *error* the largest difference to the
truth, as a share of the effect: 1 means as far from the truth as not loading the file at all.

`make formats` writes this table anew; `tests/test_adapter_formats.py` holds the studio to 1e-5.

"""


def by_studio(case: Case) -> str:
    """The studio's error as a share of the effect."""
    with attach(case.base, [(load_adapter(case.file, allow_pickle=True), 1.0)]):
        got = outputs(case.base)
    error = far(got, case.truth) / far(case.truth, case.plain)
    return f"{error:.0e}" if error else "0"


def by_diffusers(case: Case) -> str:
    """What `load_lora_weights` makes of the file."""
    try:
        with loaded_by_diffusers(case.base, case.file):
            got = outputs(case.base)
    except Exception as error:
        said = " ".join(str(error).split()).replace("|", "\\|")
        return f"refused: `{type(error).__name__}: {said[:90]}{'…' if len(said) > 90 else ''}`"
    error = far(got, case.truth) / far(case.truth, case.plain)
    if far(got, case.plain) == 0:
        return "**no effect, no error**"
    return f"right, {error:.0e}" if error <= 1e-4 else f"**wrong, no error: {error:.2f}**"


def table(folder: Path) -> str:
    """All rows, as Markdown."""
    bases = build_bases(folder)
    lines = [("file", "effect", "studio: error / effect", "diffusers"), ("---",) * 4]
    for number, row in enumerate(ROWS):
        case = build_case(row, bases[row.family], folder / str(number))
        effect = f"{far(case.truth, case.plain):.2f}"
        lines.append((row.name, effect, by_studio(case), by_diffusers(case)))
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "peft", "transformers"))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\nWith {versions}.\n"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        Path(__file__).with_suffix(".md").write_text(INTRO + table(Path(temporary)), encoding="utf-8")
