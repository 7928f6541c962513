"""Does B-LoRA separate what a picture shows from how it is drawn? Its tasks, on styles and things a judge can tell.

From one picture in each style one B-LoRA is learned; its style half is then given to other things, its content half
other styles in words. Beside each stands what the base makes of the same prompt alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from studio.concepts import Concept
from studio.events import Emit, Phase, silent
from studio.judge import Judge, Reading
from studio.models import BaseModel
from studio.picturebook import STYLE_WORDS, STYLES, Scene, Subject
from studio.pipelines.base_bench import draw_prompts
from studio.pipelines.settings import GenerateSettings
from studio.pipelines.stylize import stylize
from studio.stats import Share

SHOWN = (
    Scene((Subject("cat", "red", "striped"),), "grass", "flat", "big", 31),
    Scene((Subject("house", "blue", "plain"),), "sand", "outline", "big", 32),
    Scene((Subject("dog", "orange", "dotted"),), "paper", "pixel", "big", 33),
    Scene((Subject("mug", "green", "striped"),), "paper", "watercolor", "big", 34),
    Scene((Subject("fish", "purple", "plain"),), "sky", "hatched", "big", 35),
)
"""The one picture that each B-LoRA is learned from: every style once, every thing of another kind and colour."""
THINGS = (("tree", "pink"), ("car", "yellow"), ("robot", "blue"), ("star", "red"))
ANY, WORDS = "any content, style of B", "content of A, style in words"
BOTH, WHOLE = "content of A, style of B", "both halves of one picture"
SCORED = ("style", "kind", "colour")


@dataclass(frozen=True)
class StyleBench:
    """Pictures of each prompt, and how they are drawn."""

    seeds: int = 4
    seed: int = 11_000_000
    steps: int = 25
    guidance: float = 2.5


@dataclass(frozen=True)
class _Asked:
    """A picture to draw: the prompt, whose halves act, and what should be seen."""

    prompt: str
    content: Concept | None
    style: Concept | None
    wanted: Mapping[str, str]

    @property
    def plain(self) -> str:
        """The prompt for a base that has learned nothing."""
        own = self.content
        return self.prompt if own is None else self.prompt.replace(f"<{own.name}>", own.class_word)


def bench_styles(
    base: BaseModel, judge: Judge, learned: Sequence[tuple[Concept, Scene]], plan: StyleBench, emit: Emit
) -> tuple[dict[str, Any], dict[str, list[Image]]]:
    """(report, pictures by row): by task, the shares of pictures that show each thing asked for, with the halves and by
    the base alone; and the same by style."""
    report: dict[str, Any] = {}
    pictures: dict[str, list[Image]] = {}
    for task, asked in _tasks(learned).items():
        emit(Phase(f"{task}: {len(asked) * plan.seeds} pictures"))
        with_halves = [image for one in asked for image in _draw(base, one, plan)]
        prompts = [one.plain for one in asked for _ in range(plan.seeds)]
        alone = draw_prompts(base, prompts, _seeds(plan) * len(asked), plan.steps, plan.guidance, silent)
        read, read_alone = judge.read(with_halves), judge.read(alone)
        wanted = [one.wanted for one in asked for _ in range(plan.seeds)]
        report[task] = {
            "with the halves": _shares(read, wanted),
            "the base alone": _shares(read_alone, wanted),
            "style by style": {
                style: _shares(*_of_style(read, wanted, style))["style"] for style in STYLES
            },
        }  # fmt: skip
        pictures |= {task: with_halves[:: plan.seeds], f"{task}, the base alone": alone[:: plan.seeds]}
    return report, pictures


def _tasks(learned: Sequence[tuple[Concept, Scene]]) -> dict[str, list[_Asked]]:
    tasks: dict[str, list[_Asked]] = {task: [] for task in (ANY, WORDS, BOTH, WHOLE)}
    for n, (one, scene) in enumerate(learned):
        subject, style = scene.subjects[0], scene.style
        for kind, colour in THINGS:
            thing = {"style": style, "kind": kind, "colour": colour}
            tasks[ANY].append(_Asked(f"a {colour} {kind}", None, one, thing))
        itself = {"kind": subject.kind, "colour": subject.colour}
        for other in (other for other in STYLES if other != style):
            words = f"a <{one.name}>, {STYLE_WORDS[other][0]}"
            tasks[WORDS].append(_Asked(words, one, None, itself | {"style": other}))
        tasks[WHOLE].append(_Asked(f"a <{one.name}>", one, one, itself | {"style": style}))
        for further in (1, 2):
            lender, lent = learned[(n + further) % len(learned)]
            asked = _Asked(f"a <{one.name}>", one, lender, itself | {"style": lent.style})
            tasks[BOTH].append(asked)
    return tasks


def _draw(base: BaseModel, asked: _Asked, plan: StyleBench) -> list[Image]:
    settings = GenerateSettings(
        asked.prompt, steps=plan.steps, guidance=plan.guidance, seed=plan.seed, count=plan.seeds
    )
    halves = [None if one is None else (one, 1.0) for one in (asked.content, asked.style)]
    return stylize(base, settings, silent, *halves)


def _seeds(plan: StyleBench) -> list[int]:
    return list(range(plan.seed, plan.seed + plan.seeds))


def _shares(read: Sequence[Reading], wanted: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    return {
        field: Share.of([getattr(r, field) == w[field] for r, w in zip(read, wanted, strict=True)]).rounded()
        for field in SCORED
    }


def _of_style(
    read: Sequence[Reading], wanted: Sequence[Mapping[str, str]], style: str
) -> tuple[list[Reading], list[Mapping[str, str]]]:
    kept = [(r, w) for r, w in zip(read, wanted, strict=True) if w["style"] == style]
    return [r for r, _ in kept], [w for _, w in kept]
