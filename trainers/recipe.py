"""Everything a training needs, in one frozen object that goes to TOML and back."""

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from studio.errors import UsageError
from studio.home import safe_name, write_atomic
from studio.trainers.optimizer_choice import OptimizerName

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")

Words = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weighting = Literal["none", "min-snr", "debiased"]
Timesteps = Literal["uniform", "logit-normal"]
Method = Literal["lora", "krona", "b-lora", "lokr", "loha", "oft"]
Init = Literal["gaussian", "default", "orthogonal", "pissa", "olora", "eva", "lora-ga"]


class Other(BaseModel):
    """A further concept of a training: what of its recipe is not shared with the first one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Words
    pictures: Path
    class_word: Words
    trigger: Words
    prior_prompts: Annotated[tuple[Words, ...], Field(min_length=1)]
    pair_prompts: tuple[Words, ...] = ()
    score_prompts: tuple[Words, ...] = ()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        return safe_name(value, "concept's name")


class Recipe(BaseModel):
    """One training, complete: the same recipe on the same pictures and base gives the same weights on a CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Words
    pictures: Path
    class_word: Words
    trigger: Words
    others: tuple[Other, ...] = ()
    base: Words
    method: Method = "lora"
    preset: Literal["quick", "normal", "best"] = "normal"

    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Annotated[float, Field(gt=0)]
    dora: bool = False
    rank_stabilised: bool = False
    dropout: Share = 0.0
    init: Init = "gaussian"
    factors: tuple[Count, Count] | None = None
    parameter_count: Count | None = None
    decompose_factor: Count | None = None
    block_size: Annotated[int, Field(ge=2)] | None = None
    targets: Annotated[tuple[Words, ...], Field(min_length=1)] = ATTENTION
    blocks: tuple[Words, ...] = ()
    new_word: bool = False
    word_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3

    text_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    text_learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-5

    steps: Count
    optimizer: OptimizerName = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    up_rate_ratio: Annotated[float, Field(gt=0)] = 1.0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    batch_size: Count
    gradient_accumulation: Count = 1
    gradient_checkpointing: bool = False
    offload: bool = False
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Share, Share] = (0.9, 0.999)
    ema: Share = 0.0
    resolution: Annotated[int, Field(ge=16, le=4096)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    timesteps: Timesteps = "uniform"
    weighting: Weighting = "none"
    snr_gamma: Annotated[float, Field(gt=0)] = 5.0
    huber: Annotated[float, Field(gt=0)] | None = None
    noise_offset: Share = 0.0
    zero_terminal_snr: bool = False

    buckets: bool = False
    flip: bool = False
    masked: bool = False
    mix_instance_prompt: bool = False
    prior_preservation: bool = True
    prior_target: Literal["picture", "base"] = "picture"
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    prior_count: Count
    prior_prompts: Annotated[tuple[Words, ...], Field(min_length=1)]

    pair_share: Share = 0.0
    pair_count: Count = 24
    pair_prompts: tuple[Words, ...] = ()

    held_out: Annotated[int, Field(ge=0)] = 0
    validate_every: Annotated[int, Field(ge=0)] = 0
    score_prompts: tuple[Words, ...] = ()
    save_every: Count
    keep_checkpoints: Count = 2
    sample_every: Annotated[int, Field(ge=0)]
    sample_prompts: tuple[Words, ...]
    sample_steps: Count = 20
    guidance: Annotated[float, Field(ge=0)]

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        return safe_name(value, "concept's name")

    @model_validator(mode="after")
    def _something_beside(self) -> "Recipe":
        if self.pair_share and not any(one.pair_prompts for one in (self, *self.others)):
            raise ValueError("pair_share asks for pictures of two, and pair_prompts names nothing to stand beside")
        return self

    @model_validator(mode="after")
    def _encoders_at_hand(self) -> "Recipe":
        if self.offload and (self.new_word or self.text_rank):
            raise ValueError("offload keeps the text encoders off the device, and new_word or text_rank trains in them")
        return self

    @model_validator(mode="after")
    def _one_size(self) -> "Recipe":
        if self.method == "krona" and (self.factors is None) == (self.parameter_count is None):
            raise ValueError("krona is sized by factors (a1, a2) or by parameter_count, by one of the two")
        return self

    @model_validator(mode="after")
    def _even_rank(self) -> "Recipe":
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init orthogonal takes an even rank, and rank is {self.rank}")
        return self

    @model_validator(mode="after")
    def _what_the_optimizer_bears(self) -> "Recipe":
        if self.optimizer == "prodigy":
            words = {self.word_learning_rate} if self.new_word else set()
            text = {self.text_learning_rate} if self.text_rank else set()
            if {self.learning_rate} | words | text != {self.learning_rate} or self.up_rate_ratio != 1:
                raise ValueError(
                    "prodigy knows one rate for all: word_learning_rate and text_learning_rate must be learning_rate,"
                    " and up_rate_ratio 1"
                )
        if self.optimizer == "adamw-schedule-free":
            if self.schedule != "constant":
                raise ValueError(f"adamw-schedule-free stands in place of a schedule, and schedule is {self.schedule}")
            if self.ema:
                raise ValueError("adamw-schedule-free averages the weights itself; ema would average them again")
            if not self.betas[0]:
                raise ValueError("adamw-schedule-free needs a first beta above 0")
        return self

    @model_validator(mode="after")
    def _told_apart(self) -> "Recipe":
        for key in ("name", "trigger"):  # disks and tokenizers that ignore case are common
            found = [getattr(one, key).casefold() for one in (self, *self.others)]
            if twice := [value for n, value in enumerate(found) if value in found[:n]]:
                raise ValueError(f"two concepts of this training have the {key} {twice[0]!r}")
        return self

    @model_serializer(mode="wrap")
    def _as_settings(self, settings: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `others` where there are none: recipes and checkpoints of one concept say nothing of them."""
        made = settings(self)
        if not self.others:
            made.pop("others", None)
        return made

    @property
    def instance_prompt(self) -> str:
        """What a picture without a caption is trained with."""
        return f"a {self.trigger} {self.class_word}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of all concepts that are trained."""
        return tuple(one.name for one in (self, *self.others))

    @property
    def triggers(self) -> tuple[str, ...]:
        """Of all concepts that are trained."""
        return tuple(one.trigger for one in (self, *self.others))

    @property
    def views(self) -> tuple["Recipe", ...]:
        """The same training with each of its concepts in front in turn, and the rest as its others; as it is first."""
        front = {key: getattr(self, key) for key in Other.model_fields}
        every = [Other.model_construct(**front), *self.others]
        return (
            self,
            *(
                self.model_copy(update=dict(one) | {"others": tuple(other for other in every if other is not one)})
                for one in self.others
            ),
        )


def build_recipe(layers: list[dict[str, Any]]) -> Recipe:
    """The recipe of `layers` of settings, later ones winning; raises UsageError with one plain sentence a mistake."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    try:
        return Recipe(**merged)
    except ValidationError as error:
        listed = "\n".join(f"  {_sentence(dict(detail))}" for detail in error.errors())
        raise UsageError(f"The training cannot be set up so:\n{listed}", "Correct the settings named above.") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a recipe file; raises UsageError for a missing or malformed file and for unknown keys.

    Relative `pictures` are taken from the recipe's own folder.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read the recipe {path}: {error.strerror}.", "Check the path given.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The recipe {path} is not valid TOML: {error}.", "Correct the line named.") from error
    unknown = [_unknown_key(key) for key in settings if key not in Recipe.model_fields]
    if unknown:
        raise UsageError(f"In {path}: {' '.join(unknown)}", "Correct or remove what is named.")
    others = settings.get("others", [])
    tables = [one for one in others if isinstance(one, dict)] if isinstance(others, list) else []
    for table in (settings, *tables):
        if isinstance(table.get("pictures"), str):
            table["pictures"] = path.absolute().parent / Path(table["pictures"]).expanduser()
    return settings


def write_toml(recipe: Recipe, path: Path) -> None:
    """Write every setting of `recipe`, so that no later change of a preset alters what it means."""
    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))


def _unknown_key(key: str, known: Collection[str] = Recipe.model_fields) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}."
    return f"there is no setting {key!r}; {hint}"


def _sentence(detail: dict[str, Any]) -> str:
    """A pydantic error as a sentence for somebody who never heard of pydantic."""
    kind, context = detail["type"], detail.get("ctx", {})
    if not detail["loc"]:  # of several settings together
        return f"{context['error']}."
    key, given = str(detail["loc"][0]), detail["input"]
    if key == "others" and len(detail["loc"]) > 2:
        _, number, key = map(str, detail["loc"][:3])
        if kind == "extra_forbidden":
            return f"In table {int(number) + 1} of others {_unknown_key(key, Other.model_fields)}"
        key = f"{key} of table {int(number) + 1} of others"
    if kind == "extra_forbidden":
        return _unknown_key(key)
    if kind == "missing":
        return f"{key} is missing."
    if kind == "literal_error":
        return f"{key} is {given!r}; it must be one of {context['expected']}."
    for bound, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if bound in context:
            return f"{key} is {given}; it must be {words} {context[bound]}."
    if kind in {"string_too_short", "too_short"}:
        return f"{key} is empty."
    return f"{key} is {given!r}; {str(detail['msg'])[0].lower()}{str(detail['msg'])[1:]}."
