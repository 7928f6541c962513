import pytest

from studio.bases import BaseSource, Sizes, find_base
from studio.errors import UsageError
from studio.pipelines.settings import GenerateSettings, usual_guidance, usual_width


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": -3}, "steps is -3"),
        ({"count": 0}, "count is 0"),
        ({"width": 0}, "width is 0"),
        ({"height": -64}, "height is -64"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63 - 1, "count": 2}, "seed is"),
        ({"scheduler": "eular"}, "no scheduler 'eular'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        GenerateSettings("a cat", **wrong)


def test_a_misspelled_scheduler_gets_its_near_name():
    with pytest.raises(UsageError) as refusal:
        GenerateSettings("a cat", scheduler="eular")
    assert "Did you mean 'euler'?" in refusal.value.remedy


def test_the_size_is_the_bases_own_unless_set():
    sizes = Sizes((96, 64), 16)
    assert GenerateSettings("a cat").size_for(sizes) == (96, 64)
    assert GenerateSettings("a cat", width=128).size_for(sizes) == (128, 64)


@pytest.mark.parametrize(("width", "remedy"), [(100, "Use 96 or 112."), (7, "Use 16.")])
def test_a_size_between_the_steps_gets_its_neighbours(width, remedy):
    with pytest.raises(UsageError, match=f"width {width} is not a multiple of 16") as refusal:
        GenerateSettings("a cat", width=width).size_for(Sizes((96, 96), 16))
    assert refusal.value.remedy == remedy


@pytest.mark.parametrize(("width", "height"), [(2048, 2048), (8192, 1024), (4096, 4096), (1024, 8192)])
def test_large_and_wide_pictures_are_drawn(width, height):
    assert GenerateSettings("a cat", width=width, height=height).size_for(Sizes((1024, 1024), 32)) == (width, height)


@pytest.mark.parametrize("side", [512, 1024])
def test_a_small_base_takes_what_is_usual_elsewhere(side):
    assert GenerateSettings("a cat", width=side, height=side).size_for(Sizes((96, 96), 16)) == (side, side)
    with pytest.raises(UsageError, match="no more pixels than 1024 x 1024"):
        GenerateSettings("a cat", width=1024, height=1040).size_for(Sizes((96, 96), 16))


@pytest.mark.parametrize(("width", "height"), [(8224, 64), (96000, None), (4128, 4096)])
def test_what_no_base_draws_is_refused_before_memory_is_taken(width, height):
    with pytest.raises(UsageError, match=f"{width} x {height or 1024} pixels") as refusal:
        GenerateSettings("a cat", width=width, height=height).size_for(Sizes((1024, 1024), 32))
    assert refusal.value.remedy == (
        "Its own size is 1024 x 1024. It takes sides up to 8192 pixels, and no more pixels than 4096 x 4096."
    )


def test_three_have_room_on_the_embedded_base():
    embedded = find_base("picturebook")
    assert [usual_width(embedded, things) for things in (1, 2, 3, 4)] == [None, None, 144, 144]
    assert usual_width(BaseSource("sdxl", "", "hub", "sdxl"), 3) is None


def test_the_usual_guidance_goes_by_the_base():
    assert usual_guidance(BaseSource("picturebook", "", "folder", "sdxl")) == 2.5
    assert usual_guidance(BaseSource("sdxl", "", "hub", "sdxl")) == 5.0
    assert usual_guidance(BaseSource("sd15", "", "hub", "sd15")) == 7.5
