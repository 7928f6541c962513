"""The shipped sample pictures are those that the script draws."""

from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageChops

from studio.trainers.samples import write_samples


def test_the_committed_samples_are_what_the_script_draws(tmp_path: Path):
    shipped = Path(str(files("studio.assets"))) / "samples"
    drawn = write_samples(tmp_path)
    assert len(drawn) == 11 * 5
    for path in drawn:
        with Image.open(path) as new, Image.open(shipped / path.relative_to(tmp_path)) as old:
            assert ImageChops.difference(new, old).getbbox() is None
