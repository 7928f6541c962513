"""Trains the embedded base "picturebook" from nothing: `python -m studio.trainers.picturebook --run FOLDER`.

Stages in order: vae, decoder, text, coarse (64 px), fine (96 px), export. Each leaves its result in the run folder,
whole or not at all, and is left out when that is there. Cut off, coarse and fine go on from their last state, which is
saved every five minutes; vae, decoder and text, half an hour at most, begin anew. `--from MODEL` begins the fine stage
from the weights of an exported model instead, e.g. the shipped one; what `--sharpen` and the two `--teach-...` do
before it begins anew too.
"""

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from multiprocessing import parent_process
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel
from filelock import FileLock, Timeout
from torch.multiprocessing.spawn import spawn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from studio.errors import StudioError
from studio.home import write_folder
from studio.trainers.picturebook_decoder import train_decoder
from studio.trainers.picturebook_pipeline import assemble, contact_sheet, export
from studio.trainers.picturebook_text import train_tokenizer, train_towers
from studio.trainers.picturebook_three import teach_three
from studio.trainers.picturebook_unet import Stage, TextSide, build_unet, train_unet
from studio.trainers.picturebook_vae import psnr, train_vae
from studio.trainers.picturebook_worn import teach_worn
from studio.trainers.processes import ALONE, Team

STAGES = {
    "coarse": Stage(size=64, samples=130_000, batch=32, peak=1.2e-3, last=8e-4),
    "fine": Stage(size=96, samples=190_000, batch=64, peak=1e-3, last=3e-5, seed=1, clear=0.4, threes=3),
}
STEPS = {"vae": 4500, "decoder": 7000, "text": 1500, "worn": 600}
MEETING = "meeting"  # the file by which the processes of a team find each other


def vae_stage(run: Path, steps: int) -> AutoencoderTiny:
    """Train or load the VAE."""
    folder = run / "vae"
    if not folder.exists():
        vae = train_vae(steps, 24, 0, lambda step, loss: print(f"vae {step} {loss:.4f}") if step % 200 == 0 else None)
        print(f"vae psnr {psnr(vae):.2f} dB")
        write_folder(folder, vae.save_pretrained)
    return AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)


def decoder_stage(run: Path, steps: int, vae: AutoencoderTiny) -> AutoencoderTiny:
    """Give the VAE a deeper decoder, or load it with one."""
    folder = run / "decoder"
    if not folder.exists():
        taught = train_decoder(vae, steps, 8000, 0, _every("decoder", 200))
        print(f"decoder psnr {psnr(vae):.2f} dB, now {psnr(taught):.2f} dB")
        write_folder(folder, taught.save_pretrained)
    return AutoencoderTiny.from_pretrained(folder).eval().requires_grad_(False)


def text_stage(run: Path, steps: int, worn: int) -> TextSide:
    """Train or load tokenizer and towers; these then learn for `worn` steps what things wear."""
    if not (run / "text_encoder_2").exists():
        tokenizer = train_tokenizer(0)
        towers = train_towers(tokenizer, steps, 96, 0, _every("text", 100))
        teach_worn(tokenizer, towers, worn, 96, 0, _every("worn", 50))
        _write_text(run, TextSide(tokenizer, *towers))
    return _text_side(run)


def _every(stage: str, steps: int) -> Callable[[int, float, str], None]:
    return lambda step, loss, read: (
        print(f"{stage} {step} {loss:.4f} {read}", flush=True) if step % steps == 0 else None
    )


def _write_text(run: Path, text: TextSide) -> None:
    parts = {"tokenizer": text.tokenizer, "text_encoder": text.first, "text_encoder_2": text.second}
    for name, part in parts.items():  # the last says that all are there
        write_folder(run / name, part.save_pretrained)


def _text_side(run: Path) -> TextSide:
    return TextSide(
        CLIPTokenizer.from_pretrained(run / "tokenizer"),
        CLIPTextModel.from_pretrained(run / "text_encoder").eval().requires_grad_(False),
        CLIPTextModelWithProjection.from_pretrained(run / "text_encoder_2").eval().requires_grad_(False),
    )


def taught_stage(run: Path, three: int, worn: int, text: TextSide) -> TextSide:
    """Teach the towers of a model so many steps of three things, and of what things wear, or load them taught."""
    if not (run / "text_encoder_2").exists():
        towers = text.first, text.second
        if three:
            teach_three(text.tokenizer, towers, three, 96, 0, _every("three", 50))
        if worn:
            teach_worn(text.tokenizer, towers, worn, 96, 0, _every("worn", 50))
        _write_text(run, text)
    return _text_side(run)


def unet_stage(
    run: Path, name: str, stage: Stage, vae: AutoencoderTiny, text: TextSide, start: UNet2DConditionModel, pool: int
) -> UNet2DConditionModel:
    """Train or load the UNet of one stage, beginning at `start`."""
    folder = run / name
    if not (folder / "unet").exists():
        assemble(vae, text, start).save_pretrained(folder / "start")
        size = _processes(stage.batch, start.device)
        if size == 1:
            _train_share(ALONE, stage, folder, pool, str(start.device))
        else:
            (folder / MEETING).unlink(missing_ok=True)
            spawn(_train_in_team, (size, stage, folder, pool), nprocs=size)
    return UNet2DConditionModel.from_pretrained(folder / "unet")


