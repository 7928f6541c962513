"""The tables of measured figures as Markdown, each from the JSON of its benchmark. Torch-free."""

from typing import Any

from studio.pipelines import speed_tables
from studio.pipelines.markdown import interval, table

TARGETS = {
    "class": 0.95, "colour": 0.95, "background": 0.98, "style": 0.9, "both classes and colours in place": 0.8,
}  # fmt: skip


def base(report: dict[str, Any]) -> str:
    """How good the embedded base is."""
    plan = report["plan"]
    rows = [
        (
            name,
            interval(one),
            f"{one['on_renders']:.2f}",
            f"{TARGETS[name]:.2f}" if name in TARGETS else "",
            str(one["count"]),
        )
        for part in ("one subject", "two subjects")
        for name, one in report[part].items()
    ]
    heads = (f"read by judge {report['judge']}", "drawn by the base", "true drawings", "target", "pictures")
    return table(heads, rows) + (
        f"\n\nCaptions of subjects that training never showed, {plan['steps']} steps, guidance {plan['guidance']:g},"
        f" seeds from {plan['seed']:,}; 95 % Wilson intervals. `studio bench base` measures it again."
    )


def concepts(report: dict[str, Any]) -> str:
    """How well the sample concepts are learned."""
    asked = (
        "identity", "identity of true drawings", "identity of the untrained base", "background obeyed", "leak",
        "leak of the untrained base",
    )  # fmt: skip
    every = {**report["concepts"], "all": report["overall"]}
    rows = [(name, *(interval(one[key]) for key in asked)) for name, one in every.items()]
    settings = "".join(f", {name} {value}" for name, value in report["settings"].items())
    command = "studio bench concepts" + (f" --preset {report['preset']}" if report["preset"] != "normal" else "")
    return table(("concept", *asked), rows) + (
        f"\n\nPreset {report['preset']!r}{settings}, four new scenes and four control prompts, {report['seeds']} seeds"
        f" each, read by judge {report['judge']}; targets: identity and background 0.85 or more, leak below 0.10."
        " True drawings: of the same scenes, encoded and decoded by the base's VAE."
        f" `{command}{' --config' * bool(settings)}` measures it again."
    )


def blocks(report: dict[str, Any]) -> str:
    """What each attention block carries."""
    fields = tuple(next(iter(report["follows"].values())))
    rows = [(name, *(f"{shares[field]:.2f}" for field in fields)) for name, shares in report["follows"].items()]
    return table(("text swapped in", *fields), rows) + (
        f"\n\nShare of {report['pairs']} pictures that show what the swapped-in text says, read by judge"
        f" {report['judge']}; the row `none` is chance. `studio bench blocks` measures it again."
    )


def judges(report: dict[str, Any]) -> str:
    """How good the judges are, and how often they agree."""
    agreed = report["agreement on pictures of the base"]
    named = {"whole_kind": "class", "identity": "identity of the sample concepts"}
    rows = []
    for key in report["A"]["renders"]:
        found = [report[which][part][key] for part in ("renders", "reconstructions") for which in ("A", "B")]
        where, _, field = key.rpartition("_")
        name = named.get(key) or f"{field.replace('kind', 'class')}{', half of a picture' * (where == 'half')}"
        both = agreed.get(field) if where == "whole" else None
        rows.append((name, *(f"{one['value']:.2f}" for one in found), interval(both) if both else ""))
    heads = ("", "A on true drawings", "B", "A after the VAE", "B", "they agree on the base's pictures")
    return table(heads, rows)


def compose(report: dict[str, Any]) -> str:
    """How well the methods compose: a table for pairs, for those of one class, and for triples."""
    costs, plan = report["costs"].get("methods", {}), report["plan"]
    heads = ("success", "of the ceiling", "all in place", "leak", "background", "over `merge`")
    parts = []
    for title, section in report["sections"].items():
        rows: list[tuple[str, ...]] = []
        rows += [(name, *_composed(row), "", "") for name, row in section["yardsticks"].items()]
        rows.append(("ceiling", interval(section["ceiling"]), *[""] * 7))
        for name, row in section["methods"].items():
            cost = ("", "")
            if name in costs:
                cost = (f"{costs[name]['rows over merge']:.2f}", f"{costs[name]['time over merge']['value']:.2f}")
            rows.append((f"`{name}`", *_composed(row), *cost))
        parts.append(table((f"{title}: {len(section['groups'])}", *heads, "rows", "time"), rows))
    scenes = ", ".join(f"{ground} {style}" for ground, style in plan["scenes"])
    return "\n\n".join(parts) + (
        f"\n\n{plan['seeds']} seeds of each pair and triple, scenes {scenes}, {plan['steps']} steps, guidance"
        f" {plan['guidance']:g}, read by judge {report['judge']}. Shares with 95 % Wilson intervals; the ceiling and"
        " the paired differences with bootstrap intervals over pairs or triples. Rows through the UNet and time are"
        " those of one picture of two concepts, `merge` being 1."
        f" `studio bench compose{_options(report)}` measures it again."
    )


