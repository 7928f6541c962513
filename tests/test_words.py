from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from training_helpers import Halt, halting, same, tiny_recipe, weights

from studio.adapters import load_concept
from studio.attaching import attach
from studio.bases import find_base
from studio.errors import UsageError
from studio.events import Notice
from studio.exporting import export_concept
from studio.home import Home
from studio.models import load_base
from studio.trainers.captions import pictures_of
from studio.trainers.dreambooth import _prepare, train_concept
from studio.trainers.training import Training
from studio.trainers.words import NewWord

WORD: dict[str, Any] = {"new_word": True, "trigger": "milo0", "word_learning_rate": 0.05, "steps": 3}
SAID, PLAIN = "a photo of a milo0 cat", "a photo of a red cat"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    found: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), found.append(self))[0])
    return found


@pytest.mark.parametrize("method", ["lora", "krona"])
@pytest.mark.parametrize("base", ["tiny_sdxl", "tiny_sd15"])
def test_the_file_brings_the_word_that_was_learned(
    base: str, method: str, home: Home, request: pytest.FixtureRequest, trained: list[Training]
) -> None:
    folder, told = request.getfixturevalue(base), []
    more = {"method": "krona", "factors": (4, 2)} if method == "krona" else {}
    concept = train_concept(tiny_recipe(folder, home, WORD | more), home, told.append)
    live, fresh = trained[0].base, load_base(find_base(str(folder)), "cpu")
    before = fresh.encode([SAID, PLAIN])
    with attach(fresh, [(load_concept(concept), 1.0)]):
        after = fresh.encode([SAID, PLAIN])
    assert torch.equal(after.embeds, live.encode([SAID, PLAIN]).embeds)
    assert torch.equal(after.embeds[1], before.embeds[1])
    assert not torch.equal(after.embeds[0], before.embeds[0])
    assert any(isinstance(one, Notice) and "and the word 'milo0'" in one.message for one in told)


def test_only_its_rows_are_trained_and_they_begin_like_the_bases_words(tiny_sdxl: Path, home: Home) -> None:
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    tables: list[Any] = [encoder.get_input_embeddings().weight.clone() for encoder in base.text_encoders]  # pyright: ignore
    word = NewWord(base, tiny_recipe(tiny_sdxl, home, WORD))
    assert {name: tuple(row.shape) for name, row in word.parameters.items()} == {
        "word.clip_l": (16,), "word.clip_g": (24,),
    }  # fmt: skip
    for row, table in zip(word.parameters.values(), tables, strict=True):
        assert 0.4 < float(row.std() / table.std()) < 2
    base.read([SAID]).embeds.sum().backward()
    moved = {name for one in base.text_encoders for name, p in one.named_parameters() if p.grad is not None}
    assert {name.rpartition(".")[2] for name in moved} == {"row"}


def test_the_gradient_of_a_row_is_that_of_finite_differences(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, WORD)
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    training, _ = _prepare(base, recipe, pictures_of(recipe), home, lambda event: None, true_sizes=True)
    for part in (base.unet, *base.text_encoders):
        part.double()
    (drawn,) = training.draw(0)
    batch = drawn.batch
    assert all("milo0" in prompt for prompt in batch.prompts[:2])
    row = training.parameters["word.clip_g"]
    row.data = row.data.double()

    def loss() -> torch.Tensor:
        said = base.read(list(batch.prompts[:2]))
        added = {"text_embeds": said.pooled, "time_ids": batch.time_ids[:2].double()}  # pyright: ignore
        latents = batch.latents[:2].double()
        return base.unet(latents, drawn.timesteps[:2], said.embeds, added_cond_kwargs=added).sample.square().mean()

    (gradient,) = torch.autograd.grad(loss(), row)
    step = 1e-5
    for n in range(0, 24, 7):
        with torch.no_grad():
            row[n] += step
            above = loss()
            row[n] -= 2 * step
            below = loss()
            row[n] += step
        assert float((above - below) / (2 * step)) == pytest.approx(float(gradient[n]), rel=1e-4, abs=1e-9)


def test_resuming_gives_the_same_word_bit_for_bit(tiny_sdxl: Path, tmp_path: Path) -> None:
    homes = [Home(tmp_path / name) for name in "ab"]
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], WORD), homes[0])
    recipe = tiny_recipe(tiny_sdxl, homes[1], WORD | {"save_every": 1})
    with pytest.raises(Halt):
        train_concept(recipe, homes[1], halting(2))
    resumed = train_concept(recipe, homes[1], resume=True)
    assert same(straight, resumed)
    assert "lora_word.milo0.clip_g" in weights(resumed)


def test_float16_scales_the_gradients_of_adapter_and_word_back_once(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, WORD)
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    training, _ = _prepare(base, recipe, pictures_of(recipe), home, lambda event: None, true_sizes=True)
    scaler = training.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    training.optimizer = AcceleratedOptimizer(training.plain_optimizer, scaler=scaler)
    training.accelerator._optimizers = [training.optimizer]
    training.accelerator.native_amp = True
    monkeypatch.setattr(type(training.accelerator), "mixed_precision", "fp16")
    rows = {name: row.detach().clone() for name, row in training.parameters.items() if name.startswith("word.")}
    training.take_step()  # torch's scaler raises where gradients are scaled back twice
    assert all(not torch.equal(row, training.parameters[name]) for name, row in rows.items())


@pytest.mark.parametrize("exported", [False, True])
@pytest.mark.parametrize("base", ["tiny_sdxl", "tiny_sd15"])
def test_plain_diffusers_takes_file_and_word_and_draws_the_same(
    base: str, exported: bool, home: Home, tmp_path: Path, request: pytest.FixtureRequest, trained: list[Training]
) -> None:
    folder = request.getfixturevalue(base)
    concept = train_concept(tiny_recipe(folder, home, WORD | {"alpha": 3.0}), home)
    file = export_concept(concept, tmp_path / "out", "diffusers")[0] if exported else concept.adapter_file
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.load_lora_weights(file)
    towers = {"clip_l": ""} if base == "tiny_sd15" else {"clip_l": "", "clip_g": "_2"}
    card = (concept.folder / "README.md").read_text(encoding="utf-8")
    for tower, n in towers.items():
        key = f"lora_word.milo0.{tower}"
        assert f'rows["{key}"], token="milo0"' in card
        encoder, tokenizer = getattr(pipe, f"text_encoder{n}"), getattr(pipe, f"tokenizer{n}")
        pipe.load_textual_inversion(load_file(file)[key], token="milo0", text_encoder=encoder, tokenizer=tokenizer)
    live = trained[0].base
    live.unet.eval()
    pictures = [
        one(SAID, width=32, height=32, num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
        for one in (pipe, live.pipe)
    ]
    assert abs(pictures[0] - pictures[1]).max() < 1e-4


def test_a_word_that_the_base_knows_is_no_new_one(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="'cat</w>' already"):
        train_concept(tiny_recipe(tiny_sdxl, home, WORD | {"trigger": "cat</w>"}), home)
    assert not any(home.library.glob("*"))
