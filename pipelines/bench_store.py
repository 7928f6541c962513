"""Results of a long benchmark, kept one by one in a folder, so that it can be stopped, continued and shared."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studio.home import write_atomic
from studio.pipelines.scores import Marks


@dataclass(frozen=True)
class Result:
    """What one arm made of a group of concepts from one seed; `made_from` is the fingerprint of all that decides it."""

    arm: str
    group: tuple[str, ...]
    seed: int
    made_from: str
    marks: Marks


def fingerprint(content: object) -> str:
    """Of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


class Store:
    """JSON lines in one file for each arm and group, so that processes which share the work do not meet; their pictures
    beside them. Results made from something else than what is asked for count as missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, arm: str, group: Sequence[str], made_from: Sequence[str]) -> list[Result]:
        """What there is of the results wanted."""
        return [one for one in self._all(arm, group) if one.made_from in made_from]

    def keep(self, results: Sequence[Result], pictures: Sequence[Image.Image]) -> None:
        """Add results of one arm and group; raises StudioError where nothing can be written."""
        first = results[0]
        for one, picture in zip(results, pictures, strict=True):
            place = self._picture(one)
            write_atomic(place, lambda file, picture=picture: picture.save(file, "PNG"))
        others = {one.seed: one for one in self._all(first.arm, first.group)}
        rows = (others | {one.seed: one for one in results}).values()
        text = "".join(json.dumps(asdict(one)) + "\n" for one in sorted(rows, key=lambda one: one.seed))
        write_atomic(self._file(first.arm, first.group), lambda file: file.write_text(text, encoding="utf-8"))

    def picture(self, result: Result) -> Image.Image:
        """What was drawn."""
        with Image.open(self._picture(result)) as file:
            return file.convert("RGB")

    def _all(self, arm: str, group: Sequence[str]) -> list[Result]:
        file = self._file(arm, group)
        return [_read(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    def _file(self, arm: str, group: Sequence[str]) -> Path:
        return self.folder / "results" / arm / f"{'+'.join(group)}.jsonl"

    def _picture(self, result: Result) -> Path:
        return self.folder / "pictures" / result.arm / f"{'+'.join(result.group)}-{result.seed}.png"


def _read(line: str) -> Result:
    record: dict[str, Any] = json.loads(line)
    marks: dict[str, Any] = record["marks"]
    lists = {key: tuple(marks[key]) for key in ("in_place", "margins", "seen")}
    leaks = tuple(tuple(tuple(fields) for fields in place) for place in marks["leaks"])
    return Result(
        record["arm"],
        tuple(record["group"]),
        record["seed"],
        record["made_from"],
        Marks(**lists, leaks=leaks, background=marks["background"]),
    )
