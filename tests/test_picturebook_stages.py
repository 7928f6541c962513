"""The stages of the base's training: what they leave in the run's folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from transformers import CLIPTextModelWithProjection

from studio.trainers import picturebook
from studio.trainers.picturebook import decoder_stage, text_stage, three_stage, unet_stage, vae_stage
from studio.trainers.picturebook_pipeline import export
from studio.trainers.picturebook_text import build_towers, train_tokenizer
from studio.trainers.picturebook_unet import Stage, TextSide, build_unet
from studio.trainers.picturebook_vae import build_vae


@pytest.fixture(scope="module")
def text() -> TextSide:
    tokenizer = train_tokenizer(0)
    first, second = build_towers(tokenizer)
    return TextSide(tokenizer, first.eval(), second.eval())


@pytest.fixture
def vae() -> AutoencoderTiny:
    return build_vae(torch.rand(4, 3, 32, 32)).eval()


def untrained(monkeypatch: pytest.MonkeyPatch, vae: AutoencoderTiny, text: TextSide) -> None:
    """What the stages train is there at once."""
    trained: dict[str, Any] = {
        "train_vae": vae,
        "train_decoder": vae,
        "train_tokenizer": text.tokenizer,
        "train_towers": (text.first, text.second),
        "teach_three": None,
        "train_unet": build_unet(),
        "psnr": 0.0,
    }
    for name, result in trained.items():
        monkeypatch.setattr(picturebook, name, lambda *given, result=result: result)
    monkeypatch.setattr(picturebook, "_processes", lambda *given: 1)


def cut_off(monkeypatch: pytest.MonkeyPatch, kind: type[Any]) -> None:
    """The first result of this kind is left half written, as by a process that ends there."""
    whole, saved = kind.save_pretrained, []

    def save(self: Any, folder: Path, *given: Any, **named: Any) -> None:
        whole(self, folder, *given, **named)
        if "start" not in Path(folder).parts and not saved:
            saved.append(folder)
            next(Path(folder).glob("*.safetensors")).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(kind, "save_pretrained", save)


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        (AutoencoderTiny, lambda run, vae, text: vae_stage(run, 1)),
        (AutoencoderTiny, lambda run, vae, text: decoder_stage(run, 1, vae)),
        (CLIPTextModelWithProjection, lambda run, vae, text: text_stage(run, 1)),
        (CLIPTextModelWithProjection, lambda run, vae, text: three_stage(run, 1, text)),
        (
            UNet2DConditionModel,
            lambda run, vae, text: unet_stage(run, "tiny", Stage(32, 4, 2, 1e-3, 1e-4), vae, text, build_unet(), 4),
        ),
    ],
    ids=["vae", "decoder", "text", "three", "unet"],
)
def test_a_stage_that_ended_while_it_was_saved_is_not_taken_for_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vae: AutoencoderTiny,
    text: TextSide,
    kind: type[Any],
    stage: Callable[[Path, AutoencoderTiny, TextSide], Any],
):
    untrained(monkeypatch, vae, text)
    cut_off(monkeypatch, kind)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path, vae, text)
    assert stage(tmp_path, vae, text) is not None


def test_an_export_that_ends_early_leaves_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: AutoencoderTiny, text: TextSide
):
    out, unet = tmp_path / "export", build_unet()
    export(out, vae, text, unet)
    (out / "README.md").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with monkeypatch.context() as patched:
        cut_off(patched, UNet2DConditionModel)
        with pytest.raises(KeyboardInterrupt):
            export(out, vae, text, build_unet())
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    export(out, vae, text, build_unet())
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert [path.relative_to(out).parts[0] for path in after if after[path] != before[path]] == ["unet"]
