"""Joins reports of `studio bench concepts --config` into what `studio bench report` shows of KronA beside LoRA.

    python docs/krona.py docs/benchmarks/krona.json REPORT.json ...

Each report's recipe names its size (rank, or factors) and its rate. Reports of one recipe are joined, and those of all
samples compared; all else has to be the same in all. What was joined before may be given among them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from studio.picturebook import SAMPLE_SUBJECTS
from studio.stats import Share, difference

VARIED = ("method", "rank", "factors", "learning_rate")


def main(out: str, files: list[str]) -> None:
    """Join `files` and write `out`."""
    recipes: dict[tuple[str, float], dict[str, Any]] = {}
    reports = {file: json.loads(Path(file).read_text(encoding="utf-8")) for file in files}
    others = [shared(report) for report in reports.values()]
    if different := [file for file, one in zip(reports, others, strict=True) if one != others[0]]:
        sys.exit(f"More than size and rate differs from {files[0]} in {', '.join(different)}.")
    for report in reports.values():
        for row in report.get("recipes", ()):
            recipes.setdefault((row["recipe"], row["rate"]), {}).update(row["samples"])
        if "recipes" in report:
            continue
        settings = report["settings"]
        size = " x ".join(map(str, settings["factors"])) if "factors" in settings else f"rank {settings['rank']}"
        which = f"KronA, {size}" if "factors" in settings else f"LoRA, {size}"
        found = recipes.setdefault((which, settings["learning_rate"]), {})
        found |= {name: one["identity"] | {"bytes": one["bytes"]} for name, one in report["concepts"].items()}
    rows = [
        {"recipe": which, "rate": rate, "samples": dict(sorted(found.items())), "all": pooled(found).rounded()}
        for (which, rate), found in sorted(recipes.items())
    ]
    whole = {f"{row['recipe']} at {row['rate']:g}": row for row in rows if len(row["samples"]) == len(SAMPLE_SUBJECTS)}
    shares = {name: pooled(row["samples"]) for name, row in whole.items()}
    over = {
        f"{one} - {other}": difference(shares[one], shares[other]).rounded()
        for one in shares
        for other in shares
        if one.startswith("KronA") and other.startswith("LoRA")
    }
    joined = {"shared": others[0], "recipes": rows, "differences": over}
    Path(out).write_text(json.dumps(joined, indent=1) + "\n", encoding="utf-8")


def shared(report: dict[str, Any]) -> dict[str, Any]:
    """All that decides a report's figures but the size and the rate of what was trained."""
    if "recipes" in report:
        return report["shared"]
    settings = {name: one for name, one in report["settings"].items() if name not in VARIED}
    return {name: report[name] for name in ("judge", "preset", "seeds")} | {"settings": settings}


def pooled(found: dict[str, Any]) -> Share:
    """One share of all pictures."""
    hits = [round(one["value"] * one["count"]) for one in found.values()]
    counts = [one["count"] for one in found.values()]
    return Share.of([n < sum(hits) for n in range(sum(counts))])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
