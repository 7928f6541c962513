"""DreamBooth (Ruiz et al. 2023): from a handful of pictures to a concept of the library, by an adapter of any kind."""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

from studio.adapter_targets import Target
from studio.bases import BaseSource, find_base, source_sizes
from studio.buckets import nearest_size, told_sizes, training_sizes
from studio.concepts import Concept
from studio.devices import pick_device
from studio.errors import UsageError
from studio.events import Done, Emit, Loss, Notice, Phase, Preview, Step, silent
from studio.home import Home, ensure_free, write_atomic
from studio.images import Picture, check_decodable, check_masks, dataset_notices, find_pictures, mask_file
from studio.models import BaseModel, load_base, module_id
from studio.pipelines.schedulers import ZERO_SNR_NOTE
from studio.trainers.cache import file_id
from studio.trainers.captions import prompt_for, without_trigger
from studio.trainers.checkpoint import (
    Checkpoint,
    check_same_data,
    check_same_training,
    latest_checkpoint,
    save_checkpoint,
)
from studio.trainers.data import Example
from studio.trainers.dataset import encode_dataset, examples_of
from studio.trainers.exports import check_exports, write_exports
from studio.trainers.inits import FROM_DATA, begin_from_data
from studio.trainers.memory import check_memory, naming_the_phase
from studio.trainers.metadata import base_name, shared_metadata
from studio.trainers.optimizer_choice import numbers_kept
from studio.trainers.optimizers import check_optimizer
from studio.trainers.pairs import pair_examples
from studio.trainers.presets import read_facts
from studio.trainers.prior import class_examples
from studio.trainers.processes import Team, check_processes, device_of, leading
from studio.trainers.recipe import Recipe, write_toml
from studio.trainers.report import plot_losses, versions, write_card
from studio.trainers.sample_grid import draw_grid
from studio.trainers.sampling import draw
from studio.trainers.scoring import Scorer, scorer_for
from studio.trainers.stopping import Stopped, stop_requests
from studio.trainers.training import Training, share_of_rate
from studio.trainers.tuners import count_of, make_tuner
from studio.trainers.validation import Validator, divided, read_measured
from studio.trainers.verify import fingerprints, verify_files
from studio.trainers.words import NewWord
from studio.trainers.workplace import RECIPE_FILE, Workplace, check_start, claim, move_in, workplace_of
from studio.trainers.zero_snr import drawing_as_trained


def train_concept(
    recipe: Recipe,
    home: Home,
    emit: Emit = silent,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    processes: int = 1,
    export: tuple[str, ...] = (),
    scorer: Scorer | None = None,
) -> Concept:
    """Train `recipe` and put the concept into the library; `resume` goes on from the newest good checkpoint.
    `device` is torch's name of one; by default the best there is. Several `processes` take a GPU each, or share a CPU.
    `export` names formats of further files beside the concept's. `scorer` reads the pictures of `score_prompts`
    wherever the recipe has the training measured; on the embedded base that is judge A.

    Raises UsageError before the base is loaded for what cannot be trained, Stopped after Ctrl-C (resumable),
    StudioError where the loss is not finite or the disk refuses.
    """
    source = find_base(recipe.base)
    check_processes(recipe, processes, device)
    check_optimizer(recipe, pick_device(device))
    formats = check_exports(recipe, export)
    _check_resolution(source, recipe.resolution)
    pictures = find_pictures(recipe.pictures)
    check_decodable(pictures)
    if recipe.masked and (whole := check_masks(pictures)):
        emit(Notice(f"Pictures without a mask are learned as a whole: {', '.join(whole)}."))
    divided(pictures, recipe)
    check_start(home, recipe.name, resume, overwrite)
    least = 1 if recipe.method == "b-lora" else 2
    for notice in dataset_notices(recipe.pictures, pictures, least):
        emit(Notice(notice))
    if recipe.buckets:
        sizes = training_sizes(source_sizes(source), recipe.resolution, buckets=True)
        emit(Notice(f"{told_sizes(nearest_size(one.width, one.height, sizes) for one in pictures)}."))
    with claim(home, recipe.name, resume) as workplace, naming_the_phase(recipe, emit) as emit:
        found = latest_checkpoint(workplace.checkpoints, lambda text: emit(Notice(text))) if resume else None
        if found is not None:
            check_same_training(found, recipe)
        recipe_file = workplace.folder / RECIPE_FILE
        write_toml(recipe, recipe_file)
        options = " --overwrite" * overwrite + f" --export {','.join(formats)}" * bool(formats)
        again = f"studio train-concept --name {recipe.name} --resume{options}"
        with leading(home, recipe_file, processes, device) as team:
            emit(Phase("load base"))
            base = load_base(source, device_of(0, processes, device), offload=recipe.offload)
            training, data = _prepare(base, recipe, pictures, home, emit, true_sizes=not read_facts(source).own)
            training.team = team
            numbers = (numbers_kept(recipe) + 1) * count_of(training.parameters)
            ensure_free(workplace.folder, 4 * numbers * (recipe.keep_checkpoints + 1))
            if found is not None:
                check_same_data(found, data)
                training.restore(found.tensors)
                emit(Notice(f"Going on after step {training.step} of {recipe.steps}."))
            team.wait()  # what the others make again lies in the cache now
            _run(training, workplace, data, emit, again, scorer or scorer_for(recipe))
        return _finish(training, workplace, home, data, emit, overwrite, pictures, formats)


