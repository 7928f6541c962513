import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from training_helpers import Halt, halting, same, tiny_recipe

from studio.bases import EMBEDDED
from studio.events import Event, Notice, Validation
from studio.home import Home
from studio.judge import Reading
from studio.picturebook import SAMPLE_SUBJECTS, Scene
from studio.picturebook_draw import render
from studio.trainers.dreambooth import train_concept
from studio.trainers.scoring import ByClip, Fidelity, JudgeA, obeyed, scorers_for
from studio.trainers.validation import Measured, best

PROMPTS = ("a sks cat at night", "a sks cat on grass")


class Falling:
    """Says of each step less than of the one before, and keeps what it was shown."""

    name = "a test"

    def __init__(self) -> None:
        self.shown: list[tuple[list[bytes], tuple[str, ...], int]] = []

    def __call__(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], references: Sequence[Image.Image]
    ) -> Fidelity:
        self.shown.append(([picture.tobytes() for picture in pictures], tuple(prompts), len(references)))
        return Fidelity(1 / len(self.shown), 0.5)


class Seen:
    """A CLIP in which pictures are their first pixel's colour, and words what a table says."""

    name, weights = "toy", ""

    def images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return F.normalize(torch.tensor([one.convert("RGB").getpixel((0, 0)) for one in pictures]).float(), dim=1)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        table = {"a red cat": (1.0, 0, 0), "a blue cat": (0, 0, 1.0)}
        return torch.tensor([table[text] for text in texts])


def test_a_clip_says_how_like_and_how_fitting_pictures_are():
    scorer = ByClip(Seen(), "sks")  # type: ignore[arg-type]
    red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
    assert scorer([red, blue], ["a red sks cat", "a blue sks cat"], [red]) == Fidelity(0.5, 1.0)
    assert scorer([red, red], ["a red sks cat", "a blue sks cat"], [red, blue]) == Fidelity(0.5, 0.5)


def test_the_step_of_the_best_pictures_is_recommended_and_nothing_touched(tiny_sdxl: Path, homes: list[Home]) -> None:
    plain = train_concept(tiny_recipe(tiny_sdxl, homes[0]), homes[0])
    events: list[Event] = []
    scorer = Falling()
    recipe = tiny_recipe(tiny_sdxl, homes[1], {"validate_every": 2, "score_prompts": PROMPTS})
    measured = train_concept(recipe, homes[1], events.append, scorer=scorer)
    assert same(plain, measured)
    assert [prompts for _, prompts, _ in scorer.shown] == [(PROMPTS[0],) * 2 + (PROMPTS[1],) * 2] * 4
    assert {count for _, _, count in scorer.shown} == {3}
    assert all(len(set(pictures)) == 4 for pictures, _, _ in scorer.shown)
    said = [event.fidelity for event in events if isinstance(event, Validation)]
    assert said == [(1 / n, 0.5) for n in (1, 2, 3, 4)]
    told = json.loads((measured.folder / "validation.json").read_text())
    assert told["recommended"] == 2
    reason = "whose 4 pictures are the best by a test (concept 0.50, prompt 0.50)"
    assert told["reason"] == reason
    assert any(isinstance(one, Notice) and reason in one.message for one in events)
    assert len(list((measured.folder / "steps").glob("*.png"))) == 4


def test_a_resumed_training_scores_as_one_that_was_not(tiny_sdxl: Path, homes: list[Home]) -> None:
    changes = {"validate_every": 2, "save_every": 2, "score_prompts": PROMPTS[:1]}
    scorers = Falling(), Falling()
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], changes), homes[0], scorer=scorers[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], changes)
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(5), scorer=scorers[1])
    resumed = train_concept(recipe, homes[1], resume=True, scorer=scorers[1])
    one, other = ((concept.folder / "validation.json").read_text() for concept in (straight, resumed))
    assert one == other
    assert scorers[0].shown == scorers[1].shown


def test_neither_concept_nor_prompt_makes_up_for_the_other() -> None:
    found = [
        Measured(n, loss, Fidelity(*both))
        for n, loss, both in ((0, 0.9, (1, 1)), (2, 0.1, (1, 0.2)), (4, 0.5, (0.6, 0.6)))
    ]
    assert best(found).step == 4
    assert best([*found, Measured(6, 0.05)]).step == 6  # one that no scorer saw


def test_the_judge_tells_the_concept_from_another_and_a_wrong_scene() -> None:
    milo, rex = SAMPLE_SUBJECTS["milo"], SAMPLE_SUBJECTS["rex"]
    references = [render(Scene((milo,), ground, "flat", "big", 5)) for ground in ("paper", "grass", "sky")]
    prompts = ["a cat at night, flat style", "a cat on sand, in outline style"]
    scenes = (("night", "flat"), ("sand", "outline"))
    right, other = ([render(Scene((who,), *scene, "small", 9)) for scene in scenes] for who in (milo, rex))
    judge = JudgeA("cat")
    assert judge(right, prompts, references).prompt == 1
    assert judge(right[::-1], prompts, references).prompt == 0
    assert judge(right, prompts, references).concept > judge(other, prompts, references).concept + 0.5


def test_the_judge_tells_the_concept_from_one_without_its_hat() -> None:
    milo = SAMPLE_SUBJECTS["milo"]
    references = [render(Scene((milo,), ground, "flat", "big", 5)) for ground in ("paper", "grass", "sky")]
    true, bare = (
        JudgeA("cat")([render(Scene((who,), "night", "flat", "big", 9))], ["a cat at night"], references).concept
        for who in (milo, replace(milo, accessory="none"))
    )
    assert true > 0.5 > bare


def test_what_a_prompt_names_is_looked_for_and_nothing_else() -> None:
    reading = Reading("cat", "red", "white", "plain", "none", "red", "night", "flat", (0.5, 0.5))
    assert obeyed("a cat under the stars, with black outlines", reading) == [True, False]
    assert obeyed("a cat", reading) == []


def test_only_the_embedded_base_has_a_scorer_and_for_what_its_judge_knows(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home)
    assert scorers_for(recipe) == []
    own = recipe.model_copy(update={"base": EMBEDDED})
    assert [type(one) for one in scorers_for(own)] == [JudgeA]
    assert scorers_for(own.model_copy(update={"class_word": "style"})) == []
