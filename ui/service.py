"""What the pages, the API and the command line ask of the studio: checked at once, done by the queue."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from studio.bases import ALIASES, EMBEDDED
from studio.datasets import Datasets, sample_folder, samples
from studio.errors import UsageError
from studio.home import Home
from studio.job_records import Order
from studio.job_runner import ensure_runner
from studio.jobs import Job, JobStore
from studio.library import Library
from studio.ui.asks import Ask, ComposeAsk, EvaluateAsk, Name, StylizeAsk, Text, train_order

if TYPE_CHECKING:
    from studio.trainers.recipe import Recipe

SAMPLE = "sample:"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_OWN_FIELDS = ("name", "class_word", "method", "preset", "base", "trigger")  # of a recipe, that TrainAsk has too
TERMINAL_ONLY = ("clip", "dino", "detector", "references")


class TrainAsk(Ask):
    """A training as a page asks for it; `dataset` is the name of an uploaded set, or `sample:NAME`. `settings` are any
    others of a recipe, by name."""

    dataset: Name
    name: Name
    class_word: Annotated[str, Field(min_length=1, max_length=64)]
    method: Name = "lora"
    preset: Name = "normal"
    base: Text | None = None
    trigger: Text | None = None
    settings: Annotated[dict[str, Any], Field(max_length=80, default_factory=dict)]
    overwrite: bool = False


class Service:
    """The studio of one home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.store = JobStore(home)
        self.library = Library(home)
        self.datasets = Datasets(home)

    def compose(self, ask: ComposeAsk) -> Job:
        """Queue a composition; raises UsageError for what cannot be drawn."""
        self._check(ask)
        plan = ask.plan(self.home)
        return self.submit(ask.model_copy(update={"seed": plan.settings.seed}).order())

    def stylize(self, ask: StylizeAsk) -> Job:
        """Queue a picture of a content in a style; raises UsageError for what cannot be drawn."""
        from studio.ui.cmd_stylize import plan_of

        self._check(ask)
        wanted = {"content": (ask.content, ask.content_strength), "style": (ask.style, ask.style_strength)}
        plan = plan_of(self.home, ask.options(), wanted, ask.base, None, None)
        return self.submit(ask.model_copy(update={"seed": plan.settings.seed}).order())

    def evaluate(self, ask: EvaluateAsk) -> Job:
        """Queue an evaluation; raises UsageError for what cannot be scored."""
        from studio.ui.evaluating import plan_evaluation
        from studio.ui.judging import Eyes

        self._check(ask)
        plan_evaluation(self.home, ask, {}, Eyes())
        return self.submit(ask.order())

    def recipe(self, ask: TrainAsk) -> "Recipe":
        """The complete recipe of a training; raises UsageError for what is missing or cannot be."""
        from studio.trainers.planning import plan_recipe

        self.check_base(ask.base)
        if foreign := [key for key in (*_OWN_FIELDS, "pictures", "others") if key in ask.settings]:
            raise UsageError(f"{foreign[0]} is not among the settings.", "Give it by its own field, or in a terminal.")
        given = {name: getattr(ask, name) for name in _OWN_FIELDS}
        given |= {"pictures": self.pictures(ask.dataset)} | ask.settings
        return plan_recipe({key: value for key, value in given.items() if value is not None}, None, self.home)

    def check_base(self, base: str | None) -> None:
        """Raise UsageError for a base that is called by its place on the disk: pages and programs know names."""
        known = {EMBEDDED, *ALIASES, *(one.base for one in self.library.concepts())}
        if base is None or base in known:
            return
        if not _HUB_ID.fullmatch(base) or base.endswith(".safetensors") or Path(base).exists():
            raise UsageError(
                f"{base[:80]!r} is no name of a base.",
                f"Use {', '.join((EMBEDDED, *ALIASES))}, a hub id, or a base of the library's concepts; folders and"
                " files are for the terminal.",
            )

    def _check(self, ask: ComposeAsk | StylizeAsk | EvaluateAsk) -> None:
        """Raise UsageError for what names files of this machine."""
        self.check_base(ask.base)
        if named := [key for key in TERMINAL_ONLY if getattr(ask, key, None)]:
            raise UsageError(f"{named[0]} is given.", "Networks and pictures on the disk are for the terminal.")

    def train(self, ask: TrainAsk) -> Job:
        """Queue a training; raises UsageError for what cannot be trained."""
        recipe = self.recipe(ask)
        self.check_start(recipe, ask.overwrite)
        return self.submit(train_order(recipe, overwrite=ask.overwrite))

    def check_start(self, recipe: "Recipe", overwrite: bool) -> None:
        """Raise UsageError where `recipe` must not be trained now: its name is taken, or its pictures are unusable."""
        from studio.trainers.captions import pictures_of
        from studio.trainers.workplace import check_start

        pictures_of(recipe)
        for job in self.store.jobs(("waiting", "running", "paused")):
            told = job.arguments.get("recipe", {}) if job.kind == "train" else {}
            names = {told.get("name"), *(one["name"] for one in told.get("others", ()))}
            if taken := names.intersection(recipe.names):
                problem = f"Job {job.id} trains {taken.pop()!r} already."
                raise UsageError(problem, "Wait for it, cancel it, or choose another name.")
        check_start(self.home, recipe.names, False, overwrite)

    def add_samples(self) -> list[str]:
        """Bring the shipped sample concepts into the library; returns the names of all of them."""
        from studio.trainers.shipped_concepts import add_shipped

        return add_shipped(self.home)

    def pictures(self, dataset: str) -> Path:
        """The folder of a set; raises UsageError where there is none."""
        if dataset.startswith(SAMPLE):
            name = dataset.removeprefix(SAMPLE)
            if name not in samples():
                raise UsageError(f"There is no sample {name[:40]!r}.", f"There are: {', '.join(samples())}.")
            return sample_folder(name)
        return self.datasets.folder(dataset)

    def submit(self, order: Order) -> Job:
        """Put `order` into the queue, and see to it that somebody works at it."""
        job = self.store.submit(order)
        ensure_runner(self.home, job.device)
        return job

    def again(self, number: int) -> Job:
        """Retry a job, or let a paused one go on."""
        job = self.store.job(number)
        job = self.store.resume(number) if job.state == "paused" else self.store.retry(number)
        ensure_runner(self.home, job.device)
        return job

    def clone(self, number: int) -> Job:
        """Do the same once more, as a new job."""
        job = self.store.clone(number)
        ensure_runner(self.home, job.device)
        return job

    def without_places(self, text: str) -> str:
        """`text` without the place of the home on the disk, which pages and programs need not know."""
        return text.replace(str(self.home.root), "the state folder")

    def get_ready(self) -> None:
        """Let a worker load what the first picture will need, while the page is read."""
        ensure_runner(self.home, ready="studio.ui.work:get_ready")

    def wake(self) -> None:
        """See to it that somebody works where jobs wait, and that what died is known to be dead."""
        self.store.reconcile()
        for device in {job.device for job in self.store.jobs(("waiting",)) if not job.terminal}:
            ensure_runner(self.home, device)
