import errno
import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from safetensors import safe_open
from soaking import soaked
from training_helpers import Halt, same, tiny_recipe, weights

from studio.adapters import load_concept
from studio.attaching import attach
from studio.bases import find_base
from studio.concepts import read_concept
from studio.errors import StudioError, UsageError
from studio.events import Done, Event, Loss, Notice, Phase, Preview, Step, silent
from studio.home import Home
from studio.library import Library
from studio.models import load_base, wrap_pipe
from studio.pipelines.random_bases import random_pipe
from studio.trainers import checkpoint, lora, prior
from studio.trainers.captions import pictures_of
from studio.trainers.dreambooth import _prepare, check_fits, train_concept
from studio.trainers.recipe import Recipe
from studio.trainers.training import Drawn, Training
from studio.trainers.workplace import workplace_of

VERIFY = lora._verify  # which tests/conftest.py puts aside


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers reads what was written before it is kept, as for users."""
    monkeypatch.setattr(lora, "_verify", VERIFY)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("kind", [{}, {"dora": True}, {"rank_stabilised": True}, {"dropout": 0.3}])
@pytest.mark.parametrize("base", ["tiny_sdxl", pytest.param("tiny_sd15", marks=soaked)])
def test_plain_diffusers_reads_the_file_and_predicts_the_same(
    base: str, kind: dict, home: Home, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(base)
    trained: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), trained.append(self))[0])
    wide = ("to_k", "to_q", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
    recipe = tiny_recipe(folder, home, {"steps": 2, "alpha": 5.0, "targets": wide} | kind)
    concept = train_concept(recipe, home)

    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    inputs = {"sample": torch.randn(1, 4, 8, 8), "timestep": 500, "encoder_hidden_states": None}
    width = pipe.unet.config.cross_attention_dim
    inputs["encoder_hidden_states"] = torch.randn(1, 5, width)
    if base == "tiny_sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(1, 24), "time_ids": torch.full((1, 6), 32.0)}
    with torch.no_grad():
        plain = pipe.unet(**inputs).sample
        pipe.load_lora_weights(concept.adapter_file)
        loaded = pipe.unet(**inputs).sample
        live = trained[0].base.unet.eval()(**inputs).sample
        fresh = load_base(find_base(str(folder)), "cpu")
        with attach(fresh, [(load_concept(concept), 1.0)]):
            attached = fresh.unet(**inputs).sample
    torch.testing.assert_close(loaded, live, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attached, live, atol=1e-5, rtol=1e-5)
    assert (loaded - plain).abs().max() > 1e-3


def test_what_a_training_leaves(tiny_sdxl: Path, home: Home) -> None:
    events: list[Event] = []
    recipe = tiny_recipe(tiny_sdxl, home, {"sample_every": 3})
    concept = train_concept(recipe, home, events.append)
    assert Library(home).concepts() == [concept] == [read_concept(concept.folder)]
    assert {path.name for path in concept.folder.iterdir()} == {
        "adapter.safetensors", "concept.json", "recipe.toml", "README.md", "loss.png", "samples", "samples.png",
    }  # fmt: skip
    assert sorted(path.name for path in home.library.iterdir()) == ["milo"]
    with safe_open(concept.adapter_file, "pt") as file:
        notes = file.metadata()
    assert (notes["studio.trigger"], notes["studio.steps"], notes["studio.rank"]) == ("sks", "6", "2")
    assert json.loads(notes["lora_adapter_metadata"])["unet.r"] == 2
    assert len(notes["studio.data"]) == 64
    assert [event.step for event in events if isinstance(event, Loss)] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events if isinstance(event, Preview)] == [0, 3, 6]
    names = [event.name for event in events if isinstance(event, Phase)]
    assert names == ["load base", "class pictures", "encode pictures", "train", "write the concept", "verify the file"]
    assert any(isinstance(event, Notice) and "parameters" in event.message for event in events)
    assert isinstance(events[-1], Done)


def test_the_loss_falls_on_noise_that_repeats(tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Training.draw
    monkeypatch.setattr(Training, "draw", lambda self, step: draw(self, 0))
    losses: list[float] = []
    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 25, "rank": 8, "learning_rate": 1e-2})
    train_concept(recipe, home, lambda event: losses.append(event.loss) if isinstance(event, Loss) else None)
    assert losses[-1] < 0.9 * losses[0]


def test_accumulation_of_two_equals_a_batch_of_two(tiny_sdxl: Path, homes: list[Home]) -> None:
    settings = [{"batch_size": 2}, {"batch_size": 1, "gradient_accumulation": 2}]
    one, two = (
        weights(train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 2} | how), home))
        for home, how in zip(homes, settings, strict=True)
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3)


def test_an_offset_moves_the_noise_of_a_channel_as_a_whole(tiny_sdxl: Path, home: Home) -> None:
    drawn = []
    for offset in (0.0, 0.5):
        base = load_base(find_base(str(tiny_sdxl)), "cpu")
        recipe = tiny_recipe(tiny_sdxl, home, {"noise_offset": offset})
        training, _ = _prepare(base, recipe, pictures_of(recipe), home, silent, true_sizes=True)
        drawn += training.draw(3)
    moved = drawn[1].noise - drawn[0].noise
    assert float(moved.std((2, 3)).max()) < 1e-6
    assert 0.2 < float(moved.mean((2, 3)).std()) < 1
    assert torch.equal(drawn[0].timesteps, drawn[1].timesteps)


def test_previews_and_the_global_generator_do_not_touch_the_training(tiny_sdxl: Path, homes: list[Home]) -> None:
    torch.manual_seed(1)
    plain = train_concept(tiny_recipe(tiny_sdxl, homes[0], {"steps": 3}), homes[0])
    torch.manual_seed(2)
    watched = train_concept(tiny_recipe(tiny_sdxl, homes[1], {"steps": 3, "sample_every": 1}), homes[1])
    assert same(plain, watched)


def test_the_bases_own_prediction_is_the_target_of_class_pictures(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = diffusers.UNet2DConditionModel.from_pretrained(tiny_sdxl / "unet")
    loss, off = Training.loss, []

    def compare(self: Training, drawn: Drawn) -> torch.Tensor:
        batch, rows = drawn.batch, slice(len(drawn.noise) // 2, None)
        assert batch.pooled is not None
        assert batch.time_ids is not None
        noisy = self.schedule.noisy(batch.latents, drawn.noise, drawn.timesteps)
        added = {"text_embeds": batch.pooled[rows], "time_ids": batch.time_ids[rows]}
        with torch.no_grad():
            expected = plain(noisy[rows], drawn.timesteps[rows], batch.embeds[rows], added_cond_kwargs=added).sample
        held = drawn.part(list(range(len(noisy) // 2, len(noisy))), noisy.device)
        off.append(float((self._untrained(noisy[rows], held) - expected).abs().max()))
        return loss(self, drawn)

    monkeypatch.setattr(Training, "loss", compare)
    train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 3, "prior_target": "base"}), home)
    assert max(off) < 1e-5


def test_an_untrained_concept_pays_nothing_for_its_class(tiny_sdxl: Path, homes: list[Home]) -> None:
    losses: list[float] = []
    for home, target in zip(homes, ("base", "picture"), strict=True):
        recipe = tiny_recipe(tiny_sdxl, home, {"steps": 1, "prior_target": target, "prior_weight": 100.0})
        train_concept(recipe, home, lambda event: losses.append(event.loss) if isinstance(event, Loss) else None)
    assert losses[0] < 5 < 10 < losses[1]


def test_class_pictures_share_the_captions_words(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 1, "prior_count": 4})
    for number, words in enumerate(("a cat on paper", "a sks cat on paper", "a cat at night")):
        (recipe.pictures / f"{number}.txt").write_text(words)
    train_concept(recipe, home)
    (settings,) = home.cache.glob("class-pictures/*/settings.json")
    assert json.loads(settings.read_text())["prompts"] == ["a cat on paper", "a cat at night", "a cat", "a dog"]


@pytest.mark.parametrize("captions", [5, 20, 60])
def test_many_captions_are_half_of_the_class_prompts(captions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(prior, "drawn_once", lambda base, recipe, prompts, *rest: drawn.extend(prompts) or prompts)
    few = Recipe.model_construct(prior_count=100, prior_prompts=("a", "b", "c", "d"), prior_target="picture")
    prior.class_examples(cast(Any, None), few, [f"a cat {n}" for n in range(captions)], Path(), silent)
    told = Counter(drawn)
    assert sum(told[name] for name in "abcd") == 50
    assert max(told[name] for name in "abcd") - min(told[name] for name in "abcd") <= 1


def test_class_pictures_are_made_once(tiny_sdxl: Path, home: Home) -> None:
    train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 1}), home)
    pictures = sorted(home.cache.glob("class-pictures/*/*.png"))
    made = [picture.stat().st_mtime_ns for picture in pictures]
    steps: list[Step] = []
    more = tiny_recipe(tiny_sdxl, home, {"steps": 1, "name": "more", "prior_count": 18})
    train_concept(more, home, lambda event: steps.append(event) if isinstance(event, Step) else None)
    assert steps[:2] == [Step(16, 18), Step(18, 18)]
    phases: list[str] = []
    again = tiny_recipe(tiny_sdxl, home, {"steps": 1, "name": "two"})
    train_concept(again, home, lambda event: phases.append(event.name) if isinstance(event, Phase) else None)
    assert len(pictures) == 3
    assert "class pictures" not in phases
    assert [picture.stat().st_mtime_ns for picture in pictures] == made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"targets": ("to_x",)}, "no layers called to_x"),
        ({"blocks": ("up_blocks.9",)}, "no block called up_blocks.9"),
        ({"init": "pissa", "rank": 500}, "takes a rank of"),
        ({"method": "krona", "parameter_count": 7}, "parameters at least"),
        ({"method": "oft", "block_size": 7}, "no divisor in common"),
        ({"new_word": True, "trigger": "cat"}, "knows the word 'cat' already"),
        ({"offload": True}, "this is a CPU"),
    ],
)
def test_what_does_not_fit_the_base_is_refused_before_anything_is_drawn(
    wrong: dict[str, Any], said: str, tiny_sdxl: Path, home: Home
) -> None:
    with pytest.raises(UsageError, match=said):
        train_concept(tiny_recipe(tiny_sdxl, home, wrong), home)
    assert not list(home.cache.rglob("*.png"))
    assert not list(home.cache.rglob("*.safetensors"))


def test_a_base_distilled_with_its_guidance_is_not_trained(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="was distilled"):
        check_fits(wrap_pipe(random_pipe({"time_cond_proj_dim": 32})), tiny_recipe(tiny_sdxl, home))


def test_a_device_that_is_not_there_is_refused(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="no device 'cuda:9'"):
        train_concept(tiny_recipe(tiny_sdxl, home), home, device="cuda:9")


def test_a_broken_loss_stops_before_the_weights_are_touched(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Training.loss
    monkeypatch.setattr(
        Training, "loss", lambda self, drawn: loss(self, drawn) * (float("nan") if self.step == 3 else 1)
    )
    recipe = tiny_recipe(tiny_sdxl, home, {"save_every": 2})
    with pytest.raises(StudioError, match="no longer a finite number at step 4") as failure:
        train_concept(recipe, home)
    assert "--lr" in failure.value.remedy
    kept = checkpoint.latest_checkpoint(workplace_of(home, "milo").checkpoints, pytest.fail)
    assert kept is not None
    assert kept.step == 2
    assert all(bool(tensor.isfinite().all()) for tensor in kept.tensors.values())


def test_too_little_memory_names_the_phase_and_what_is_not_done_yet(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Training, drawn: Drawn) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")

    monkeypatch.setattr(Training, "loss", full)
    with pytest.raises(StudioError, match=r"in the phase 'train'\)\. CUDA out of memory\.") as refusal:
        train_concept(tiny_recipe(tiny_sdxl, home, {"gradient_checkpointing": True}), home)
    assert "gradient_checkpointing" not in refusal.value.remedy
    lines = refusal.value.remedy.splitlines()
    assert lines[2].startswith("  2. offload = true")
    assert lines[3].startswith("  3. --batch-size 1 with gradient_accumulation = 2")
    assert "--overwrite" in lines[-1]


def test_checkpointing_and_small_batches_give_the_same_weights(tiny_sdxl: Path, homes: list[Home]) -> None:
    kinds = ({}, {"gradient_checkpointing": True, "batch_size": 1, "gradient_accumulation": 2})
    plain, saving = (
        weights(train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 2} | kind), home))
        for home, kind in zip(homes, kinds, strict=True)
    )
    for name in plain:
        torch.testing.assert_close(plain[name], saving[name], atol=2e-4, rtol=1e-3)


def test_a_full_disk_at_the_end_keeps_the_checkpoint(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    recipe = tiny_recipe(tiny_sdxl, home)
    with monkeypatch.context() as patch:
        patch.setattr(lora, "save", full)
        with pytest.raises(StudioError, match="No space left on device"):
            train_concept(recipe, home)
    assert Library(home).concepts() == []
    assert list(workplace_of(home, "milo").folder.glob("*adapter*")) == []
    assert train_concept(recipe, home, resume=True).name == "milo"


@pytest.mark.usefixtures("asked")
def test_a_file_that_does_not_read_back_is_not_kept(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = lora.save
    monkeypatch.setattr(lora, "save", lambda tensors, notes: save(dict(list(tensors.items())[2:]), notes))
    with pytest.raises(StudioError, match="does not read back"):
        train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 1}), home)
    assert Library(home).concepts() == []


def test_an_existing_concept_is_replaced_only_at_the_end_and_only_if_asked(tiny_sdxl: Path, home: Home) -> None:
    old = train_concept(tiny_recipe(tiny_sdxl, home, {"steps": 1}), home)
    before = weights(old)
    other = tiny_recipe(tiny_sdxl, home, {"steps": 2, "save_every": 1})
    with pytest.raises(UsageError, match="already"):
        train_concept(other, home)
    with pytest.raises(Halt):
        train_concept(other, home, lambda event: _raise() if isinstance(event, Loss) else None, overwrite=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(old).items())
    new = train_concept(other, home, overwrite=True)
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(new).items())
    assert sorted(path.name for path in home.library.iterdir()) == ["milo"]


def _raise() -> None:
    raise Halt


def test_a_failed_start_leaves_nothing(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"targets": ("to_q", "to_x")})
    with pytest.raises(UsageError, match="no layers called to_x"):
        train_concept(recipe, home)
    assert list(home.library.iterdir()) == []


def test_a_caption_longer_than_the_base_reads_is_named(tiny_sdxl: Path, home: Home) -> None:
    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 1, "prior_preservation": False})
    (recipe.pictures / "1.txt").write_text("a sks cat " * 7 + "a blue dog")  # 24 tokens are read
    said: list[Event] = []
    train_concept(recipe, home, said.append)
    assert any("1.png" in e.message and "'blue dog'" in e.message for e in said if isinstance(e, Notice))


def test_pictures_are_judged_before_the_base_is_loaded(
    tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tiny_sdxl, home)
    cut = recipe.pictures / "1.png"
    cut.write_bytes(cut.read_bytes()[:500])
    monkeypatch.setattr("studio.trainers.dreambooth.load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"1\.png: the picture is cut short"):
        train_concept(recipe, home, silent)


@pytest.mark.gpu
def test_a_gpu_learns_noise_that_repeats_and_resumes(
    tiny_sdxl: Path, home: Home, cuda: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Training.draw
    monkeypatch.setattr(Training, "draw", lambda self, step: draw(self, 0))
    losses: list[float] = []

    def listen(event: Event) -> None:
        losses.extend([event.loss] if isinstance(event, Loss) else [])
        if len(losses) == 12:
            losses.append(0.0)
            raise KeyboardInterrupt

    recipe = tiny_recipe(tiny_sdxl, home, {"steps": 25, "rank": 8, "learning_rate": 1e-2, "save_every": 5})
    with pytest.raises(KeyboardInterrupt):
        train_concept(recipe, home, listen)
    train_concept(recipe, home, listen, resume=True)
    assert len(losses) == 12 + 1 + 15  # from the checkpoint of step 10
    assert losses[-1] < 0.9 * losses[0]
