"""`studio bench step` and `kernels`: what many adapters cost, and how fast each operation is, on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from studio.errors import StudioError, UsageError
from studio.pipelines.markdown import interval
from studio.ui.benching import OutOption, flat, keep_json, prepare_out, show
from studio.ui.options import JsonOption
from studio.ui.progress import progress

SHAPES = ("sdxl", "sd15", "sdxl-tenth", "sd15-tenth")
SpeedDeviceOption = Annotated[str | None, typer.Option("--device", help="cuda or cpu. Default: the best there is.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="How often all is timed, each in turn.")]


def step(
    shape: Annotated[
        str | None, typer.Option(help=f"{', '.join(SHAPES)}. Default: sdxl on CUDA, sdxl-tenth elsewhere.")
    ] = None,
    rounds: RoundsOption = 20,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="With and without torch.compile: takes minutes.")
    ] = False,
    device: SpeedDeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """What k adapters cost in a forward of the UNet, beside PEFT's; random weights."""
    if shape is not None and shape not in SHAPES:
        raise UsageError(f"There is no shape {shape!r}.", f"Use one of: {', '.join(SHAPES)}.")
    prepare_out(out)
    with progress() as emit:
        from studio.devices import pick_device, pick_dtype
        from studio.pipelines.adapter_bench import AdapterBench, bench_adapters
        from studio.pipelines.compiled_bench import bench_compiled

        chosen = pick_device(device)
        bench = AdapterBench(shape or ("sdxl" if chosen.type == "cuda" else "sdxl-tenth"), rounds=rounds)
        run = bench_compiled if compiled else bench_adapters
        report = run(bench, chosen, pick_dtype(chosen), emit) | _about(chosen)
    _keep(out, f"{'compiled' if compiled else 'step'}-{bench.shape}", report)
    rows = [
        (name, f"{row['ms']:.2f}", interval(row["over none"]), str(row["operators"] or ""), _number(row))
        for name, row in report["arms"].items()
        if "failed" not in row
    ]
    show(report, (bench.shape, "ms", "over no adapter", "operators", "largest difference"), rows, as_json)
    _check_failed(report)


def kernels(
    tiny: Annotated[bool, typer.Option("--tiny", help="Small sizes, to see that everything runs.")] = False,
    rounds: RoundsOption = 20,
    device: SpeedDeviceOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """How fast each operation is, beside other ways and the floor; sizes of SDXL."""
    prepare_out(out)
    with progress() as emit:
        from studio.devices import pick_device, pick_dtype
        from studio.pipelines.kernel_bench import TINY, Sizes, bench_kernels

        chosen = pick_device(device)
        sizes = TINY if tiny else Sizes()
        report = bench_kernels(sizes, rounds, chosen, pick_dtype(chosen), emit) | _about(chosen)
    _keep(out, "kernels", report)
    rows = [
        (operation, name, f"{row['ms']:.3f}", interval(row["ours over it"]), _number(row))
        for operation, found in report["operations"].items()
        if "failed" not in found
        for name, row in found["ways"].items()
    ]
    show(report, ("", "way", "ms", "ours over it", "largest difference"), rows, as_json)
    _check_failed(report)


def _check_failed(report: dict[str, Any]) -> None:
    """Raise StudioError for what could not be measured, after the rest was kept and shown."""
    failed = [f"{name}: {reason}" for name, reason in flat(report).items() if name.endswith("failed")]
    if failed:
        raise StudioError("\n".join(failed), "What else was measured stands above.")


def _about(device: Any) -> dict[str, Any]:
    """What was measured on, and with what."""
    import platform
    from importlib.metadata import version

    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    packages = {one: version(one) for one in ("torch", "diffusers", "peft")}
    return {"machine name": name, "python": platform.python_version(), "packages": packages}


def _keep(out: Path | None, name: str, report: dict[str, Any]) -> None:
    if out is not None:
        keep_json(out, name, report)


def _number(row: dict[str, Any]) -> str:
    return f"{row['largest difference']:.1e}" if "largest difference" in row else ""