def _options(report: dict[str, Any]) -> str:
    """Which groups and methods a benchmark of compositions was asked for."""
    return "".join(f" --{name} {value}" for name, value in report["asked"].items() if value is not None)


def _composed(row: dict[str, Any]) -> tuple[str, ...]:
    of, over = row.get("share of the ceiling"), row.get("over merge")
    return (
        interval(row["success"]),
        "" if of is None else f"{of:.2f}",
        f"{row['all in place']['value']:.2f}",
        f"{row['leak']['value']:.2f}" if "leak" in row else "",
        f"{row['background']['value']:.2f}",
        "" if over is None else interval(over),
    )


def ablation(report: dict[str, Any]) -> str:
    """What each part of `auto` is worth."""
    section = report["sections"]["pairs"]
    differences, rows = section["differences"], []
    for name, row in section["methods"].items():
        what = report["parts"].get(name, "as it is, with halves as boxes" if name.endswith("+boxes") else "as it is")
        over = next((one for title, one in differences.items() if title == f"{name} - auto"), None)
        shares = (interval(row["success"]), f"{row['in place']['value']:.2f}", f"{row['leak']['value']:.2f}")
        rows.append((f"`{name}`", what, *shares, "" if over is None else interval(over)))
    heads = (f"{len(section['groups'])} pairs", "", "success", "in place", "leak", "over `auto`")
    return table(heads, rows) + (
        "\n\nOf the first pairs of the table below, its seeds and settings."
        f" `studio bench compose --ablation{_options(report)}` measures it again."
    )


def compose_cost(report: dict[str, Any]) -> str:
    """What many adapters cost."""
    cached, change, memory = report["cmlora over composite"], report["change of gate"], report["memory"]
    gated = next((name for name in report if name.endswith("gated over 1")), "gated over 1")
    rows = [
        ("`composite` over the loop of `set_adapters`, time", interval(report["composite over set_adapters"]), "0.50"),
        ("largest difference of what the two draw", f"{report['their largest difference']:.1e}", "1e-4"),
        ("`cmlora` over `composite`, time", interval(cached["time"]), ""),
        ("`cmlora` over `composite`, arithmetic", f"{cached['FLOPs']:.2f}", ""),
        (gated + ", time", interval(report[gated]), "1.25"),
        ("a gate made and set", f"{change['made and set, ms']:.2f} ms", "1 ms"),
        ("its first forward, beside the next", f"{change['more in its first forward, ms']:.2f} ms", ""),
        ("`set_adapters`", f"{change['set_adapters, ms']:.1f} ms", ""),
        (
            f"peak memory at {memory['rows']} rows, over that of one adapter",
            f"{memory['peak over that of 1']:.2f}",
            "1.15",
        ),
        (
            "the same beside a UNet half as wide as SDXL's, LoRAs of rank 16 on attention",
            f"{report['memory beside a larger base']['peak over that of 1']:.2f}",
            "1.15",
        ),
        ("an adapter more, over the size of its file", f"{memory['each more, times its file']:.2f}", ""),
        ("weight-shaped tensors for each adapter", f"{memory['weight-shaped tensors an adapter']:g}", "0"),
    ]
    return table((f"{report['composed']} concepts, {report['steps']} steps", "measured", "at most"), rows) + (
        f"\n\nRatios of time are medians of {report['rounds']} rounds in turn, with quartiles."
        " `studio bench compose-cost` measures it again."
    )


def styles(report: dict[str, Any]) -> str:
    """What the halves of B-LoRAs carry."""
    heads = ("", "", "style", "class", "colour", "pictures")
    rows = [
        (task, who, *(interval(found[who][field]) for field in ("style", "kind", "colour")),
         str(found[who]["style"]["count"]))
        for task, found in report["tasks"].items()
        for who in ("with the halves", "the base alone")
    ]  # fmt: skip
    each = report["tasks"]["any content, style of B"]["style by style"]
    by_style = ", ".join(f"{name} {one['value']:.2f}" for name, one in each.items())
    return table(heads, rows) + (
        "\n\nShares of pictures that show what was asked for; where no word names a style, its half alone asks for it."
        f" One picture in each of five styles was learned in {report['steps of training']} steps; {report['seeds']}"
        f" seeds of each prompt, read by judge {report['judge']}. Style of B on any content, by style: {by_style}."
        " `studio bench styles` measures it again."
    )


