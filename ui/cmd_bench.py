"""`studio bench`: what the base, the sample concepts, their composition and the judges are worth, in numbers."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.events import Phase
from studio.home import Home
from studio.pipelines.markdown import interval
from studio.ui.benching import (
    NamesOption,
    OutOption,
    PresetOption,
    flat,
    keep_json,
    keep_report,
    learn_samples,
    learn_styles,
    load_tools,
    prepare_out,
    sample_names,
    show,
)
from studio.ui.cmd_bench_compose import compose, compose_cost
from studio.ui.cmd_bench_scores import best_of, metrics, report
from studio.ui.cmd_bench_speed import kernels, step
from studio.ui.options import HomeOption, JsonOption
from studio.ui.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

app = typer.Typer(
    no_args_is_help=True,
    help="Measure the embedded base, the sample concepts, their composition and the judges; B reads the pictures.",
)

app.command("compose")(compose)
app.command("compose-cost")(compose_cost)
app.command("step")(step)
app.command("kernels")(kernels)
app.command("metrics")(metrics)
app.command("best-of")(best_of)
app.command("report")(report)


@app.command("base")
def base(
    singles: Annotated[int, typer.Option(min=1, help="Pictures of one subject.")] = 500,
    pairs: Annotated[int, typer.Option(min=1, help="Pictures of two subjects.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 5_000_000,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option(min=0, help="Classifier-free scale.")] = 2.5,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """How often the base draws what captions of subjects that it never saw ask for."""
    prepare_out(out)
    with progress() as emit:
        model, judge = load_tools(emit)
        from studio.pipelines.base_bench import BaseBench, bench_base

        found, pictures = bench_base(model, judge, BaseBench(singles, pairs, seed, steps, guidance), emit)
    report: dict[str, Any] = {"judge": "B", **found}
    rows = [
        (part, question, interval(found), f"{found['on_renders']:.2f}", str(found["count"]))
        for part in pictures
        for question, found in report[part].items()
    ]
    keep_report(out, "base", report, pictures)
    show(report, ("", "right", "share [95 %]", "on true drawings", "of"), rows, as_json)


@app.command("blocks")
def blocks(
    count: Annotated[int, typer.Option(min=1, help="Pairs of prompts.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 7_000_000,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each attention block carries: how often the picture follows the prompt given to that block alone."""
    prepare_out(out)
    with progress() as emit:
        model, judge = load_tools(emit)
        from studio.pipelines.block_bench import FIELDS, bench_blocks

        table, pictures = bench_blocks(model, judge, count, seed, emit)
    rows = [(name, *(f"{shares[field]:.2f}" for field in FIELDS)) for name, shares in table.items()]
    report = {"base": model.source.name, "judge": "B", "pairs": count, "seed": seed, "follows": table}
    keep_report(out, "blocks", report, pictures)
    show(report, ("block", *FIELDS), rows, as_json)


