"""The tables of what speed was measured, as Markdown. Torch-free."""

from typing import Any

from studio.pipelines.markdown import interval, table


def kernels(report: dict[str, Any]) -> str:
    """How fast each operation is beside other ways, and beside the floor."""
    rows = []
    for operation, found in report["operations"].items():
        for name, way in found["ways"].items():
            rows.append((
                operation if name == next(iter(found["ways"])) else "", name, f"{way['ms']:.2f}",
                "" if name == "ours" else interval(way["ours over it"]),
                f"{way['of the floor']:.2f}" if "of the floor" in way else "",
                f"{way['largest difference']:.0e}" if way.get("largest difference") else "",
            ))  # fmt: skip
    machine = report["machine"]
    heads = ("", "way", "ms", "ours over it", "share of the floor", "difference")
    return table(heads, rows) + (
        f"\n\n{_measured(report)}, medians of {report['rounds']} rounds in turns, ratios with quartiles; the floor is"
        f" what {machine['TFLOP/s']:g} TFLOP/s and {machine['GB/s']:g} GB/s, measured in the same run, allow."
        " `studio bench kernels` measures it again."
    )


def step(report: dict[str, Any]) -> str:
    """What k adapters cost in a forward."""
    rows = [
        (name, _milliseconds(arm), interval(arm["over none"]), f"{arm['operators']:,}", _difference(arm))
        for name, arm in report["arms"].items()
    ]
    ratios = "; ".join(f"{name} {interval(found)}" for name, found in report["ratios"].items())
    switches = "; ".join(f"{name} {value:g} ms" for name, value in report["switch, ms"].items())
    return table((report["shape"], "ms", "over no adapter", "operators", "difference"), rows) + (
        f"\n\n{_measured(report)}, {report['rows']} rows, rank {report['rank']}, medians of {report['rounds']} rounds"
        f" in turns with p10 and p90, ratios with quartiles. {ratios}. Letting others act, with the first forward after"
        f" it, beyond the next forward: {switches}."
        f" `studio bench step --shape {report['shape']}` measures it again."
    )


def compiled(report: dict[str, Any]) -> str:
    """What they cost where the blocks are compiled."""
    rows = [
        (name, _milliseconds(arm), interval(arm["over none"]), _difference(arm)) for name, arm in report["arms"].items()
    ]
    ratios = "; ".join(f"{name} {interval(found)}" for name, found in report["ratios"].items())
    again = ", ".join(f"{count} for {what}" for what, count in report["compiled again"].items())
    return table((report["shape"], "ms", "over the first", "difference"), rows) + (
        f"\n\n{_measured(report)}, {report['rows']} rows, rank {report['rank']}, medians of {report['rounds']} rounds"
        f" in turns with p10 and p90, ratios with quartiles. {ratios}. Functions compiled anew: {again}."
        f" `studio bench step --shape {report['shape']} --compiled` measures it again."
    )


def ahead(report: list[dict[str, Any]]) -> str:
    """What became of every kernel that was compiled ahead of time."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for one in report:
        if one["dtype"] == "bf16":
            found.setdefault((one["name"], one["what"]), {})[one["architecture"]] = one
    kinds = sorted({one["architecture"] for one in report})
    rows = [
        (*names, *(f"{by[kind]['registers']}, {by[kind]['shared']:,}" for kind in kinds)) for names, by in found.items()
    ]
    spilled = sum(one["spilled"] for one in report)
    return table(("kernel", "", *(f"sm_{kind}" for kind in kinds)), rows) + (
        f"\n\nRegisters a thread and bytes of shared memory a program, bf16; {len(report)} compilations, fp16 among"
        f" them, spill {spilled} bytes in all. `python -m studio.kernels.ahead` compiles them again."
    )


def _milliseconds(arm: dict[str, Any]) -> str:
    return f"{arm['ms']:.1f} [{arm['p10']:.1f}, {arm['p90']:.1f}]"


def _difference(arm: dict[str, Any]) -> str:
    return f"{arm['largest difference']:.0e} from {arm['same as']}" if arm.get("largest difference") else ""


def _measured(report: dict[str, Any]) -> str:
    return f"{report['machine name']}, {report['dtype']}, torch {report['packages']['torch']}"