def memory(report: dict[str, Any]) -> str:
    """What the settings for small GPUs are estimated to take."""
    heads = ("", "--vram", "the base", "what is trained", "a step's pictures", "in all, GB")
    rows = [
        (name, size, *(f"{found[part]:.2f}" for part in ("base", "trained", "pictures", "all")))
        for name, sizes in report["bases"].items()
        for size, found in sizes.items()
    ]
    return table(heads, rows) + (
        f"\n\nEstimated for a LoRA of rank {report['rank']} on attention, in bfloat16, with a picture and a class"
        " picture a step; no GPU was asked. `make memory` counts it again."
    )


def training_step(report: dict[str, Any]) -> str:
    """A step beside diffusers' script."""
    ratios = ("to diffusers", "to diffusers, latents cached")
    rows = [
        (base, arm, f"{took['seconds']:.3f}", *(f"{took[one]:.2f}" if one in took else "" for one in ratios))
        for base, found in report.items()
        for arm, took in found.items()
        if isinstance(took, dict)
    ]
    return table(("", "", "seconds a step", "to diffusers", "to diffusers with its latents cached"), rows)


def krona(report: dict[str, Any]) -> str:
    """KronA beside LoRA on all samples."""
    names = list(report["recipes"][0]["samples"])
    rows = [
        (*row, f"{recipe['samples'][names[0]]['bytes'] / 1e6:.2f}", interval(recipe["all"]))
        for row, recipe in zip(_by_sample(report, names), report["recipes"], strict=True)
    ]
    differences = "; ".join(f"{name}: {interval(one)}" for name, one in report["differences"].items())
    return table(("", "rate", *names, "MB", "all"), rows) + (
        f"\n\nIdentity by judge B, {report['recipes'][0]['samples'][names[0]]['count']} pictures each; else as in the"
        f" preset normal. Differences of all, with 95 % intervals (Newcombe): {differences}."
        " `studio bench concepts --config` measures it again."
    )


def krona_rates(report: dict[str, Any]) -> str:
    """Both at several rates, on the samples that all recipes learned."""
    recipes = report["recipes"]
    few = [name for name in recipes[0]["samples"] if all(name in row["samples"] for row in recipes)]
    return table(("", "rate", *few), _by_sample(report, few))


def _by_sample(report: dict[str, Any], names: list[str]) -> list[tuple[str, ...]]:
    return [
        (row["recipe"], f"{row['rate']:g}", *(f"{row['samples'][name]['value']:.2f}" for name in names))
        for row in report["recipes"]
    ]


def metrics(report: dict[str, Any]) -> str:
    """What each score tells apart."""
    apart = report["told apart"]
    rows = []
    for score, value in report["correlation with the truth"].items():
        rows.append((f"`{score}`", *(f"{row[score]['value']:.2f}" for row in apart.values()), f"{value:.2f}"))
    widest = max(
        row[score]["high"] - row[score]["low"] for row in apart.values() for score in row if score != "question"
    )
    believe = "; ".join(
        f"{question} `{best['with a judge']}`, on any base `{best['on any base']}`"
        for question, best in report["believe"].items()
    )
    return table(("", *apart, "correlation"), rows) + (
        f"\n\n{report['pictures of each kind']} pictures of each kind; how often a true one has the better score than"
        f" one spoilt so (a coin: .50; for `sharpness` and `saturation` the higher), no 95 % interval wider than"
        f" {widest:.2f}; and the correlation with the truth over all pictures. {believe}."
        " `studio bench metrics` measures it again."
    )


def best_of(report: dict[str, Any]) -> str:
    """What choosing among candidates is worth."""
    rows = [(name, *map(interval, one.values())) for name, one in report["rows"].items()]
    rows.append(("gain", *map(interval, report["gain"].values())))
    return table((f"{len(report['groups'])} pairs", *report["gain"]), rows) + (
        f"\n\n{report['seeds']} pictures of each pair by `auto` without boxes, each of {report['candidates']}"
        f" candidates chosen by judge {report['chosen by']}, read by judge {report['judge']}. The gain is paired,"
        " its interval by bootstrap over pairs. `studio bench best-of` measures it again."
    )


TABLES = {
    "base": base, "concepts": concepts, "blocks": blocks, "judges": judges,
    "compose": compose, "ablation": ablation, "compose-cost": compose_cost,
    "styles": styles, "memory": memory, "training-step": training_step,
    "krona": krona, "krona-rates": krona_rates, "metrics": metrics, "best-of": best_of,
    "kernels": speed_tables.kernels, "step-sdxl-tenth": speed_tables.step, "step-sd15-tenth": speed_tables.step,
    "step-sdxl": speed_tables.step, "step-sd15": speed_tables.step, "ahead": speed_tables.ahead,
    "compiled-sdxl-tenth": speed_tables.compiled, "compiled-sdxl": speed_tables.compiled,
}  # fmt: skip
