"""Several concepts in one training: what they learn from, what comes of it, and how it acts in a composition."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import HALVES, SETTINGS, latents
from PIL import Image
from safetensors import safe_open
from training_helpers import Halt, draw_pictures, halting, same, tiny_recipe, weights

from studio.adapters import load_adapter, load_concept
from studio.attaching import attach
from studio.bank import AdapterBank
from studio.bases import find_base
from studio.concepts import Concept
from studio.errors import StudioError, UsageError
from studio.events import Done, Event, Notice, silent
from studio.gates import Gate, strongest
from studio.home import Home
from studio.images import Picture
from studio.library import Library
from studio.models import BaseModel, load_base
from studio.pipelines.compose import opened
from studio.pipelines.generate import generate
from studio.pipelines.methods import METHODS
from studio.sharing import is_same, owners_of
from studio.trainers.captions import pictures_of, prompt_for, prompts_for, without_trigger
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.planning import plan_recipe, resumed_recipe
from studio.trainers.recipe import Recipe, read_toml, write_toml
from studio.trainers.scoring import Fidelity, scored
from studio.trainers.training import Training
from studio.trainers.workplace import Workplace, move_in, workplace_of
from studio.ui.judging import pictures_of as references_of

WORDS: dict[str, Any] = {"steps": 2, "new_word": True, "trigger": "milo0"}


def joint_recipe(base: Path, home: Home, changes: dict[str, Any] | None = None, count: int = 5) -> Recipe:
    """milo (three pictures) and rex (`count`), a cat and a dog."""
    rex = {"name": "rex", "class_word": "dog", "pictures": draw_pictures(home.root / "rex", count)}
    return tiny_recipe(base, home, {"others": [rex]} | (changes or {}))


def prepared(recipe: Recipe, home: Home) -> Training:
    base = load_base(find_base(recipe.base), "cpu")
    return _prepare(base, recipe, pictures_of(recipe), home, silent, true_sizes=True)[0]


@pytest.fixture(scope="module")
def pair(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Concept], list[Event]]:
    """milo and rex, learned together as new words, and what was told."""
    home, told = Home(tmp_path_factory.mktemp("joint")), []
    train_concept(joint_recipe(tiny_sdxl, home, WORDS), home, told.append)
    return [Library(home).find(name) for name in ("milo", "rex")], told


def test_a_recipe_of_several_goes_to_toml_and_back(tiny_sdxl: Path, home: Home, tmp_path: Path) -> None:
    recipe = joint_recipe(tiny_sdxl, home)
    write_toml(recipe, tmp_path / "r.toml")
    assert Recipe(**read_toml(tmp_path / "r.toml")) == recipe
    assert plan_recipe({}, tmp_path / "r.toml", home) == recipe
    turned = recipe.views[1]
    assert (turned.names, turned.triggers) == (("rex", "milo"), (recipe.others[0].trigger, "sks"))
    assert turned.views[1] == recipe == recipe.views[0]


def test_a_recipe_of_one_says_nothing_of_others(tiny_sdxl: Path, home: Home, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_sdxl, home)
    write_toml(recipe, tmp_path / "r.toml")
    assert "others" not in (tmp_path / "r.toml").read_text()
    assert "others" not in recipe.model_dump(mode="json")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"name": "Milo"}, "two concepts of this training have the name 'milo'"),
        ({"trigger": "SKS"}, "two concepts of this training have the trigger 'sks'"),
        ({"class_word": ""}, "Table 1 of others has no class_word"),
        ({"name": "../rex"}, "cannot be used as a file name"),
        ({"prior_prompts": []}, "prior_prompts of table 1 of others is empty"),
        ({"clas": "dog"}, "In table 1 of others there is no setting 'clas'; did you mean 'class_word'"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(tiny_sdxl: Path, home: Home, other: dict[str, Any], said: str) -> None:
    rex = {"name": "rex", "class_word": "dog", "pictures": "rex"}
    with pytest.raises(UsageError, match=said):
        tiny_recipe(tiny_sdxl, home, {"others": [rex | other]})


def test_rare_words_are_given_out_one_by_one(tiny_sdxl: Path, home: Home) -> None:
    first, *rest = joint_recipe(tiny_sdxl, home, {"trigger": "ohwx"}).triggers
    assert (first, rest) == ("ohwx", ["sks"])


def captioned(caption: str | None) -> Picture:
    return Picture(Path("a.png"), 8, 8, caption)


@pytest.mark.parametrize(
    ("caption", "prompt", "plain"),
    [
        (None, "a sks cat", "a cat"),
        ("a cat beside an ohwx dog", "a sks cat beside an ohwx dog", "a cat beside an dog"),
        ("an ohwx dog", "a sks cat, an ohwx dog", "a cat, an dog"),
        ("an ohwx and sks", "an ohwx and sks", "an dog and cat"),
    ],
)
def test_a_picture_of_both_is_called_by_both(
    tiny_sdxl: Path, home: Home, caption: str | None, prompt: str, plain: str
) -> None:
    recipe = joint_recipe(tiny_sdxl, home, {"mix_instance_prompt": True})
    assert recipe.triggers == ("sks", "ohwx")
    assert prompt_for(captioned(caption), recipe) == prompt
    assert without_trigger(prompt, recipe) == plain
    assert prompts_for(captioned(caption), recipe) == [prompt]


def test_of_two_cats_each_caption_marks_its_own(tiny_sdxl: Path, home: Home) -> None:
    luna = {"name": "luna", "class_word": "cat", "pictures": "rex", "trigger": "ohwx"}
    recipe = tiny_recipe(tiny_sdxl, home, {"others": [luna]})
    assert prompt_for(captioned("an ohwx cat beside a cat"), recipe) == "an ohwx cat beside a sks cat"
    assert prompt_for(captioned("a sks cat beside a cat"), recipe.views[1]) == "a sks cat beside a ohwx cat"


def test_captions_may_name_the_concepts(tiny_sdxl: Path, home: Home) -> None:
    recipe = joint_recipe(tiny_sdxl, home)
    (recipe.pictures / "0.txt").write_text("a <milo> and a <rex> but no <luna>")
    assert pictures_of(recipe)[0][0].caption == "a sks cat and a ohwx dog but no <luna>"


def test_each_concept_is_shown_as_often_whatever_its_pictures_count(tiny_sdxl: Path, home: Home) -> None:
    recipe = joint_recipe(tiny_sdxl, home, {"prior_count": 2})
    often = recipe.others[0].pictures / "3_often"
    often.mkdir()
    (recipe.others[0].pictures / "4.png").rename(often / "4.png")
    training = prepared(recipe, home)
    shown = Counter(training.instances.next(0, 84, recipe.seed, "instances"))
    own = [sum(times for n, times in shown.items() if n in group) for group in training.instances.groups]
    assert [len(group) for group in training.instances.groups] == [3, 7]
    assert own == [42, 42]
    assert set(shown.values()) == {14, 6}
    said = [word for step in range(4) for one in training.draw(step) for word in one.batch.prompts]
    assert Counter(said)["a sks cat"] == Counter(said)["a ohwx dog"] == 4


def test_class_pictures_of_a_class_are_made_once(tiny_sdxl: Path, home: Home) -> None:
    rex = draw_pictures(home.root / "rex")
    cats = [{"name": name, "class_word": word, "pictures": rex} for name, word in (("rex", "dog"), ("luna", "cat"))]
    training = prepared(tiny_recipe(tiny_sdxl, home, {"others": cats}), home)
    assert training.classes is not None
    assert [len(group) for group in training.classes.groups] == [3, 3]
    assert len(list(home.cache.glob("class-pictures/*/*.png"))) == 6
    assert len(training.instances.groups) == 3


def test_pairs_show_each_beside_something_and_both_beside_each_other(tiny_sdxl: Path, home: Home) -> None:
    rex = {"name": "rex", "class_word": "dog", "pictures": home.root / "rex", "pair_prompts": ("a red dog",)}
    for name, colour in (("pictures", "red"), ("rex", "blue")):
        for n in range(2):
            picture = Image.new("RGB", (64, 64), "green")
            picture.paste(colour, (20, 14, 44, 50))
            (home.root / name).mkdir(parents=True, exist_ok=True)
            picture.save(home.root / name / f"{n}.png")
    pairs = {"pair_share": 0.5, "pair_count": 3, "pair_prompts": ("a red cat",), "others": [rex], "resolution": 64}
    training = prepared(tiny_recipe(tiny_sdxl, home, pairs), home)
    assert training.pairs is not None
    assert [len(group) for group in training.pairs.groups] == [3, 3, 3]
    (bucket,) = training.pairs.buckets
    both = bucket.whole.prompts[6:]
    assert all("sks cat" in prompt and "ohwx dog" in prompt for prompt in both)
    own = bucket.whole.own[:, 0]
    outer = own[:, 8, [1, 14]] == 1
    assert outer[6:].all()
    assert torch.equal(outer[:6].sum(1), torch.ones(6))
    made = [np.asarray(Image.open(path)).astype(int) for path in home.cache.glob("class-pictures/*/*-*-*.png")]
    assert len(made) == 3
    for pixels in made:
        red, blue = (np.flatnonzero((pixels[:, :, c] > 200).any(0)).mean() for c in (0, 2))
        assert 20 < abs(red - blue) < 44


def test_both_become_concepts_each_complete_by_itself(pair: tuple[list[Concept], list[Event]]) -> None:
    (milo, rex), told = pair
    assert {one.name for one in milo.folder.iterdir()} == {one.name for one in rex.folder.iterdir()}
    assert "checkpoints" not in {one.name for one in milo.folder.iterdir()}
    assert (milo.phrase, rex.phrase) == ("milo0 cat", "rex0 dog")
    assert same(milo, rex)
    assert {key for key in weights(rex) if "word" in key} == {
        f"lora_word.{word}.{tower}" for word in ("milo0", "rex0") for tower in ("clip_l", "clip_g")
    }
    with safe_open(rex.adapter_file, "pt") as file:
        notes = file.metadata()
    assert (notes["studio.trigger"], notes["modelspec.trigger_phrase"]) == ("rex0", "rex0 dog")
    assert json.loads(notes["studio.others"]) == {"milo": "milo0 cat"}
    assert set(json.loads(notes["ss_tag_frequency"])) == {"milo", "rex"}
    card = (rex.folder / "README.md").read_text()
    assert "`rex0 dog`" in card
    assert "`milo0 cat` (<milo>)" in card
    assert 'token="milo0"' in card
    assert (rex.folder / "recipe.toml").read_text() == (milo.folder / "recipe.toml").read_text()
    assert isinstance(told[-1], Done)
    assert any(isinstance(one, Notice) and "the words 'milo0', 'rex0'" in one.message for one in told)
    assert sorted(one.name for one in milo.folder.parent.iterdir()) == ["milo", "rex"]


def test_the_words_begin_apart_and_are_learned_apart(tiny_sdxl: Path, home: Home) -> None:
    training = prepared(joint_recipe(tiny_sdxl, home, WORDS), home)
    rows = {name: row for name, row in training.parameters.items() if name.startswith("word.")}
    assert set(rows) == {"word.clip_l", "word.clip_g", "word.rex0.clip_l", "word.rex0.clip_g"}
    assert not torch.equal(rows["word.clip_l"], rows["word.rex0.clip_l"])
    training.base.read(["a rex0 dog"]).embeds.sum().backward()
    assert {name for name, row in rows.items() if row.grad is not None and row.grad.any()} == {
        "word.rex0.clip_l", "word.rex0.clip_g",
    }  # fmt: skip
    alone = prepared(tiny_recipe(tiny_sdxl, home, WORDS), home)
    assert torch.equal(alone.parameters["word.clip_g"], rows["word.clip_g"])


def test_resuming_both_gives_the_same_weights_bit_for_bit(
    tiny_sdxl: Path, tmp_path: Path, pair: tuple[list[Concept], list[Event]]
) -> None:
    home = Home(tmp_path)
    recipe = joint_recipe(tiny_sdxl, home, WORDS | {"save_every": 1})
    with pytest.raises(Halt):
        train_concept(recipe, home, halting(2))
    assert not (home.library / "rex").exists()
    assert not workplace_of(home, "rex").folder.exists()
    assert resumed_recipe({"name": "milo"}, None, home) == recipe
    with pytest.raises(UsageError, match="others"):
        train_concept(tiny_recipe(tiny_sdxl, home, WORDS | {"save_every": 1}), home, resume=True)
    assert same(train_concept(recipe, home, resume=True), pair[0][0])


def test_a_name_that_is_taken_stops_all_before_anything(tiny_sdxl: Path, home: Home, pair: Any) -> None:
    (home.library / "rex").mkdir(parents=True)
    for file in pair[0][1].folder.glob("*.*"):
        (home.library / "rex" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UsageError, match="has a concept 'rex' already"):
        train_concept(joint_recipe(tiny_sdxl, home), home)
    assert [one.name for one in home.library.iterdir()] == ["rex"]


def test_all_move_in_or_none(home: Home, pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[tuple[Workplace, Concept]] = []
    for concept in pair[0]:
        workplace = workplace_of(home, concept.name)
        shutil.copytree(concept.folder, workplace.folder)
        finished.append((workplace, dataclasses.replace(concept, folder=workplace.folder)))
    shutil.copytree(pair[0][1].folder, home.library / "rex")
    (home.library / "rex" / "README.md").write_text("the one before")
    add = Library.add

    def refuse(self: Library, folder: Path, name: str) -> Concept:
        if name == "milo":  # the second to move in
            raise StudioError("The disk refuses.", "Free some space.")
        return add(self, folder, name)

    monkeypatch.setattr(Library, "add", refuse)
    with pytest.raises(StudioError, match="The disk refuses"):
        move_in(home, finished, overwrite=True)
    assert (home.library / "rex" / "README.md").read_text() == "the one before"
    assert all(workplace.folder.is_dir() for workplace, _ in finished)
    monkeypatch.setattr(Library, "add", add)
    assert [one.name for one in move_in(home, finished, overwrite=True)] == ["milo", "rex"]
    assert sorted(one.name for one in home.library.iterdir()) == ["milo", "rex"]
    assert (home.library / "rex" / "README.md").read_text() != "the one before"


def test_a_scorer_reads_each_concept_beside_its_own_pictures(tiny_sdxl: Path, home: Home) -> None:
    seen: list[tuple[list[str], int]] = []

    class Reader:
        name = "a reader"

        def __call__(self, pictures: Sequence[Any], prompts: Sequence[str], references: Sequence[Any]) -> Fidelity:
            seen.append((list(prompts), len(references)))
            return Fidelity(len(references) / 10, 1.0)

    recipe = joint_recipe(tiny_sdxl, home, {"score_prompts": ("a sks cat",), "sample_steps": 1})
    rex = recipe.others[0].model_copy(update={"score_prompts": ("a ohwx dog",)})
    training = prepared(recipe.model_copy(update={"others": (rex,)}), home)
    found, pictures = scored(training, [Reader(), Reader()])
    assert seen == [(["a sks cat"] * 2, 3), (["a ohwx dog"] * 2, 5)]
    assert (found.concept, found.prompt) == (pytest.approx(0.4), 1.0)
    assert list(pictures) == ["a sks cat", "a ohwx dog"]


def test_each_is_evaluated_beside_its_own_pictures(pair: tuple[list[Concept], list[Event]]) -> None:
    assert [getattr(references_of(one, {}), "name", None) for one in pair[0]] == ["pictures", "rex"]


def test_a_b_lora_is_of_one(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="others says nothing to the method b-lora"):
        joint_recipe(tiny_sdxl, home, {"method": "b-lora"})


# What the same adapter under two names does in a composition.


@pytest.fixture(scope="module")
def base(tiny_sdxl: Path) -> BaseModel:
    return load_base(find_base(str(tiny_sdxl)), "cpu")


def predict(base: BaseModel) -> torch.Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": torch.ones(1, 24), "time_ids": torch.full((1, 6), 32.0)}
    with torch.no_grad():
        return base.unet(noise, 500, torch.ones(1, 5, 40), added_cond_kwargs=added).sample


def test_the_same_adapter_is_known_by_what_it_holds(pair: Any, tiny_loras: list[Path]) -> None:
    milo, rex, other = *map(load_concept, pair[0]), load_adapter(tiny_loras[0])
    assert is_same(milo, rex)
    assert not is_same(milo, dataclasses.replace(rex, embeddings={}))
    assert owners_of([milo, other, rex, load_adapter(tiny_loras[1]), other]) == (0, 1, 0, 2, 1)


def test_merged_it_acts_once_at_the_greater_strength(base: BaseModel, pair: Any, tiny_loras: list[Path]) -> None:
    (milo, rex), other = map(load_concept, pair[0]), load_adapter(tiny_loras[0])
    with attach(base, [(milo, 0.8), (other, 0.5)]):
        truth, words = predict(base), base.encode(["a milo0 cat and a rex0 dog"]).embeds
    with attach(base, [(milo, 0.3), (other, 0.5), (rex, 0.8)]) as receipts:
        assert torch.equal(predict(base), truth)
        assert torch.equal(base.encode(["a milo0 cat and a rex0 dog"]).embeds, words)
    assert [one.adapter for one in receipts] == ["milo", other.name, "rex"]
    bank = AdapterBank(base, [milo, other, rex])
    with bank.merged((0.8, 0.5, 0.3)):
        assert torch.equal(predict(base), truth)
    assert bank.count == 3 == len(bank.receipts((0.8, 0.5, 0.3)))


def test_gated_over_the_whole_canvas_it_acts_once(base: BaseModel, pair: Any) -> None:
    milo, rex = map(load_concept, pair[0])
    once, both = AdapterBank(base, [milo]), AdapterBank(base, [milo, rex])
    with once.installed(), once.use(Gate(torch.full((1, 1), 0.7), torch.ones(1, 1, 8, 8))):
        truth = predict(base)
    halves = torch.zeros(1, 2, 8, 8)
    halves[:, 0, :, :4] = halves[:, 1, :, 4:] = 1
    for mask in (torch.ones(1, 2, 8, 8), halves):
        with both.installed(), both.use(Gate(torch.full((1, 2), 0.7), mask)):
            torch.testing.assert_close(predict(base), truth, atol=1e-6, rtol=1e-5)


def test_of_several_gates_the_strongest_holds_at_each_place() -> None:
    rng = torch.Generator().manual_seed(0)
    weights, owners = torch.tensor([[1.0, 0.5, 0.7], [0.0, 0.0, -1.0]]), (0, 0, 1)
    image, text = (torch.rand(2, 3, *size, generator=rng) for size in ((4, 4), (5,)))
    joined = Gate(weights, image, text).shared(owners)
    by_hand = (weights[:, :, None, None] * image)[:, :2].amax(1)
    assert joined.image is not None
    assert joined.text is not None
    torch.testing.assert_close(joined.weights[:, 0, None, None] * joined.image[:, 0], by_hand)
    torch.testing.assert_close(joined.text[:, 1], text[:, 2])
    assert joined is Gate.shared(joined, (0, 1)) or torch.equal(joined.shared((0, 1)).weights, joined.weights)
    assert strongest(torch.tensor([[-1.0, 0.2, 0.0]]), (0, 0, 1)).tolist() == [[-1.0, 0.0]]


def test_merging_both_is_what_one_of_them_draws(base: BaseModel, pair: Any) -> None:
    said = dataclasses.replace(SETTINGS, count=1)
    with_one = dataclasses.replace(said, prompt="a <milo> and an rex0 dog on the grass")
    truth = latents(base, pair[0][:1], METHODS["merge"].make(), with_one, [1.0])[0]
    found = latents(base, pair[0], METHODS["merge"].make(), said)[0]
    assert torch.equal(found, truth)
    assert len(generate(base, said, [(one, 1.0) for one in pair[0]], silent)) == 1


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_composes_them(base: BaseModel, pair: Any, method: str) -> None:
    layout = HALVES if METHODS[method].boxes != "ignores" else None
    settings = dataclasses.replace(SETTINGS, count=1, steps=6)
    found = latents(base, pair[0], METHODS[method].make(), settings, layout=layout)[0]
    assert found.isfinite().all()


def test_a_style_of_the_same_training_cannot_ride(base: BaseModel, pair: Any) -> None:
    milo, rex = pair[0]
    settings = dataclasses.replace(SETTINGS, prompt="a <milo>")
    with (
        pytest.raises(UsageError, match="are one adapter: it cannot act both"),
        opened(base, settings, [(milo, 1.0)], METHODS["switch"].make(), silent, styles=[(rex, 1.0)]),
    ):
        pass