@app.command("concepts")
def concepts(
    names: NamesOption = None,
    preset: PresetOption = "normal",
    config: Annotated[Path | None, typer.Option(help="A recipe in TOML whose settings all samples take.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 8,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """How well sample concepts are learned. Those that the library does not have yet are trained first."""
    chosen = sample_names(names)
    prepare_out(out)
    reports: dict[str, dict[str, Any]] = {}
    pictures: dict[str, list[Image]] = {}
    with progress() as emit:
        learned = learn_samples(chosen, preset, Home.resolve(home), emit, config)
        model, judge = load_tools(emit)
        from studio.pipelines.concept_bench import ConceptBench, bench_concept

        for one in learned:
            report, drawn = bench_concept(model, judge, one.concept, one.subject, ConceptBench(seeds), emit)
            reports[one.sample] = report | {"training_seconds": one.seconds, "steps": one.recipe.steps}
            reports[one.sample]["bytes"] = one.concept.adapter_file.stat().st_size
            pictures |= {f"{one.sample}: {row}": made for row, made in drawn.items()}
    first = reports[chosen[0]]
    measured = [key for key, value in first.items() if isinstance(value, dict) and "low" in value]
    overall = {key: _pooled([report[key] for report in reports.values()]) for key in measured}
    rows = [(name, *(interval(r[key]) for key in measured)) for name, r in (reports | {"all": overall}).items()]
    settings = {} if config is None else tomllib.loads(config.read_text(encoding="utf-8"))
    summary = {
        "judge": "B",
        "preset": preset,
        "settings": settings,
        "seeds": seeds,
        "overall": overall,
        "concepts": reports,
    }
    keep_report(out, "concepts", summary, pictures)
    show(summary, ("concept", *measured), rows, as_json)


@app.command("styles")
def styles(
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """How well B-LoRA separates content and style: one picture in each style is learned, some minutes in all."""
    prepare_out(out)
    with progress() as emit, TemporaryDirectory() as folder:
        learned, steps = learn_styles(Home(Path(folder)), emit)
        model, judge = load_tools(emit)
        from studio.pipelines.style_bench import SCORED, StyleBench, bench_styles

        tasks, pictures = bench_styles(model, judge, learned, StyleBench(seeds), emit)
    rows = [
        (task, who, *(interval(found[who][field]) for field in SCORED), str(found[who][SCORED[0]]["count"]))
        for task, found in tasks.items()
        for who in ("with the halves", "the base alone")
    ]
    report = {"judge": "B", "seeds": seeds, "steps of training": steps, "tasks": tasks}
    keep_report(out, "styles", report, pictures)
    show(report, ("task", "", *SCORED, "of"), rows, as_json)


@app.command("judges")
def judges(
    count: Annotated[int, typer.Option(min=1, help="Pictures of the base; twice as many true ones.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 8_000_000,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """How often the judges are right on true drawings, before and after the base's VAE, and how often they agree."""
    prepare_out(out)
    with progress() as emit:
        model, judge = load_tools(emit)
        from studio.judge import Judge
        from studio.pipelines.judge_bench import bench_agreement
        from studio.trainers.judge import measured

        both = {"A": Judge.load("A"), "B": judge}
        report: dict[str, Any] = {}
        for which, one in both.items():
            emit(Phase(f"judge {which} reads true drawings"))
            report[which] = measured(one, model.vae, seed, 2 * count)
        agreed, pictures = bench_agreement(model, (both["A"], judge), count, seed, emit)
    told = {which: flat(found) for which, found in report.items()}
    report["agreement on pictures of the base"] = agreed
    rows = [(name, *(interval(found[name]) for found in told.values())) for name in told["A"]]
    rows += [(f"they agree: {field}", interval(found), "") for field, found in agreed.items()]
    keep_report(out, "judges", report, {"pictures": pictures})
    show(report, ("", "judge A", "judge B"), rows, as_json)


@app.command("train")
def train(
    script: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="train_dreambooth_lora_sdxl.py of diffusers' examples.")
    ],
    steps: Annotated[int, typer.Option(min=2, help="Steps that are timed, in every turn.")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of every arm.")] = 3,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a training step takes beside diffusers' own script, which needs torchvision; all arms in turns."""
    prepare_out(out)
    with progress() as emit:
        from studio.trainers.step_bench import StepBench, bench_steps

        report = bench_steps(StepBench(script.absolute(), steps, rounds), emit)
    rows = [
        (base, arm, *(f"{took[key]:.3f}" if key in took else "" for key in next(reversed(found.values()))))
        for base, found in report.items()
        for arm, took in found.items()
        if isinstance(took, dict)
    ]
    if out is not None:
        keep_json(out, "training-step", report)
    show(report, ("", "", "seconds a step", "to diffusers", "to it with latents cached"), rows, as_json)


def _pooled(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One share of all pictures together."""
    from studio.stats import Share

    hits = sum(round(one["value"] * one["count"]) for one in found)
    total = int(sum(one["count"] for one in found))
    return Share.of([n < hits for n in range(total)]).rounded()
