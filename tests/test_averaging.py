from pathlib import Path

import pytest
import torch
from training_helpers import tiny_recipe, weights

from studio.events import Event, Loss, Preview
from studio.home import Home
from studio.trainers import dreambooth
from studio.trainers.averaging import Average
from studio.trainers.dreambooth import train_concept
from studio.trainers.training import Training


def test_previews_and_the_file_show_the_average_and_the_training_goes_on_without_it(
    tiny_sdxl: Path, homes: list[Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Training] = []
    prepare = Training.__post_init__
    monkeypatch.setattr(Training, "__post_init__", lambda self: (prepare(self), trained.append(self))[0])
    walked: list[list[dict[str, torch.Tensor]]] = [[], []]
    shown: list[dict[str, torch.Tensor]] = []
    draw = dreambooth.draw

    def copies() -> dict[str, torch.Tensor]:
        return {name: one.detach().double().clone() for name, one in trained[-1].parameters.items()}

    def watch(*arguments: object) -> object:
        shown.append(copies())
        return draw(*arguments)  # pyright: ignore

    monkeypatch.setattr(dreambooth, "draw", watch)
    written = []
    for home, decay, path in zip(homes, (0.2, 0.0), walked, strict=True):

        def listen(event: Event, path: list = path) -> None:
            if isinstance(event, Loss) or (isinstance(event, Preview) and event.step == 0):
                path.append(copies())

        changes = {"steps": 3, "sample_every": 3, "ema": decay, "sample_prompts": ("a cat",)}
        written.append(weights(train_concept(tiny_recipe(tiny_sdxl, home, changes), home, listen)))
    for averaging, plain in zip(*walked, strict=True):
        assert all(torch.equal(averaging[name], plain[name]) for name in plain)
    expected, *later = walked[0]
    for kept, after in zip((1 / 10, 2 / 11, 0.2), later, strict=True):
        expected = {name: kept * one + (1 - kept) * after[name] for name, one in expected.items()}
    assert len(shown) == 4  # before and after, of both
    for name, one in expected.items():
        torch.testing.assert_close(shown[1][name], one, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(written[0][f"unet.{name.replace('.default', '')}"].double(), one, atol=1e-6, rtol=0)
        assert torch.equal(shown[3][name], later[-1][name])


def test_the_parameters_come_back_even_from_an_error() -> None:
    parameters = {"w": torch.nn.Parameter(torch.zeros(3))}
    average = Average(parameters, 0.9)
    parameters["w"].data += 1
    average.follow(0)

    def fail() -> None:
        with average.shown():
            torch.testing.assert_close(parameters["w"].detach(), torch.full((3,), 0.9))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(parameters["w"].detach(), torch.ones(3))
