"""How well do ways to compose work? Concepts side by side in scenes that their training never showed, by every method.

All methods draw the same prompts from the same seeds; to those that look at boxes the places of the prompt are given.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from studio.concepts import file_hash
from studio.events import Emit, Phase, Step
from studio.judge import Judge
from studio.models import BaseModel, module_id
from studio.picturebook import SAMPLE_SUBJECTS
from studio.pipelines.bench_store import Result, Store, fingerprint
from studio.pipelines.compose_arms import Arm, Ask, Known, draw_and_mark
from studio.pipelines.concept_bench import SCENES, gallery_of
from studio.pipelines.scores import Setting, canvas


@dataclass(frozen=True)
class ComposeBench:
    """`seeds` pictures of each group of concepts; the scenes take turns."""

    seeds: int = 8
    seed: int = 9_500_000
    steps: int = 25
    guidance: float = 2.5
    scenes: tuple[Setting, ...] = SCENES

    def ask(self, members: tuple[Known, ...], numbers: Sequence[int]) -> Ask:
        """Pictures number `numbers` of a group, all of one scene; groups have seeds of their own."""
        first = self.seed + 1000 * int(_order([one.concept.name for one in members])[:6], 16)
        seeds = tuple(first + number for number in numbers)
        return Ask(members, self.scenes[numbers[0] % len(self.scenes)], seeds, self.steps, self.guidance)


def groups_of(names: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """All combinations, from left to right, in an order that means nothing and does not depend on which other names
    there are; pairs of one class, the hardest, come first."""
    groups = [_turned(group) for group in combinations(sorted(names), size)]
    return sorted(groups, key=lambda group: (size == 2 and not same_class(group), _order(group)))


def same_class(group: Sequence[str]) -> bool:
    """Whether two of the sample concepts are of one class."""
    return len({SAMPLE_SUBJECTS[name].kind for name in group}) < len(group)


def bench_compose(
    base: BaseModel,
    judge: Judge,
    groups: Sequence[tuple[Known, ...]],
    arms: Sequence[Arm],
    plan: ComposeBench,
    store: Store,
    emit: Emit,
) -> list[Result]:
    """What each arm makes of each group; what the store has already is taken from it, and the rest is put there."""
    gallery = cache(lambda subject: gallery_of(judge, subject))
    weights = (base.weights_id(), module_id(judge.net))
    found: list[Result] = []
    for at, members in enumerate(groups):
        group = tuple(one.concept.name for one in members)
        emit(Phase(f"{' and '.join(group)} ({at + 1} of {len(groups)})", len(arms)))
        for done, arm in enumerate(arms):
            asks = [plan.ask(members, [number]) for number in range(plan.seeds)]
            size = canvas(base.native_size, len(members))
            made_from = {ask.seeds[0]: fingerprint((weights, size, *_decided(arm, ask))) for ask in asks}
            there = store.find(arm.name, group, list(made_from.values()))
            missing = [n for n, ask in enumerate(asks) if ask.seeds[0] not in {one.seed for one in there}]
            for numbers in _of_one_scene(missing, plan):
                ask = plan.ask(members, numbers)
                pictures, marks = draw_and_mark(base, judge, gallery, arm, ask)
                made = [Result(arm.name, group, s, made_from[s], m) for s, m in zip(ask.seeds, marks, strict=True)]
                store.keep(made, pictures)
                there += made
            found += sorted(there, key=lambda one: one.seed)
            emit(Step(done + 1, len(arms)))
    return found


def _order(words: Sequence[str]) -> str:
    return hashlib.sha256("+".join(words).encode()).hexdigest()


def _turned(group: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(group, key=lambda one: _order([*group, one])))


def _of_one_scene(numbers: Sequence[int], plan: ComposeBench) -> Iterator[list[int]]:
    scenes = len(plan.scenes)
    for scene in dict.fromkeys(number % scenes for number in numbers):
        yield [number for number in numbers if number % scenes == scene]


def _decided(arm: Arm, ask: Ask) -> tuple[object, ...]:
    """What decides one picture and its marks, beside the weights of base and judge, and the size."""
    composer = None if arm.method is None else repr(arm.method.make())
    adapters = [(one.concept.phrase, file_hash(one.concept.adapter_file)) for one in ask.members]
    return arm.name, composer, adapters, ask.scene, ask.seeds, ask.steps, ask.guidance