def _processes(batch: int, device: torch.device) -> int:
    """On a CPU one process a core that this one may use, in equal shares of each batch: two of one thread do half as
    much again as one of two threads."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(n for n in range(1, cores + 1) if batch % n == 0)


def _train_in_team(rank: int, size: int, stage: Stage, folder: Path, pool: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", (folder / MEETING).absolute().as_uri(), rank=rank, world_size=size)
    _train_share(Team(rank, size), stage, folder, pool, "cpu")
    dist.destroy_process_group()


def _end_with_parent() -> None:
    """Wait for the process that began this one, and end with it, however it ended; states are written atomically."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train_share(team: Team, stage: Stage, folder: Path, pool: int, device: str) -> None:
    """This process's part of a stage that begins at the model in `folder`; the first of the team writes the result."""
    pipe = StableDiffusionXLPipeline.from_pretrained(folder / "start", add_watermarker=False).to(device)
    vae, text = pipe.vae, TextSide(pipe.tokenizer, pipe.text_encoder, pipe.text_encoder_2)

    def preview(unet: UNet2DConditionModel, done: int) -> None:
        contact_sheet(assemble(vae, text, unet), stage.size).save(folder / f"preview-{done:07d}.png")

    with _alone_in(folder) if team.rank == 0 else nullcontext():
        average = train_unet(stage, pipe.unet, vae, text, folder, pool, preview, team)
        if team.rank == 0:
            write_folder(folder / "unet", average.save_pretrained)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder: a team may outlive the process that began it, and a second one would write the same states."""
    try:
        with FileLock(folder / "lock", blocking=False):
            yield
    except Timeout:
        raise StudioError(f"Another process trains in {folder}.", "Stop it, or take another --run.") from None


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the embedded base model from nothing.")
    parser.add_argument("--run", type=Path, required=True, help="folder of the stages' results")
    parser.add_argument("--from", dest="start", type=Path, help="an exported model whose weights begin the fine stage")
    parser.add_argument("--teach-three", type=int, default=0, help="with --from: steps that teach text three things")
    parser.add_argument("--teach-worn", type=int, default=0, help="with --from: steps that teach text what things wear")
    parser.add_argument("--sharpen", type=int, default=0, help="with --from: steps of a new, deeper decoder")
    parser.add_argument("--until", choices=("vae", "decoder", "text", "coarse", "fine", "export"), default="export")
    parser.add_argument("--out", type=Path, help="where to export to (default: RUN/export)")
    parser.add_argument("--fine-samples", type=int, default=STAGES["fine"].samples)
    parser.add_argument("--fine-peak", type=float, default=STAGES["fine"].peak)
    parser.add_argument("--fine-seed", type=int, default=STAGES["fine"].seed)
    parser.add_argument("--pool", type=int, default=60_000, help="pictures drawn for a stage")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.start and args.until not in ("fine", "export"):
        parser.error(
            f"--from begins with the fine stage, after --until {args.until}: "
            "take --until fine or export, or leave --from out"
        )
    if (args.teach_three or args.teach_worn or args.sharpen) and not args.start:
        parser.error(
            "--teach-three, --teach-worn and --sharpen change a model that is there: "
            "name it by --from, or leave them out"
        )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stages that are not done."""
    args = _arguments(argv)
    torch.manual_seed(0)
    args.run.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    if args.start:
        pipe = StableDiffusionXLPipeline.from_pretrained(args.start, torch_dtype=torch.float32, add_watermarker=False)
        vae, text, unet = pipe.vae, TextSide(pipe.tokenizer, pipe.text_encoder, pipe.text_encoder_2), pipe.unet
        if args.sharpen:
            vae = decoder_stage(args.run, args.sharpen, vae)
        if args.teach_three or args.teach_worn:
            text = taught_stage(args.run, args.teach_three, args.teach_worn, text)
    else:
        vae = vae_stage(args.run, STEPS["vae"])
        if args.until == "vae":
            return
        vae = decoder_stage(args.run, STEPS["decoder"], vae)
        if args.until == "decoder":
            return
        text = text_stage(args.run, STEPS["text"], STEPS["worn"])
        if args.until == "text":
            return
        unet = build_unet()
    vae, unet = vae.to(args.device), unet.to(args.device)
    for tower in (text.first, text.second):
        tower.to(args.device)
    if not args.start:
        unet = unet_stage(args.run, "coarse", STAGES["coarse"], vae, text, unet, args.pool).to(args.device)
        if args.until == "coarse":
            return
    fine = replace(STAGES["fine"], samples=args.fine_samples, peak=args.fine_peak, seed=args.fine_seed)
    unet = unet_stage(args.run, "fine", fine, vae, text, unet, args.pool)
    if args.until == "fine":
        return
    export(args.out or args.run / "export", vae.cpu(), text, unet)
    print(f"exported after {(time.monotonic() - began) / 60:.1f} min")


if __name__ == "__main__":
    main()