def follow(recipe: Recipe, home: Home, device: str, team: Team) -> None:
    """Train `recipe` along with the process that leads, which saves and tells; from the same checkpoint."""
    source = find_base(recipe.base)
    base, own = load_base(source, device, offload=recipe.offload), read_facts(source).own
    team.wait()
    training, data = _prepare(base, recipe, find_pictures(recipe.pictures), home, silent, true_sizes=not own)
    training.team = team
    found = latest_checkpoint(workplace_of(home, recipe.name).checkpoints, lambda text: None)
    if found is not None:
        check_same_data(found, data)
        training.restore(found.tensors)
    while training.step < recipe.steps:
        training.take_step()
        if team.agreed(False, base.device):
            return


def _check_resolution(source: BaseSource, resolution: int) -> None:
    step = source_sizes(source).step
    if resolution % step:
        raise UsageError(
            f"resolution is {resolution}; this base needs a multiple of {step} pixels.",
            f"Use --resolution {max(1, round(resolution / step)) * step}, or leave it out for the base's own size.",
        )


def _prepare(
    base: BaseModel, recipe: Recipe, pictures: list[Picture], home: Home, emit: Emit, true_sizes: bool
) -> tuple[Training, str]:
    """The training at step 0, and the fingerprint of all it is made from."""
    cache = home.cache / "examples"
    sizes = training_sizes(base.sizes, recipe.resolution, recipe.buckets)
    pictures, aside = divided(pictures, recipe)
    own, repeats = examples_of(pictures, recipe, sizes)
    held, _ = examples_of(aside, recipe, sizes)
    prior: list[Example] = []
    pairs: list[Example] = []
    if recipe.prior_preservation:
        captions = [without_trigger(prompt_for(picture, recipe), recipe) for picture in pictures]
        prior = class_examples(base, recipe, captions, home.cache / "class-pictures", emit)
    if recipe.pair_share:
        pairs = pair_examples(base, recipe, own, home.cache / "class-pictures", emit)
    used: list[object] = [(file_id(one.path), one.prompt, one.plain, one.region) for one in own + prior + pairs]
    used += [repeats] if set(repeats) != {1} else []
    used += [(file_id(one.path), one.prompt) for one in held]
    masks = [file_id(file) for picture in pictures if recipe.masked and (file := mask_file(picture.path)).is_file()]
    identity = [module_id(base.unet), module_id(base.vae), used, *masks]
    emit(Phase("encode pictures"))
    shown = [*own, *(replace(one, mirrored=True) for one in own if recipe.flip)]  # each in half of its showings
    times = repeats * (len(shown) // len(own))
    instances = encode_dataset(base, shown, recipe.resolution, cache, true_sizes, times)
    kept = encode_dataset(base, held, recipe.resolution, cache, true_sizes) if held else None
    classes, beside = (
        encode_dataset(base, made, recipe.resolution, cache, true_sizes=False) if made else None
        for made in (prior, pairs)
    )
    base.pipe.unet.to(base.device)  # from where offloading keeps it
    tuner = make_tuner(base, recipe)
    word = NewWord(base, recipe) if recipe.new_word else None  # after encoding, lest each has a cache of its own
    training = Training(base, recipe, tuner, instances, classes, beside, kept, word)
    if recipe.init in FROM_DATA:
        emit(Phase("look at the data"))
        begin_from_data(training)
    for one in own:
        if unread := base.unread(one.prompt):
            limit, name = base.text_limit, one.path.name
            emit(Notice(f"The base reads {limit} tokens of a text; of the caption of {name} not: {unread!r}."))
    count = count_of(training.parameters)
    learned = f"{tuner.describe()}{f', and the word {recipe.trigger!r}' if word else ''}"
    emit(Notice(f"{learned}: {count:,} parameters, {4e-6 * count:.1f} MB."))
    check_memory(training, emit)
    return training, hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _run(training: Training, workplace: Workplace, data: str, emit: Emit, again: str, scorer: Scorer | None) -> None:
    """Steps, checkpoints and previews until the recipe's number of steps.

    Raises Stopped after Ctrl-C, with `again` as the command that goes on.
    """
    recipe = training.recipe
    if training.step == 0 and recipe.sample_every:
        _preview(training, workplace, emit)
    validator = Validator(training, workplace.folder, emit, scorer)
    emit(Phase("train", recipe.steps))
    with stop_requests() as stopping:
        begun, first = time.monotonic(), training.step
        while training.step < recipe.steps:
            loss = training.take_step()
            step = training.step
            pace = (time.monotonic() - begun) / (step - first)
            emit(Loss(step, loss, recipe.learning_rate * share_of_rate(recipe, step - 1)))
            emit(Step(step, recipe.steps, pace * (recipe.steps - step)))
            last = step == recipe.steps
            stop = training.team.agreed(stopping() and not last, training.base.device)
            if stop or last or step % recipe.save_every == 0:
                state = Checkpoint(step, training.state(), recipe.model_dump(mode="json"), data)
                save_checkpoint(workplace.checkpoints, state, recipe.keep_checkpoints)
            if stop:
                raise Stopped(f"Stopped after step {step} of {recipe.steps}; it is saved.", f"Go on with: {again}")
            if recipe.sample_every and (last or step % recipe.sample_every == 0):
                _preview(training, workplace, emit)
            if recipe.validate_every and (last or step % recipe.validate_every == 0):
                validator.measure()


def _preview(training: Training, workplace: Workplace, emit: Emit) -> None:
    """Draw the recipe's sample prompts as the training stands; always with the same seeds."""
    recipe = training.recipe
    training.base.unet.eval()
    paths: list[Path] = []
    for number, prompt in enumerate(recipe.sample_prompts):
        seeds = [recipe.seed + number]
        with training.averaged(), drawing_as_trained(training.base, recipe):
            picture = draw(training.base, [prompt], seeds, recipe.resolution, recipe.sample_steps, recipe.guidance)[0]
        path = workplace.samples / f"step-{training.step:06d}-{number}.png"
        paths.append(write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG")))
    emit(Preview(training.step, tuple(paths), recipe.sample_prompts))


def _finish(
    training: Training,
    workplace: Workplace,
    home: Home,
    data: str,
    emit: Emit,
    overwrite: bool,
    pictures: list[Picture],
    formats: tuple[Target, ...],
) -> Concept:
    """Write everything that stands beside the weights, the weights themselves, and move the folder in."""
    emit(Phase("write the concept"))
    recipe, family, kind = training.recipe, training.base.family, type(training.optimizer.optimizer)
    notes = {
        "studio.name": recipe.name,
        "studio.trigger": recipe.trigger,
        "studio.class_word": recipe.class_word,
        "studio.base": base_name(recipe.base),
        "studio.family": family,
        "studio.method": recipe.method,
        **training.tuner.notes,
        **({ZERO_SNR_NOTE: "True"} if recipe.zero_terminal_snr else {}),
        "studio.steps": str(recipe.steps),
        "studio.data": data,
        "studio.versions": json.dumps(versions()),
    } | shared_metadata(
        recipe,
        training.base.source.family,
        prompts=[prompt_for(picture, recipe) for picture in pictures],
        shown=sum(picture.repeats for picture in pictures),
        prediction=training.schedule.prediction,
        optimizer=f"{kind.__module__}.{kind.__qualname__}",
        precision=training.accelerator.mixed_precision,
        processes=training.team.size,
    )
    concept = Concept(
        recipe.name, recipe.trigger, recipe.class_word, recipe.base, family, recipe.method, workplace.folder
    )
    with training.averaged():
        words = {} if training.word is None else training.word.rows()
        training.tuner.write(concept.adapter_file, notes, words)
        trained = fingerprints(training.tuner.factors(), words)
    emit(Phase("verify the file"))
    verify_files([concept.adapter_file], trained)
    measured = read_measured(workplace.folder, training.step) if recipe.validate_every else []
    plot_losses(training.losses, workplace.folder / "loss.png", measured)
    shown = draw_grid(workplace.samples, recipe, workplace.folder / "samples.png")
    if formats:
        emit(Phase("write and verify further files"))
    exports = write_exports(concept, formats, trained)
    write_card(concept, recipe, notes, training.tuner.loads, shown, exports)
    kept = move_in(home, workplace, concept, overwrite)
    emit(Done(kept.folder, f"{kept.name} is learned: call it <{kept.name}> in prompts ({kept.phrase!r})."))
    return kept
