"""DreamBooth (Ruiz et al. 2023): from a handful of pictures to a concept of the library, by an adapter of any kind."""

import hashlib
import json
import time

from studio.bases import BaseSource, find_base, source_sizes
from studio.concepts import Concept
from studio.devices import pick_device
from studio.errors import UsageError
from studio.events import Emit, Loss, Notice, Phase, Preview, Step, silent
from studio.home import Home, ensure_free, write_atomic
from studio.images import Picture
from studio.models import BaseModel, load_base
from studio.trainers.captions import pictures_of
from studio.trainers.checkpoint import (
    Checkpoint,
    check_same_data,
    check_same_training,
    latest_checkpoint,
    save_checkpoint,
)
from studio.trainers.exports import check_exports
from studio.trainers.finishing import finish
from studio.trainers.inits import FROM_DATA, begin_from_data
from studio.trainers.losses import noise_schedule
from studio.trainers.material import check_pictures, encoded, gathered
from studio.trainers.memory import check_memory, naming_the_phase
from studio.trainers.optimizer_choice import numbers_kept
from studio.trainers.optimizers import check_optimizer
from studio.trainers.presets import read_facts
from studio.trainers.processes import Team, check_processes, device_of, leading
from studio.trainers.recipe import Recipe, write_toml
from studio.trainers.sample_grid import forget_previews
from studio.trainers.sampling import draw
from studio.trainers.scoring import Scorer, scorers_for
from studio.trainers.stopping import Stopped, stop_requests
from studio.trainers.training import Training, share_of_rate
from studio.trainers.tuners import count_of, kind_of, make_tuner
from studio.trainers.validation import Validator
from studio.trainers.words import NewWord, check_words_free
from studio.trainers.workplace import RECIPE_FILE, Workplace, check_start, claim, workplace_of
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
    """Train `recipe` and put its concepts into the library; `resume` goes on from the newest good checkpoint. Returns
    the first; the others, if there are any, are under their names.
    `device` is torch's name of one; by default the best there is. Several `processes` take a GPU each, or share a CPU.
    `export` names formats of further files beside the concept's. `scorer` reads the pictures of `score_prompts`
    wherever the recipe has the training measured; on the embedded base that is judge A.

    Raises UsageError before the base is loaded for what cannot be trained, Stopped after Ctrl-C (resumable),
    StudioError where the loss is not finite or the disk refuses.
    """
    source = find_base(recipe.base)
    check_processes(recipe, processes, device)
    check_optimizer(recipe, pick_device(device))
    if recipe.offload and pick_device(device).type == "cpu":
        raise UsageError("offload moves weights off a GPU; this is a CPU.", "Leave out --vram, or set offload = false.")
    formats = check_exports(recipe, export)
    _check_resolution(source, recipe.resolution)
    check_start(home, recipe.names, resume, overwrite)
    pictures = check_pictures(recipe, source, emit)
    with claim(home, recipe.names, resume) as workplaces, naming_the_phase(recipe, emit) as emit:
        workplace = workplaces[0]
        found = latest_checkpoint(workplace.checkpoints, lambda text: emit(Notice(text))) if resume else None
        if found is not None:
            check_same_training(found, recipe)
            if found.step > recipe.steps:
                raise UsageError(
                    f"steps is {recipe.steps}, and {found.step} are done.", f"Use --steps {found.step} or more."
                )
        again = f"studio train-concept --name {recipe.name} --resume{home.option}"
        again += f" --device {device}" * bool(device) + f" --processes {processes}" * (processes > 1)
        again += " --overwrite" * overwrite + f" --export {','.join(formats)}" * bool(formats)
        with leading(home, recipe, workplace.folder, processes, device) as team:
            emit(Phase("load base"))
            base = load_base(source, device_of(0, processes, device), offload=recipe.offload)
            training, data = _prepare(base, recipe, pictures, home, emit, true_sizes=not read_facts(source).own)
            training.team = team
            numbers = (numbers_kept(recipe) + 1) * count_of(training.parameters)
            ensure_free(workplace.folder, 4 * numbers * (recipe.keep_checkpoints + len(workplaces)))
            if found is not None:
                check_same_data(found, data, base.dtype)
                training.restore(found.tensors)
                emit(Notice(f"Going on after step {training.step} of {recipe.steps}."))
            shown = () if found is None else found.recipe["sample_prompts"]
            forget_previews(workplace.samples, training.step, shown, recipe.sample_prompts)
            write_toml(recipe, workplace.folder / RECIPE_FILE)  # only now: what is refused leaves the one before
            team.wait()  # what the others make again lies in the cache now
            training.begin_alike()
            _run(training, workplace, data, emit, again, scorers_for(recipe, scorer))
        return finish(training, workplaces, home, data, emit, overwrite, pictures, formats)


