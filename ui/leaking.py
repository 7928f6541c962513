"""How like each concept every place of a picture looks: who stands where, and who bled into whom."""

from typing import TYPE_CHECKING, Any

from studio.bases import EMBEDDED
from studio.events import Emit
from studio.library import Library
from studio.ui.judging import known_pictures

if TYPE_CHECKING:
    from studio.ui.drawing import Drawn


def leaks_of(drawn: "Drawn", library: Library, emit: Emit) -> dict[str, Any]:
    """For every picture of two concepts or more `matrix[place][concept]`, cosines of judge A; empty where it is blind.

    A place is the concept's box, or without boxes its column from left to right in the order of the prompt.
    """
    plan = drawn.plan
    concepts = [one for one, _ in plan.concepts]
    if plan.source.name != EMBEDDED or len(concepts) < 2:
        return {}
    known = known_pictures(concepts, [], {}, emit)
    if len(known) < len(concepts):
        return {}
    from torch.nn.functional import normalize

    from studio.concepts import placeholders
    from studio.judge import Judge
    from studio.pipelines.scores import side_by_side

    judge = Judge.load("A")
    names = [name for name in placeholders(plan.settings.prompt) if name in known]
    likes = {name: normalize(judge.embed(list(known[name].pictures)).mean(0), dim=0) for name in names}
    columns = dict(zip(names, side_by_side(len(names)), strict=True))
    boxes = {} if plan.layout is None else {name: box.sides for name, box in plan.layout.boxes.items()}
    places = [boxes.get(name, columns[name]) for name in names]

    def matrix(picture: Any) -> list[list[float]]:
        seen = normalize(judge.embed([picture] * len(places), places), dim=1)
        return [[round(float(place @ likes[name]), 3) for name in names] for place in seen]

    made = {method: [matrix(one.picture) for one in several] for method, several in drawn.candidates.items()}
    return {"names": names, "matrices": made}
