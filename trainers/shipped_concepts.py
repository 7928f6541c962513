"""Sample concepts that come trained: `python -m studio.trainers.shipped_concepts` makes them anew."""

import shutil
import sys
import tempfile
import uuid
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from studio.concepts import Concept, file_hash, write_concept
from studio.datasets import sample_folder
from studio.events import silent
from studio.home import Home, ensure_writable
from studio.library import Library
from studio.trainers.planning import plan_recipe
from studio.trainers.recipe import build_recipe, read_toml, write_toml
from studio.trainers.workplace import RECIPE_FILE, SAMPLE_FILE

SHIPPED = {"milo": ("cat", "lora"), "rex": ("dog", "lora"), "neon": ("style", "b-lora")}
RANK = 8  # of what is shipped: half of what was trained, in half precision


def add_shipped(home: Home) -> list[str]:
    """Bring them into the library, where a name is free; returns the names of all that are shipped.

    Raises StudioError where the disk refuses.
    """
    library = Library(home)
    ensure_writable(library.root)
    for name in SHIPPED:
        if name in library:
            continue
        arriving = library.root / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            shutil.copytree(_place() / name, arriving)
            recipe = build_recipe([read_toml(arriving / RECIPE_FILE), {"pictures": _pictures(name)}])
            write_toml(recipe, arriving / RECIPE_FILE)
            (arriving / SAMPLE_FILE).write_text("{}", encoding="utf-8")
            library.add(arriving, name)
        finally:
            shutil.rmtree(arriving, ignore_errors=True)
    return list(SHIPPED)


def _place() -> Path:
    return Path(str(files("studio.assets"))) / "concepts"


def _pictures(name: str) -> Path:
    folder = sample_folder(name)
    return folder / "1.png" if SHIPPED[name][1] == "b-lora" else folder


def ship(trained: Concept, to: Path) -> None:
    """Write a trained concept into folder `to` as it is shipped: smaller, and without a path of this machine."""
    from studio.adapter_algebra import resize
    from studio.adapter_writing import write_adapter
    from studio.adapters import load_adapter

    small = resize(load_adapter(trained.adapter_file), rank=RANK).adapter
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    shipped = replace(trained, folder=to)
    write_adapter(small, shipped.adapter_file, "kohya", half=True)
    write_concept(replace(shipped, sha256=file_hash(shipped.adapter_file)))
    recipe = build_recipe([read_toml(trained.folder / RECIPE_FILE)])
    write_toml(recipe.model_copy(update={"pictures": Path(recipe.pictures.name)}), to / RECIPE_FILE)
    shutil.copyfile(trained.folder / "samples.png", to / "samples.png")


def main(target: str = "assets/concepts", home: str | None = None) -> int:
    """Write what is shipped into `target`; what the library of `home` lacks is trained on the embedded base first."""
    from studio.trainers.dreambooth import train_concept

    place = Home(Path(home or tempfile.mkdtemp()).absolute())
    library = Library(place)
    for name, (class_word, method) in SHIPPED.items():
        if name not in {one.name for one in library.concepts()}:
            given = {"pictures": _pictures(name), "name": name, "class_word": class_word, "method": method}
            train_concept(plan_recipe(given, None, place), place, silent)
        ship(library.find(name), Path(target) / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
