from pathlib import Path

import pytest
import torch
from torch import nn
from training_helpers import same, tiny_recipe

from studio.adapters import load_concept
from studio.attaching import attach
from studio.errors import UsageError
from studio.events import Event, Notice, Step
from studio.home import Home
from studio.models import find_base, load_base
from studio.trainers.dreambooth import train_concept
from studio.trainers.krona import KronaTuner, fitting, parameter_count, solved
from studio.trainers.recipe import ATTENTION
from studio.trainers.training import Training

KRONA = {"method": "krona", "factors": (4, 2)}
WIDE = (*ATTENTION, "proj_in", "ff.net.2", "conv1", "conv2")


def predicted(base) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    added = {"text_embeds": torch.randn(1, 24, generator=rng), "time_ids": torch.full((1, 6), 32.0)}
    states = torch.randn(1, 5, base.unet.config["cross_attention_dim"], generator=rng)
    with torch.no_grad():
        return base.unet.eval()(torch.randn(1, 4, 8, 8, generator=rng), 500, states, added_cond_kwargs=added).sample


def test_the_file_merged_is_what_was_trained(tiny_sdxl: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is the dense product, which training never makes."""
    trained: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), trained.append(self))[0])
    told: list[Event] = []
    recipe = tiny_recipe(tiny_sdxl, home, KRONA | {"steps": 3, "targets": WIDE, "learning_rate": 0.05})
    concept = train_concept(recipe, home, told.append)
    assert concept.method == "krona"
    assert any(isinstance(one, Notice) and one.message.startswith("KronA of factors 4 x 2 on") for one in told)
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    live, alone = predicted(trained[0].base), predicted(base)
    assert (live - alone).abs().max() > 1e-3
    with attach(base, [(load_concept(concept), 1.0)]):
        torch.testing.assert_close(predicted(base), live, atol=1e-5, rtol=1e-5)
    with trained[0].tuner.without():
        torch.testing.assert_close(predicted(trained[0].base), alone)
    assert "studio convert" in (concept.folder / "README.md").read_text()


def test_at_first_it_is_nothing_and_only_b_moves(tiny_sdxl: Path, home: Home) -> None:
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    alone = predicted(base)
    tuner = KronaTuner(base, tiny_recipe(tiny_sdxl, home, KRONA))
    assert torch.equal(predicted(base), alone)
    trained = {name for name, one in base.unet.named_parameters() if one.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"krona_a", "krona_b"}
    for name, one in tuner.parameters.items():
        assert (one.std() > 0) == name.endswith(".a")
    a = torch.cat([one.flatten() for name, one in tuner.parameters.items() if name.endswith(".a")])
    assert a.std().item() == pytest.approx(1 / 4, rel=0.2)
    states = torch.randn(1, 5, base.unet.config["cross_attention_dim"])
    added = {"text_embeds": torch.randn(1, 24), "time_ids": torch.full((1, 6), 32.0)}
    base.unet(torch.randn(1, 4, 8, 8), 500, states, added_cond_kwargs=added).sample.square().mean().backward()
    for name, one in tuner.parameters.items():
        assert one.grad is not None
        assert bool(one.grad.any()) == name.endswith(".b")


def test_resuming_is_exact(tiny_sdxl: Path, tmp_path: Path) -> None:
    homes = [Home(tmp_path / name) for name in "ab"]
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], KRONA), homes[0])

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5 and event.total == 6:
            raise RuntimeError

    recipe = tiny_recipe(tiny_sdxl, homes[1], KRONA | {"save_every": 3})
    with pytest.raises(RuntimeError):
        train_concept(recipe, homes[1], stop)
    assert same(straight, train_concept(recipe, homes[1], resume=True))


def test_factors_divide_every_layer() -> None:
    assert fitting(nn.Linear(640, 1280), (64, 8)) == (64, 8)
    assert fitting(nn.Linear(12, 20), (8, 8)) == (4, 4)
    assert fitting(nn.Conv2d(6, 9, 3), (4, 4)) == (1, 2)


def test_a_number_of_parameters_is_kept_to() -> None:
    layers: list[nn.Linear | nn.Conv2d] = [nn.Linear(64, 64), nn.Linear(32, 64), nn.Conv2d(16, 32, 3)]
    every = {(2 ** -(-n // 2), 2 ** (n // 2)) for n in range(2, 16)}
    counts = sorted({parameter_count(layers, one) for one in every})
    assert parameter_count(layers, (4, 4)) == 3 * 16 + (64 * 64 + 32 * 64 + 16 * 32 * 9) // 16
    for most in (counts[0], counts[1], counts[1] + 1, counts[-1] + 100):
        assert parameter_count(layers, solved(layers, most)) == max(one for one in counts if one <= most)
    with pytest.raises(UsageError, match=f"takes {counts[0]:,} parameters at least"):
        solved(layers, counts[0] - 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "krona", "rank": 4}, "rank says nothing to the method krona"),
        ({"factors": (4, 4)}, "factors says nothing to the method lora"),
        (KRONA | {"parameter_count": 900}, "by one of the two"),
        ({"method": "krone"}, "method"),
    ],
)
def test_settings_of_another_method_are_refused(tiny_sdxl: Path, home: Home, given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny_recipe(tiny_sdxl, home, given)