def follow(recipe: Recipe, home: Home, device: str, team: Team) -> None:
    """Train `recipe` along with the process that leads, which saves and tells; from the same checkpoint."""
    source = find_base(recipe.base)
    base, own = load_base(source, device, offload=recipe.offload), read_facts(source).own
    team.wait()
    training, data = _prepare(base, recipe, pictures_of(recipe), home, silent, true_sizes=not own)
    training.team = team
    found = latest_checkpoint(workplace_of(home, recipe.name).checkpoints, lambda text: None)
    if found is not None:
        check_same_data(found, data, base.dtype)
        training.restore(found.tensors)
    training.begin_alike()
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
    base: BaseModel, recipe: Recipe, pictures: list[list[Picture]], home: Home, emit: Emit, true_sizes: bool
) -> tuple[Training, str]:
    """The training at step 0, and the fingerprint of all it is made from."""
    check_fits(base, recipe)
    found, cache = gathered(base, recipe, pictures, home, emit), home.cache / "examples"
    identity = found.identity(base)
    emit(Phase("encode pictures"))
    instances = encoded(base, found.own, recipe, cache, true_sizes, recipe.flip)
    assert instances is not None
    held = encoded(base, found.held, recipe, cache, true_sizes)
    classes, pairs = (encoded(base, made, recipe, cache, true_sizes=False) for made in (found.prior, found.pairs))
    base.pipe.unet.to(base.device)  # from where offloading keeps it
    tuner = make_tuner(base, recipe)
    word = NewWord(base, recipe) if recipe.new_word else None  # after encoding, lest each has a cache of its own
    training = Training(base, recipe, tuner, instances, classes, pairs, held, word)
    if recipe.init in FROM_DATA:
        emit(Phase("look at the data"))
        begin_from_data(training)
    for one in (one for part in found.own for one in part.examples):
        if unread := base.unread(one.prompt):
            limit, name = base.text_limit, one.path.name
            emit(Notice(f"The base reads {limit} tokens of a text; of the caption of {name} not: {unread!r}."))
    count = count_of(training.parameters)
    words = f", and the word{'s' * bool(recipe.others)} {', '.join(map(repr, recipe.triggers))}" if word else ""
    emit(Notice(f"{tuner.describe()}{words}: {count:,} parameters, {4e-6 * count:.1f} MB."))
    check_memory(training, emit)
    return training, hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def check_fits(base: BaseModel, recipe: Recipe) -> None:
    """Raise UsageError where `base` has not the layers, the words or the noise that `recipe` wants."""
    if base.guidance_width:
        raise UsageError(
            f"The base {recipe.base!r} was distilled to predict guided at once, and is not made to be trained.",
            "Train on the base that it was made from.",
        )
    kind_of(recipe).layers_of(base, recipe)
    noise_schedule(base, recipe.zero_terminal_snr)
    if recipe.new_word:
        check_words_free(base, recipe.triggers)


def _run(training: Training, workplace: Workplace, data: str, emit: Emit, again: str, scorers: list[Scorer]) -> None:
    """Steps, checkpoints and previews until the recipe's number of steps.

    Raises Stopped after Ctrl-C, with `again` as the command that goes on.
    """
    recipe, validator = training.recipe, Validator(training, workplace.folder, emit, scorers)
    _preview(training, workplace, emit)
    validator.measure()
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
                state = Checkpoint(
                    step, training.state(), recipe.model_dump(mode="json"), data, str(training.base.dtype)
                )
                save_checkpoint(workplace.checkpoints, state, recipe.keep_checkpoints)
            if stop:
                raise Stopped(f"Stopped after step {step} of {recipe.steps}; it is saved.", f"Go on with: {again}")
            _preview(training, workplace, emit)
            validator.measure()


def _preview(training: Training, workplace: Workplace, emit: Emit) -> None:
    """Draw the recipe's sample prompts as the training stands, always with the same seeds; where that is due, and was
    not done before an interruption."""
    recipe, step = training.recipe, training.step
    paths = [workplace.samples / f"step-{step:06d}-{number}.png" for number in range(len(recipe.sample_prompts))]
    if not training.due(recipe.sample_every) or all(path.is_file() for path in paths):
        return
    training.base.unet.eval()
    for number, (prompt, path) in enumerate(zip(recipe.sample_prompts, paths, strict=True)):
        seeds = [recipe.seed + number]
        with training.averaged(), drawing_as_trained(training.base, recipe):
            picture = draw(training.base, [prompt], seeds, recipe.resolution, recipe.sample_steps, recipe.guidance)[0]
        write_atomic(path, lambda file, picture=picture: picture.save(file, "PNG"))
    emit(Preview(step, tuple(paths), recipe.sample_prompts))
