"""The end of a training: what was learned becomes concepts of the library, each complete by itself."""

import json
import shutil

from studio.adapter_targets import Target
from studio.concepts import Concept
from studio.events import Done, Emit, Phase
from studio.home import Home
from studio.images import Picture
from studio.pipelines.schedulers import ZERO_SNR_NOTE
from studio.trainers.captions import prompt_for
from studio.trainers.exports import write_exports
from studio.trainers.metadata import base_name, shared_metadata
from studio.trainers.recipe import Recipe
from studio.trainers.report import plot_losses, versions, write_card
from studio.trainers.sample_grid import draw_grid
from studio.trainers.training import Training
from studio.trainers.validation import read_measured
from studio.trainers.verify import fingerprints, verify_files
from studio.trainers.workplace import Workplace, move_in


def finish(
    training: Training,
    workplaces: list[Workplace],
    home: Home,
    data: str,
    emit: Emit,
    overwrite: bool,
    pictures: list[list[Picture]],
    formats: tuple[Target, ...],
) -> Concept:
    """Write everything that stands beside the weights, and the weights themselves, into a workplace for each concept,
    and move all of them in. Returns the first concept."""
    emit(Phase("write the concept"))
    recipe, first = training.recipe, workplaces[0]
    measured = read_measured(first.folder, training.step) if recipe.validate_every else []
    plot_losses(training.losses, first.folder / "loss.png", measured)
    shown = draw_grid(first.samples, recipe, first.folder / "samples.png")
    for other in workplaces[1:]:
        passing = shutil.ignore_patterns(first.checkpoints.name)
        shutil.copytree(first.folder, other.folder, ignore=passing, dirs_exist_ok=True)
    views = list(zip(recipe.views, workplaces, strict=True))
    concepts = [
        Concept(
            view.name, view.trigger, view.class_word, view.base, training.base.family, view.method, workplace.folder
        )
        for view, workplace in views
    ]
    told = [_notes(training, view, data, pictures) for view, _ in views]
    with training.averaged():
        words = {} if training.word is None else training.word.rows()
        for concept, notes in zip(concepts, told, strict=True):
            training.tuner.write(concept.adapter_file, notes, words)
        trained = fingerprints(training.tuner.factors(), words)
    emit(Phase("verify the file"))
    verify_files([concept.adapter_file for concept in concepts], trained)
    if formats:
        emit(Phase("write and verify further files"))
    for concept, notes, (view, _) in zip(concepts, told, views, strict=True):
        exports = write_exports(concept, formats, trained)
        write_card(concept, view, notes, training.tuner.loads, shown, exports)
    kept = move_in(home, list(zip(workplaces, concepts, strict=True)), overwrite)
    learned, called, phrases = (
        " and ".join(made)
        for made in zip(*((one.name, f"<{one.name}>", repr(one.phrase)) for one in kept), strict=True)
    )
    are, them = ("are", "them") if kept[1:] else ("is", "it")
    emit(Done(kept[0].folder, f"{learned} {are} learned: call {them} {called} in prompts ({phrases})."))
    return kept[0]


def _notes(training: Training, view: Recipe, data: str, pictures: list[list[Picture]]) -> dict[str, str]:
    """The metadata of the file of the concept that is in front in `view`."""
    recipe, kind = training.recipe, type(training.optimizer.optimizer)
    return {
        "studio.name": view.name,
        "studio.trigger": view.trigger,
        "studio.class_word": view.class_word,
        "studio.base": base_name(view.base),
        "studio.family": training.base.family,
        "studio.method": view.method,
        **training.tuner.notes,
        **({ZERO_SNR_NOTE: "True"} if view.zero_terminal_snr else {}),
        **({"studio.others": _others(view)} if view.others else {}),
        "studio.steps": str(view.steps),
        "studio.data": data,
        "studio.versions": json.dumps(versions()),
    } | shared_metadata(
        view,
        training.base.source.family,
        prompts={
            one.name: [prompt_for(picture, one) for picture in those]
            for one, those in zip(recipe.views, pictures, strict=True)
        },
        shown=sum(picture.repeats for those in pictures for picture in those),
        prediction=training.schedule.prediction,
        optimizer=f"{kind.__module__}.{kind.__qualname__}",
        precision=training.accelerator.mixed_precision,
        processes=training.team.size,
    )


def _others(view: Recipe) -> str:
    return json.dumps({one.name: f"{one.trigger} {one.class_word}" for one in view.others}, ensure_ascii=False)
