"""New concepts made of those of the library: one in fewer ranks, or two in one. Jobs, named by import string."""

import shutil
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from studio.concepts import ADAPTER_FILE, Concept, file_hash, write_concept
from studio.errors import UsageError
from studio.events import Notice, Phase
from studio.home import Home
from studio.job_records import Order
from studio.job_worker import Bench
from studio.library import Library
from studio.ui.asks import Ask, Name

if TYPE_CHECKING:
    from studio.adapters import Adapter

Rank = Annotated[int, Field(ge=1, le=1024)]
Weight = Annotated[float, Field(ge=-10, le=10)]
_BESIDE = "cpu"  # a queue of its own: seconds of arithmetic do not wait for hours of training on the best device


class ResizeAsk(Ask):
    """A copy of the concept `name` with at most `rank` ranks a layer, to be called `new`."""

    name: Name
    new: Name
    rank: Rank

    def order(self, home: Home) -> Order:
        """The job that does this; raises UsageError for names that are unknown or taken."""
        library = Library(home)
        library.find(self.name)
        library.check_free(self.new)
        title = f"{self.name} in rank {self.rank}"
        return Order("resize", title, "studio.ui.reworking:resize", self.arguments(), _BESIDE)


class MergeAsk(Ask):
    """Two concepts in one adapter, each by its weight, to be called `new`: exactly, or in at most `rank` ranks."""

    names: tuple[Name, Name]
    weights: tuple[Weight, Weight] = (1.0, 1.0)
    new: Name
    rank: Rank | None = None

    def order(self, home: Home) -> Order:
        """The job that does this; raises UsageError for names that are unknown or taken, and for different bases."""
        library = Library(home)
        _check_pair([library.find(name) for name in self.names], self.weights)
        library.check_free(self.new)
        title = f"{' and '.join(self.names)} in one"
        return Order("merge", title, "studio.ui.reworking:merge", self.arguments(), _BESIDE)


def resize(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Make the smaller copy that a ResizeAsk asks for, and tell what is lost."""
    from studio.adapter_algebra import resize as cut_down
    from studio.adapters import load_concept

    ask, library = ResizeAsk.read(arguments), Library(bench.home)
    concept = library.find(ask.name)
    bench.emit(Phase("Find the nearest adapter of that rank"))
    cut = cut_down(load_concept(concept), rank=ask.rank)
    bench.emit(Notice(f"{cut.error:.1%} of the change is lost."))
    like = replace(concept, name=ask.new, source=f"{ask.name}, in rank {ask.rank}")
    return _keep(library, cut.adapter, like) | {"error": cut.error}


def merge(arguments: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Make the one concept that a MergeAsk asks for."""
    from studio import adapter_algebra as algebra
    from studio.adapters import load_concept

    ask, library = MergeAsk.read(arguments), Library(bench.home)
    concepts = [library.find(name) for name in ask.names]
    _check_pair(concepts, ask.weights)
    bench.emit(Phase("Add the adapters up"))
    parts = [(load_concept(one), weight) for one, weight in zip(concepts, ask.weights, strict=True)]
    if ask.rank is None:
        adapter, lost = algebra.add(parts, ask.new), {}
    else:
        cut = algebra.add_and_cut(parts, ask.new, ask.rank)
        adapter, lost = cut.adapter, {"error": cut.error}
        bench.emit(Notice(f"{cut.error:.1%} of the change is lost."))
    trigger, class_word = _words_of(*concepts)
    like = replace(
        concepts[0], name=ask.new, trigger=trigger, class_word=class_word, method="merge", tags=(),
        source=f"{ask.names[0]} and {ask.names[1]}",
    )  # fmt: skip
    return _keep(library, adapter, like) | lost


def _check_pair(concepts: list[Concept], weights: tuple[float, float]) -> None:
    one, other = concepts
    if one.name == other.name:
        raise UsageError(f"{one.name} alone cannot be merged.", "Choose two different concepts.")
    if one.base != other.base:
        raise UsageError(
            f"{one.name} was made for {one.base}, {other.name} for {other.base}.", "Merge concepts of one base."
        )
    if not all(weights):
        raise UsageError("A weight of 0 leaves a concept out.", "Give weights that are not 0; 1 is usual.")


def _words_of(one: Concept, other: Concept) -> tuple[str, str]:
    """(trigger, class word), together the phrases of both; of two that answer to the same, just that."""
    if one.phrase == other.phrase:
        return one.trigger, one.class_word
    return f"{one.phrase} and {other.trigger}", other.class_word


def _keep(library: Library, adapter: "Adapter", like: Concept) -> dict[str, Any]:
    """Take `adapter` into the library as `like` describes it; whole or not at all."""
    from studio.adapter_writing import write_adapter

    # diffusers' own layout holds no more than plain pairs and words
    target: Literal["diffusers", "kohya"] = "kohya" if adapter.biases else "diffusers"
    library.check_free(like.name)
    staging = library.root / f".making-{uuid.uuid4().hex[:8]}.tmp"
    try:
        file = staging / ADAPTER_FILE
        write_adapter(adapter, file, target)
        write_concept(replace(like, folder=staging, sha256=file_hash(file)))
        concept = library.add(staging, like.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return {"concept": concept.name, "layers": len(adapter.layers), "bytes": concept.adapter_file.stat().st_size}
