"""What stands beside trained weights: the loss plot and the model card."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studio.adapter_keys import WORD_PREFIX
from studio.bases import ALIASES, EMBEDDED
from studio.concepts import Concept
from studio.home import write_atomic
from studio.pipelines.schedulers import ZERO_SNR
from studio.trainers.recipe import Recipe
from studio.trainers.scoring import Fidelity
from studio.trainers.validation import Measured, best

_SHOWN = ("method", "steps", "learning_rate", "schedule", "batch_size", "resolution", "seed")
_FROM_PURE_NOISE = """
Learned with zero terminal SNR, on a schedule whose last timestep is pure noise. To begin there, drawing needs
`rescale_betas_zero_snr: true` and `timestep_spacing: "trailing"` in the configuration of the base's scheduler. The
studio does so by itself.
"""


def plot_losses(losses: list[float], path: Path, measured: Sequence[Measured] = ()) -> None:
    """Draw the loss of every step, its running mean over a twentieth of the training, and where they were `measured`
    the validation loss, and below it what a scorer said of pictures, as a PNG."""
    scores = [(one.step, one.fidelity) for one in measured if one.fidelity]
    figure = Figure(figsize=(7, 6 if scores else 3.5), layout="constrained")
    axes = figure.add_subplot(2, 1, 1) if scores else figure.add_subplot()
    axes.plot(range(1, len(losses) + 1), losses, color="#9db4c8", linewidth=0.8, label="each step")
    window = max(1, len(losses) // 20)
    if window > 1:
        smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
        axes.plot(range(window, len(losses) + 1), smooth, color="#1f4e79", linewidth=1.8, label=f"mean of {window}")
    if measured:
        steps, found = zip(*((one.step, one.loss) for one in measured), strict=True)
        axes.plot(steps, found, color="#b5541c", marker="o", markersize=3.5, linewidth=1.2, label="validation")
    if window > 1 or measured:
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
    if scores:
        _plot_scores(figure.add_subplot(2, 1, 2, sharex=axes), scores, best(list(measured)).step)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=110))


def _plot_scores(axes: Axes, scores: list[tuple[int, Fidelity]], recommended: int) -> None:
    """How much pictures are the concept and how much they show what prompts say, the recommended step starred."""
    steps = [step for step, _ in scores]
    for kind, colour in (("concept", "#1f4e79"), ("prompt", "#b5541c")):
        found = [getattr(fidelity, kind) for _, fidelity in scores]
        axes.plot(steps, found, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=kind)
        if recommended in steps:
            axes.plot([recommended], [found[steps.index(recommended)]], "*", color=colour, markersize=13)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("step")
    axes.set_ylabel("pictures")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def versions() -> dict[str, str]:
    """The releases that decide what a training gives."""
    return {name: version(name) for name in ("concept-studio", "torch", "diffusers", "peft")}


def write_card(
    concept: Concept, recipe: Recipe, notes: dict[str, str], loads: bool, samples: bool, exports: list[Path]
) -> None:
    """Write the README.md of a concept: what it is, how to use it, how it was made.

    `loads` says whether plain diffusers reads the file, `samples` whether there is a samples.png; `exports` are the
    further files.
    """
    rows = "\n".join(f"| {key} | {getattr(recipe, key)} |" for key in _SHOWN)
    others = {key.removeprefix("studio."): value for key, value in notes.items() if key.startswith("studio.")}
    made = "\n".join(f"| {key} | {value} |" for key, value in others.items() if key not in _SHOWN)
    sheet = "![a row for each prompt, a column for each step, the base first](samples.png)\n\n" if samples else ""
    files = ", ".join(f"`{path.name}`" for path in exports)
    further = f"\nThe same adapter in the formats of other tools: {files}.\n" if exports else ""
    elsewhere = _with_diffusers(concept, recipe)
    drawing = _FROM_PURE_NOISE if recipe.zero_terminal_snr else ""
    if not loads:
        elsewhere = _elsewhere(concept, recipe)
    text = f"""---
base_model: {ALIASES.get(concept.base, concept.base)}
library_name: diffusers
tags: [lora, dreambooth, text-to-image, {concept.family}]
instance_prompt: {recipe.instance_prompt}
---

# {concept.name}

A {recipe.class_word}, learned by DreamBooth ({recipe.method}) on the base `{concept.base}`. In prompts it is called
`{concept.phrase}`; in the studio `<{concept.name}>` stands for that.
{_together(recipe)}
{sheet}## Use

```
studio generate "a <{concept.name}>" --concept {concept.name}
```
{drawing}
{elsewhere}
{further}
## How it was made

| setting | value |
|---|---|
{rows}
{made}

Every setting is in `recipe.toml`. The loss:

![loss](loss.png)
"""
    write_atomic(concept.folder / "README.md", lambda file: file.write_text(text, encoding="utf-8"))


def _together(recipe: Recipe) -> str:
    """What else the file knows; with an empty line at its end where there is anything."""
    told = [f"`{one.trigger} {one.class_word}` (<{one.name}>)" for one in recipe.others]
    return f"\nThe same training taught it {' and '.join(told)}, and this file holds all of it.\n" if told else ""


def _with_diffusers(concept: Concept, recipe: Recipe) -> str:
    """How to use a LoRA there; new words take a line for each text encoder."""
    kind = "StableDiffusionXLPipeline" if concept.family == "sdxl" else "StableDiffusionPipeline"
    file, imports, word, scheduler = concept.adapter_file.name, "", "", ""
    if recipe.zero_terminal_snr:
        changes = ", ".join(f"{key}={value!r}" for key, value in ZERO_SNR.items())
        scheduler = f"pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, {changes})\n"
    if recipe.new_word:
        imports = "from safetensors.torch import load_file\n"
        towers = {"clip_l": "", "clip_g": "_2"} if concept.family == "sdxl" else {"clip_l": ""}
        word = f'rows = load_file("{file}")\n' + "".join(
            f"""pipe.load_textual_inversion(
    rows["{WORD_PREFIX}{trigger}.{tower}"], token="{trigger}",
    text_encoder=pipe.text_encoder{n}, tokenizer=pipe.tokenizer{n},
)
"""
            for trigger in recipe.triggers
            for tower, n in towers.items()
        )
    first, loaded = _loading(concept.base)
    return f"""With diffusers alone:

```python
{first}from diffusers import {"EulerDiscreteScheduler, " if scheduler else ""}{kind}
{imports}
pipe = {kind}.{loaded}
pipe.load_lora_weights("{file}")
{scheduler}{word}pipe("{recipe.instance_prompt}").images[0].save("{concept.name}.png")
```"""


def _loading(base: str) -> tuple[str, str]:
    """(imports, call) by which diffusers loads the base that a recipe calls `base`."""
    if base == EMBEDDED:
        return "from studio.bases import embedded_folder\n\n", "from_pretrained(embedded_folder())"
    if base.endswith(".safetensors"):
        return "", f'from_single_file("{base}")'
    return "", f'from_pretrained("{ALIASES.get(base, base)}")'


def _elsewhere(concept: Concept, recipe: Recipe) -> str:
    """What to do with a file that plain diffusers does not read."""
    if recipe.method == "oft":
        return "The file is an OFT, as LyCORIS writes it. It acts relative to the base, so no LoRA can stand for it."
    kind = "LoHa" if recipe.method == "loha" else "LoKr"
    return f"""The file is a {kind}, as LyCORIS writes it. For what reads plain LoRA only:

```
studio convert {concept.adapter_file.name} --to diffusers --rank 32
```"""
