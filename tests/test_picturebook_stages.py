"""The stages of the base's training: what they leave in the run's folder."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from studio.trainers import picturebook, picturebook_pipeline
from studio.trainers.picturebook import decoder_stage, main, taught_stage, text_stage, unet_stage, vae_stage
from studio.trainers.picturebook_decoder import train_decoder
from studio.trainers.picturebook_pipeline import contact_sheet, export
from studio.trainers.picturebook_text import build_towers
from studio.trainers.picturebook_unet import Stage, TextSide, build_unet
from studio.trainers.picturebook_vae import build_vae


@pytest.fixture
def text(tokenizer: CLIPTokenizer) -> TextSide:
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
        (CLIPTextModelWithProjection, lambda run, vae, text: text_stage(run, 1, 1)),
        (CLIPTextModelWithProjection, lambda run, vae, text: taught_stage(run, 1, 1, text)),
        (
            UNet2DConditionModel,
            lambda run, vae, text: unet_stage(run, "tiny", Stage(32, 4, 2, 1e-3, 1e-4), vae, text, build_unet(), 4),
        ),
    ],
    ids=["vae", "decoder", "text", "taught", "unet"],
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


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--from M --until coarse", "--until coarse"),
        ("--from M --until decoder --sharpen 10", "--until decoder"),
        ("--teach-three 10", "--teach-three"),
        ("--teach-worn 10", "--teach-worn"),
        ("--sharpen 10 --until vae", "--sharpen"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, named: str
):
    with pytest.raises(SystemExit) as refused:
        main(["--run", str(tmp_path / "run"), *arguments.split()])
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert named in said
    assert "--from" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script at a size of seconds, by one process."""

    def few_pictures(vae: AutoencoderTiny, steps: int, pool: int, seed: int, log: Any) -> AutoencoderTiny:
        return train_decoder(vae, steps, 8, seed, log)

    monkeypatch.setattr(picturebook, "train_decoder", few_pictures)
    monkeypatch.setattr(picturebook, "STEPS", {"vae": 4, "decoder": 2, "text": 2, "worn": 2})
    for name, seed in (("coarse", 0), ("fine", 1)):
        monkeypatch.setitem(picturebook.STAGES, name, Stage(32, 4, 2, 1e-3, 1e-4, seed=seed, threes=2 * seed))
    monkeypatch.setattr(picturebook_pipeline, "PREVIEW_PROMPTS", ("a red cat",))
    monkeypatch.setattr(picturebook, "_processes", lambda *given: 1)


def states(run: Path) -> dict[str, float]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}


@pytest.mark.slow
def test_the_script_trains_stage_by_stage_and_exports(tmp_path: Path, small: None):
    run = tmp_path / "run"
    wanted = ["vae", "decoder", "text_encoder text_encoder_2 tokenizer", "coarse", "fine", "export"]
    for number, until in enumerate(("vae", "decoder", "text", "coarse", "fine", "export")):
        before = states(run)
        main(["--run", str(run), "--until", until, "--pool", "8", "--device", "cpu"])
        assert sorted(one.name for one in run.iterdir()) == sorted(" ".join(wanted[: number + 1]).split())
        assert before.items() <= states(run).items()  # what was done is left out
    assert len(json.loads((run / "export" / "studio_base.json").read_text())["prior_prompts"]) == 24
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(
        run / "export", torch_dtype=torch.float32, add_watermarker=False
    )
    trained = UNet2DConditionModel.from_pretrained(run / "fine" / "unet")
    for one, other in zip(pipe.unet.parameters(), trained.parameters(), strict=True):
        assert torch.equal(one, other.half().float())
    picture = contact_sheet(pipe, 32, steps=1)
    assert picture.size == (32, 64)


@pytest.mark.slow
def test_the_script_goes_on_from_a_model(tmp_path: Path, small: None, vae: AutoencoderTiny, text: TextSide):
    run, begun = tmp_path / "run", tmp_path / "begun"
    export(begun, vae, text, build_unet())
    options = ["--sharpen", "2", "--teach-three", "2", "--fine-samples", "2", "--pool", "8", "--device", "cpu"]
    main(["--run", str(run), "--from", str(begun), "--out", str(tmp_path / "out"), *options])
    assert sorted(one.name for one in run.iterdir()) == [
        "decoder",
        "fine",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
    ]
    before, after = (load_file(next((folder / "vae").glob("*.safetensors"))) for folder in (begun, tmp_path / "out"))
    encoder = [name for name in before if name.startswith("encoder.")]
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert len(after) > len(before)


@pytest.mark.slow
def test_a_team_trains_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vae: AutoencoderTiny, text: TextSide):
    monkeypatch.setattr(picturebook, "_processes", lambda *given: 2)
    start = build_unet()
    trained = unet_stage(tmp_path, "team", Stage(32, 4, 2, 1e-3, 1e-4), vae, text, deepcopy(start), 8)
    pairs = list(zip(trained.parameters(), start.parameters(), strict=True))
    assert all(bool(one.isfinite().all()) for one, _ in pairs)
    assert any(not torch.equal(one, was) for one, was in pairs)
    assert torch.load(tmp_path / "team" / "state.pt", weights_only=True)["done"] == 4
