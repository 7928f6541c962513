from pathlib import Path
from typing import Any

import pytest
import torch
from composing import latents
from test_krona import WIDE, predicted
from torch import nn
from training_helpers import same, tiny_recipe

from studio.adapter_writing import write_adapter
from studio.adapters import Adapter, load_adapter, load_concept
from studio.attaching import attach
from studio.bank import AdapterBank
from studio.errors import UsageError
from studio.events import Event, Notice, Step
from studio.gates import Gate
from studio.home import Home
from studio.models import find_base, load_base
from studio.pipelines.baselines import Composite, Merge
from studio.rotation import Rotation
from studio.trainers.dreambooth import train_concept
from studio.trainers.oft import turned
from studio.trainers.training import Training

OFT: dict[str, Any] = {"method": "oft", "block_size": 4, "learning_rate": 0.02}


def dense(blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The turned weight row by row, as the formula of LyCORIS's Diag-OFT says, in float64."""
    made = torch.zeros_like(weight, dtype=torch.float64)
    size = blocks.shape[1]
    for k, block in enumerate(blocks.double()):
        q = block - block.T
        r = (torch.eye(size).double() + q) @ torch.linalg.inv(torch.eye(size).double() - q)
        for m in range(size):
            for n in range(size):
                made[k * size + m] += r[n, m] * weight[k * size + n].double()
    return made


@pytest.mark.parametrize("layer", [nn.Linear(5, 6), nn.Linear(5, 6, bias=False), nn.Conv2d(5, 6, 3, 2, 1)])
def test_training_turns_the_output_as_the_file_turns_the_weight(layer: Any) -> None:
    blocks = torch.randn(3, 2, 2)
    x = torch.randn(2, 7, 5) if isinstance(layer, nn.Linear) else torch.randn(2, 5, 8, 8)
    got = layer(x) + turned(layer, layer(x), blocks)
    weight = layer.weight.detach().clone()
    layer.weight.data = dense(blocks, weight).float()
    torch.testing.assert_close(got, layer(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Rotation(blocks).delta(weight), layer.weight.detach() - weight, atol=1e-5, rtol=1e-5)


def test_an_angle_is_known() -> None:
    """tan(angle / 2) stands in a block of two: 90 degrees are 1."""
    turn = Rotation(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])).matrices() + torch.eye(2)
    torch.testing.assert_close(turn[0], torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))


def test_alpha_bounds_the_norm() -> None:
    blocks = torch.randn(2, 3, 3)
    norm = float((blocks - blocks.mT).norm())
    half = Rotation(blocks, norm / 12)  # alpha times the six outputs is half the norm
    torch.testing.assert_close(half.matrices(), Rotation(blocks / 2).matrices())
    for alpha in (0.0, None, norm):
        assert torch.equal(Rotation(blocks, alpha).matrices(), Rotation(blocks).matrices())


@pytest.mark.parametrize("folder", ["tiny_sdxl", "tiny_sd15"])
def test_the_file_is_what_was_trained(
    folder: str, home: Home, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), trained.append(self))[0])
    told: list[Event] = []
    at = request.getfixturevalue(folder)
    more = {"steps": 3, "targets": WIDE, "new_word": True, "trigger": "milo0"}
    concept = train_concept(tiny_recipe(at, home, OFT | more), home, told.append)
    adapter, tuner = load_concept(concept), trained[0].tuner
    assert {factor.kind for factor in adapter.factors.values()} == {"OFT"}
    assert (list(adapter.embeddings), adapter.unread) == (["milo0"], ())
    base = load_base(find_base(str(at)), "cpu")
    for name, blocks in tuner.parameters.items():
        weight: Any = base.unet.get_submodule(name).weight
        change = adapter.delta(f"unet.{name}", weight.data)
        truth = dense(blocks.detach(), weight.data) - weight.data
        assert truth.norm() > 0
        assert (change - truth).norm() < 1e-5 * truth.norm()
    live, alone = predicted(trained[0].base), predicted(base)
    assert (live - alone).abs().max() > 1e-3
    with attach(base, [(adapter, 1.0)]):
        torch.testing.assert_close(predicted(base), live, atol=1e-5, rtol=1e-5)
    with trained[0].tuner.without():
        assert torch.equal(predicted(trained[0].base), alone)
    said = next(one.message for one in told if isinstance(one, Notice) and "parameters" in one.message)
    count = sum(one.numel() for one in trained[0].parameters.values())
    assert said.startswith(f"OFT of blocks of 4 on {len(tuner.parameters)} layers")
    assert f"{count:,} parameters" in said
    assert "studio convert" not in (concept.folder / "README.md").read_text()


