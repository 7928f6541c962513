import io
from pathlib import Path

import pytest
from rich.console import Console

from studio.events import Done, Event, Failed, Loss, Notice, Phase, Preview, Step
from studio.ui.progress import duration, progress

STORY: list[Event] = [
    Phase("Reading [pictures]"),
    Notice("one picture is small [/not markup]"),
    Phase("Training", 4),
    *(event for step in range(1, 5) for event in (Loss(step, 1 / step, 1e-4), Step(step, 4, 4.0 - step))),
    Preview(4, (Path("a.png"), Path("b.png")), ("a cat", "a dog")),
    Done(Path("milo"), "milo is in the library"),
]


def told(events: list[Event], *, terminal: bool) -> str:
    screen = io.StringIO()
    with progress(Console(file=screen, force_terminal=terminal, width=200)) as emit:
        for event in events:
            emit(event)
    return screen.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_everything_worth_knowing_is_shown(terminal: bool):
    text = told(STORY, terminal=terminal)
    for words in (
        "Reading [pictures]",
        "[/not markup]",
        "Training",
        "4/4",
        "loss 0.82",
        "a.png, b.png",
        "in the library",
    ):
        assert words in text


def test_without_a_terminal_there_are_plain_lines_and_few():
    lines = told(STORY, terminal=False).splitlines()
    assert lines == [
        "Reading [pictures]",
        "Note: one picture is small [/not markup]",
        "Training (4)",
        "Training: 4/4, loss 0.8245, 0 s left",
        "Pictures at step 4: a.png, b.png",
        "milo is in the library",
    ]


def test_time_left_comes_from_the_pace_where_nobody_tells_it(monkeypatch: pytest.MonkeyPatch):
    clock = iter([100.0, 100.0, 100.0, *[130.0] * 20])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert "1/4, 1 min 30 s left" in told([Phase("Training", 4), Step(1, 4)], terminal=False)


def test_a_failure_is_left_to_the_error_that_follows():
    assert told([Phase("Training", 4), Failed("It broke.", "Mend it.")], terminal=False) == "Training (4)\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7800, "2 h 10 min"), (-1, "0 s")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str):
    assert duration(seconds) == text
