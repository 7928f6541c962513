"""`studio bench compose` and `compose-cost`: how well every method composes the sample concepts, and at what cost."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.errors import UsageError
from studio.home import Home, write_atomic
from studio.pipelines.markdown import interval
from studio.pipelines.methods import METHODS, find_method
from studio.ui.benching import (
    NamesOption,
    OutOption,
    PresetOption,
    flat,
    keep_json,
    learn_samples,
    load_tools,
    prepare_out,
    print_table,
    sample_names,
    show,
)
from studio.ui.options import HomeOption, JsonOption, print_json
from studio.ui.progress import progress

if TYPE_CHECKING:
    from studio.events import Emit
    from studio.models import BaseModel
    from studio.pipelines.bench_store import Result, Store
    from studio.pipelines.compose_arms import Arm, Known
    from studio.pipelines.compose_bench import ComposeBench

HEADS = (
    "method", "success", "of the ceiling", "all in place", "in place", "leak", "background", "over merge", "rows",
    "time",
)  # fmt: skip
Scenes = tuple[tuple[str, str], ...]


def compose(
    names: NamesOption = None,
    pairs: Annotated[
        str, typer.Option(help="How many pairs, or which: 20, or 5-12. Those of one class are first.")
    ] = "28",
    triples: Annotated[str, typer.Option(help="How many groups of three, or which.")] = "8",
    seeds: Annotated[int, typer.Option(min=1, help="Pictures of each pair and triple by each method.")] = 8,
    scenes: Annotated[
        str | None, typer.Option(help="Scenes that take turns, as in night/flat,grass/outline.  [four new ones]")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="As in merge,regional.  [all]")] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="In place of other methods, auto with one part left out.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps, the same for all methods.")] = 25,
    rounds: Annotated[
        int, typer.Option(min=0, help="How often costs are timed, once for all calls; 0: not in this one.")
    ] = 5,
    preset: PresetOption = "normal",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where all that is found is kept, and looked for.  [outputs/bench-compose]"),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """How well each method composes sample concepts, which are trained first where the library does not have them.

    What was found before is not drawn again: a call that was stopped goes on, several calls can share the pairs, and
    one that finds everything only reports.
    """
    state = Home.resolve(home)
    folder = out or state.outputs / "bench-compose"
    chosen = sample_names(names)
    asked, rounds = _asked(methods, ablation), 0 if ablation else rounds
    numbers, settings = (_range(pairs, "pairs"), _range(triples, "triples")), _scenes(scenes)
    _check_rounds(rounds, asked)
    prepare_out(folder)
    with progress() as emit:
        from studio.pipelines.auto_ablation import ABLATIONS
        from studio.pipelines.bench_store import Store
        from studio.pipelines.compose_arms import YARDSTICKS, Arm, Known, arms_of
        from studio.pipelines.compose_bench import ComposeBench, bench_compose, groups_of
        from studio.pipelines.concept_bench import SCENES

        plan = ComposeBench(seeds, steps=steps, scenes=settings or SCENES)
        groups = [group for size, part in zip((2, 3), numbers, strict=True) for group in groups_of(chosen, size)[part]]
        arms = [*arms_of(asked), *(Arm(one.name, one) for one in ABLATIONS if ablation)]
        _check(arms, groups, steps)
        known = {one.sample: Known(one.concept, one.subject) for one in learn_samples(chosen, preset, state, emit)}
        base, judge = load_tools(emit)
        store = Store(folder)
        members = [tuple(known[name] for name in group) for group in groups]
        results = bench_compose(base, judge, members, [*YARDSTICKS, *arms], plan, store, emit)
        costs = _costs(folder, base, plan, members, arms, rounds, emit)
    report = _report(results, costs, plan, preset) | {"parts": {one.name: one.does for one in ABLATIONS if ablation}}
    report["asked"] = {"names": names, "pairs": pairs, "triples": triples, "methods": methods}
    _keep(folder, "ablation" if ablation else "compose", report, results, store)
    _show(report, as_json)


def _asked(methods: str | None, ablation: bool) -> list[str]:
    if ablation and methods:
        raise UsageError("--ablation is about auto alone, and --methods asks for others.", "Give one of the two.")
    asked = ["auto"] if ablation else methods.split(",") if methods else METHODS
    return list(dict.fromkeys(find_method(name).name for name in asked))


def _check_rounds(rounds: int, asked: Sequence[str]) -> None:
    if rounds and "merge" not in asked:
        raise UsageError("Costs are beside those of merge, which is not asked for.", "Add merge, or give --rounds 0.")


def _range(text: str, what: str) -> slice:
    """Which of a list: "20" are the first 20, "5-12" those from the fifth to the twelfth."""
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()) or (dash and not 1 <= int(first) <= int(last)):
        raise UsageError(f"--{what} {text} is neither a number nor a range.", "Write 20, or 5-12.")
    return slice(int(first) - 1, int(last)) if dash else slice(int(first))


def _scenes(text: str | None) -> Scenes:
    from studio.picturebook import BACKGROUND_WORDS, STYLE_WORDS

    found = []
    for scene in text.split(",") if text else []:
        ground, _, style = scene.partition("/")
        if ground not in BACKGROUND_WORDS or style not in STYLE_WORDS:
            raise UsageError(
                f"There is no scene {scene!r}.",
                f"Join one of {', '.join(BACKGROUND_WORDS)} and one of {', '.join(STYLE_WORDS)} with a slash.",
            )
        found.append((ground, style))
    return tuple(found)


def _check(arms: "Sequence[Arm]", groups: Sequence[tuple[str, ...]], steps: int) -> None:
    """Raise UsageError for what a method cannot draw, before anything is trained for it."""
    if not groups:
        raise UsageError("There is no pair or triple among what is asked for.", "Give more --names or --pairs.")
    largest = max(groups, key=len)
    for arm in arms:
        if arm.method is not None and not arm.boxes:
            arm.method.check(largest, None, steps)


def _costs(
    folder: Path,
    base: "BaseModel",
    plan: "ComposeBench",
    groups: "Sequence[tuple[Known, ...]]",
    arms: "Sequence[Arm]",
    rounds: int,
    emit: "Emit",
) -> dict[str, Any]:
    """Those of one picture of the first pair, none where there is none; of an earlier call, where they are of the same
    methods, concepts, base and machine: what shakes is not measured twice."""
    from torch import get_num_threads

    from studio.concepts import file_hash
    from studio.pipelines.bench_store import fingerprint
    from studio.pipelines.compose_cost import method_costs

    pair = next((group for group in groups if len(group) == 2), None)
    if pair is None:
        return {}
    file = folder / "costs.json"
    drawn = (base.weights_id(), [(one.concept.phrase, file_hash(one.concept.adapter_file)) for one in pair])
    machine = (str(base.device), get_num_threads())
    made_from = fingerprint((drawn, machine, [repr(arm) for arm in arms], plan.steps, plan.guidance))
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.get("made_from") == made_from:
        return kept
    if rounds:
        found = method_costs(base, plan.ask(pair, [0]), arms, rounds, emit)
        kept = {"made_from": made_from, "rounds": rounds, "device": str(base.device), "methods": found}
        keep_json(folder, "costs", kept)
        return kept
    return {}


def _report(results: "Sequence[Result]", costs: Mapping[str, Any], plan: "ComposeBench", preset: str) -> dict[str, Any]:
    from studio.pipelines.compose_report import section_report, sections_of

    found = {name: section_report(several) for name, several in sections_of(results).items()}
    return {"judge": "B", "preset": preset, "plan": vars(plan), "sections": found, "costs": dict(costs)}


def _keep(folder: Path, title: str, report: Mapping[str, Any], results: "Sequence[Result]", store: "Store") -> None:
    """The report, and sheets: a row for each way to draw but the concepts alone, a column for each group."""
    from studio.pipelines.compose_arms import ALONE
    from studio.pipelines.contact_sheet import comparison_sheet

    keep_json(folder, title, report)
    for size, name in ((2, "pairs"), (3, "triples")):
        rows: dict[str, dict[tuple[str, ...], Any]] = {}
        for one in results:
            if len(one.group) == size and one.arm != ALONE and one.group not in rows.setdefault(one.arm, {}):
                rows[one.arm][one.group] = store.picture(one)
        if rows:
            heads = [" + ".join(group) for group in next(iter(rows.values()))]
            sheet = comparison_sheet({arm: list(row.values()) for arm, row in rows.items()}, heads)
            write_atomic(folder / f"{title}-{name}.png", lambda file, sheet=sheet: sheet.save(file, "PNG"))


def _show(report: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    costs = report["costs"].get("methods", {})
    for title, section in report["sections"].items():
        ceiling = section["ceiling"]
        rows = [(name, *_cells(row, {})) for name, row in section["yardsticks"].items()]
        rows += [("ceiling", interval(ceiling), *[""] * (len(HEADS) - 2))]
        rows += [(name, *_cells(row, costs.get(name, {}))) for name, row in section["methods"].items()]
        print_table((f"{title}: {len(section['groups'])}", *HEADS[1:]), rows)


def _cells(row: Mapping[str, Any], cost: Mapping[str, Any]) -> tuple[str, ...]:
    of = row.get("share of the ceiling")
    over = row.get("over merge")
    return (
        interval(row["success"]),
        "" if of is None else f"{of:.2f}",
        f"{row['all in place']['value']:.2f}",
        f"{row['in place']['value']:.2f}",
        f"{row['leak']['value']:.2f}" if "leak" in row else "",
        f"{row['background']['value']:.2f}",
        "" if over is None else interval(over),
        f"{cost['rows over merge']:.2f}" if cost else "",
        f"{cost['time over merge']['value']:.2f}" if cost else "",
    )


def compose_cost(
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    rounds: Annotated[int, typer.Option(min=1, help="How often all is timed, each in turn.")] = 7,
    preset: PresetOption = "normal",
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """What many adapters cost: five composed, against switching them with diffusers; eight gated; time and memory."""
    prepare_out(out)
    with progress() as emit:
        from studio.events import Phase
        from studio.models import load_base, wrap_pipe
        from studio.pipelines.engine_bench import PROMPTED, bench_engine, memory_beside
        from studio.pipelines.random_bases import HALF_WIDE, random_pipe

        learned = learn_samples(sample_names(None), preset, Home.resolve(home), emit)
        base, _ = load_tools(emit)
        report = bench_engine(base, load_base(base.source), [one.concept for one in learned], steps, rounds, emit)
        emit(Phase("Memory beside a larger base"))
        larger = wrap_pipe(random_pipe(HALF_WIDE))
        report["memory beside a larger base"] = memory_beside(larger, PROMPTED, rank=16)
    if out is not None:
        keep_json(out, "compose-cost", report)
    show(report, ("", "measured"), [(name, _plain(value)) for name, value in flat(report).items()], as_json)


def _plain(value: object) -> str:
    return interval(value) if isinstance(value, dict) else f"{value:.3g}" if isinstance(value, float) else str(value)
