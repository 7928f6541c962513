"""Draws the sample concepts and styles that the studio ships: `python -m studio.trainers.samples`."""

import random
from pathlib import Path

from studio.picturebook import (
    BACKGROUND_WORDS,
    SAMPLE_STYLES,
    SAMPLE_SUBJECTS,
    STYLE_WORDS,
    Scene,
    random_scene,
    sample_scenes,
)
from studio.picturebook_draw import render

PICTURES = 5


def write_samples(folder: Path) -> list[Path]:
    """Five pictures of each sample subject, with captions that say where it is, and of each sample style."""
    written: list[Path] = []
    for name, subject in SAMPLE_SUBJECTS.items():
        scenes = sample_scenes(subject, PICTURES, seed=700)
        written += _write(folder / name, scenes)
        for path, scene in zip(written[-PICTURES:], scenes, strict=True):
            words = f"a {subject.kind} {BACKGROUND_WORDS[scene.background][0]}, {STYLE_WORDS[scene.style][0]}"
            path.with_suffix(".txt").write_text(words + "\n", encoding="utf-8")
    for style in SAMPLE_STYLES:
        rng = random.Random(f"sample {style}")
        plain = [random_scene(rng, held_out=None, subjects=1) for _ in range(PICTURES)]
        written += _write(folder / style, [Scene(s.subjects, s.background, style, "big", s.seed) for s in plain])
    return written


def _write(folder: Path, scenes: list[Scene]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(1, len(scenes) + 1)]
    for path, scene in zip(paths, scenes, strict=True):
        render(scene).save(path)
    return paths


if __name__ == "__main__":
    print(f"{len(write_samples(Path('assets/samples')))} pictures")