def test_it_composes_with_another(tiny_sdxl: Path, home: Home) -> None:
    kinds = {"milo": OFT, "rex": {"method": "loha", "learning_rate": 0.05}}
    concepts = [
        train_concept(tiny_recipe(tiny_sdxl, home, how | {"name": name, "targets": WIDE, "trigger": name}), home)
        for name, how in kinds.items()
    ]
    base = load_base(find_base(str(tiny_sdxl)), "cpu")
    for composer in (Merge(), Composite()):
        made, _ = latents(base, concepts, composer)
        assert made.isfinite().all()
    adapters = [load_concept(one) for one in concepts]
    with AdapterBank(base, adapters).installed() as bank, bank.use(Gate(torch.ones(1, 2))):
        composed = predicted(base)
    with torch.no_grad():
        parts: list[Any] = [
            (base.unet.get_submodule(layer.removeprefix("unet.")), one.factors[layer])
            for one in adapters
            for layer in one.layers
        ]
        changes = [factor.delta(module.weight) for module, factor in parts]
        for (module, _), change in zip(parts, changes, strict=True):
            module.weight += change.reshape(module.weight.shape)
    torch.testing.assert_close(composed, predicted(base), atol=1e-5, rtol=1e-5)


def test_resuming_is_exact(tiny_sdxl: Path, tmp_path: Path) -> None:
    homes = [Home(tmp_path / name) for name in "ab"]
    straight = train_concept(tiny_recipe(tiny_sdxl, homes[0], OFT), homes[0])

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 5 and event.total == 6:
            raise RuntimeError

    recipe = tiny_recipe(tiny_sdxl, homes[1], OFT | {"save_every": 3})
    with pytest.raises(RuntimeError):
        train_concept(recipe, homes[1], stop)
    assert same(straight, train_concept(recipe, homes[1], resume=True))


def test_kohyas_own_keys_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    key, blocks = "oft_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", torch.randn(4, 4, 4)
    save_file({f"{key}.oft_blocks": blocks, f"{key}.alpha": torch.tensor(0.001)}, tmp_path / "oft.safetensors")
    factors = load_adapter(tmp_path / "oft.safetensors").factors
    (factor,) = factors.values()
    assert isinstance(factor, Rotation)
    assert list(factors) == ["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert factor.alpha == pytest.approx(0.001)
    assert torch.equal(factor.blocks, blocks)


@pytest.mark.parametrize("more", [{"rescale": torch.ones(16, 1)}, {"dora_scale": torch.ones(16, 1)}])
def test_what_is_more_than_a_rotation_is_not_read_as_one(more: dict, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    key = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {"oft_blocks": torch.randn(4, 4, 4)} | more
    other = {f"{key}.lora_down.weight".replace("proj_in", "proj_out"): torch.randn(2, 16)}
    other |= {f"{key}.lora_up.weight".replace("proj_in", "proj_out"): torch.randn(16, 2)}
    save_file({f"{key}.{part}": one for part, one in tensors.items()} | other, tmp_path / "more.safetensors")
    adapter = load_adapter(tmp_path / "more.safetensors")
    assert list(adapter.factors) == ["unet.mid_block.attentions.0.proj_out"]
    assert len(adapter.unread) == 2


@pytest.mark.parametrize("to", ["diffusers", "peft", "kohya"])
def test_other_files_cannot_hold_it(to: Any, tmp_path: Path) -> None:
    adapter = Adapter("turn", "OFT", "sdxl", {"unet.mid_block.attentions.0.proj_in": Rotation(torch.randn(2, 2, 2))})
    with pytest.raises(UsageError, match=f"is OFT, which {to} files cannot hold"):
        write_adapter(adapter, tmp_path / "x.safetensors", to, rank=4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (OFT | {"rank": 4}, "rank says nothing to the method oft"),
        ({"block_size": 4}, "block_size says nothing to the method lora"),
        (OFT | {"block_size": 1}, "block_size is 1; it must be at least 2"),
    ],
)
def test_settings_of_another_method_are_refused(tiny_sdxl: Path, home: Home, given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny_recipe(tiny_sdxl, home, given)


def test_blocks_that_divide_nothing_are_refused(tiny_sdxl: Path, home: Home) -> None:
    with pytest.raises(UsageError, match="blocks of one turn nothing"):
        train_concept(tiny_recipe(tiny_sdxl, home, OFT | {"block_size": 7}), home)
