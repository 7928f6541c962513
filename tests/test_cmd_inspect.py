import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from adapter_files import kohya_tensors
from safetensors.torch import load_file, save_file

import studio.adapters

BLOCK = "unet.down_blocks.0"


def write(file: Path, metadata: dict[str, str] | None = None, **more: torch.Tensor) -> Path:
    save_file(kohya_tensors() | more, file, metadata)
    return file


def test_the_report_in_words(run_studio, tmp_path: Path):
    file = write(tmp_path / "milo.safetensors", {"ss_tag_frequency": '{"10_cat": {"sks cat": 12}}'})
    said = run_studio("inspect", file)
    assert said.code == 0
    for part in ("milo", "Stable Diffusion 1.5", "LoRA (1)", "SHA-256", "sks cat (12)", BLOCK, "2,176"):
        assert part in said.out
    assert "suspicious" not in said.out
    assert "█" not in said.out


def test_norms_draw_a_chart(run_studio, tmp_path: Path):
    tensors = kohya_tensors()
    up, down = (next(t.double() for key, t in tensors.items() if f"lora_{side}" in key) for side in ("up", "down"))
    said = run_studio("inspect", write(tmp_path / "milo.safetensors"), "--norms")
    assert f"{float((0.5 * up @ down).norm()):.3g}" in said.out
    assert "█" in said.out


def test_the_report_as_json(run_studio, tmp_path: Path):
    file = write(tmp_path / "milo.safetensors")
    plain = json.loads(run_studio("inspect", file, "--json").out)
    assert plain["family"] == "sd15"
    assert plain["kinds"] == {"LoRA": 1}
    assert plain["sha256"] is None
    assert "norms" not in plain
    (block,) = plain["blocks"]
    assert block == {"name": BLOCK, "layers": 1, "parameters": 2176, "ranks": [2], "alphas": [1.0]}
    measured = json.loads(run_studio("inspect", file, "--json", "--norms").out)
    assert len(measured["sha256"]) == 64
    assert measured["block_norms"][BLOCK] == pytest.approx(*measured["norms"].values())


def test_json_reads_the_header_of_100_megabytes_and_no_tensor(run_studio, tmp_path: Path, monkeypatch):
    """560 layers like those of SDXL's attention; opening tensors other than scalars ends the test."""
    tensors = {}
    for n in range(560):
        name = f"lora_unet_input_blocks_7_1_transformer_blocks_{n}_attn2_to_k"
        tensors[f"{name}.lora_down.weight"] = torch.zeros(14, 2048)
        tensors[f"{name}.lora_up.weight"] = torch.zeros(1280, 14)
        tensors[f"{name}.alpha"] = torch.tensor(14.0)
    file = tmp_path / "large.safetensors"
    save_file(tensors, file)
    assert file.stat().st_size > 100_000_000

    class Tripwire:
        def __init__(self, *arguments, **named):
            self.file = safe_open(*arguments, **named)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, key: str):
            assert key.endswith(".alpha"), f"{key} was read"
            return self.file.get_tensor(key)

    safe_open = studio.adapters.safe_open
    monkeypatch.setattr(studio.adapters, "safe_open", Tripwire)
    run_studio("inspect", write(tmp_path / "small.safetensors"), "--json")  # everything is imported
    times = []
    for _ in range(3):
        began = time.perf_counter()
        said = run_studio("inspect", file, "--json")
        times.append(time.perf_counter() - began)
        report = json.loads(said.out)
        assert (report["family"], report["layers"]) == ("sdxl", 560)
        assert report["parameters"] == 560 * 14 * (2048 + 1280)
    assert min(times) < 0.3
    with pytest.raises(AssertionError, match="was read"):
        studio.adapters.load_adapter(file)


def test_the_page_needs_nothing_else_and_escapes_everything(run_studio, tmp_path: Path):
    evil = "<script>alert(1)</script>"
    metadata = {"ss_output_name": evil, "modelspec.title": '"><img src=x onerror=alert(1)>', "studio.trigger": evil}
    metadata |= {"ss_tag_frequency": json.dumps({"a": {"<b>bold</b>": 3}}), f"ss_{evil}": "x"}
    file = write(tmp_path / "milo.safetensors", metadata, **{f"{evil}.x": torch.zeros(1)})
    page = tmp_path / "report.html"
    assert run_studio("inspect", file, "--html", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert f">{BLOCK}<" in text
    assert "&lt;script&gt;" in text
    seen: set[str] = set()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
            seen.update({tag}, (name for name, _ in attrs))

    Reader().feed(text)
    assert "table" in seen
    assert not {name for name in seen if name in ("script", "img", "b", "link", "src", "href") or name.startswith("on")}
    assert not re.search(r"https?:|url\(|@import", text)


def test_terminal_sequences_and_markup_do_not_act(run_studio, tmp_path: Path):
    metadata = {"ss_output_name": "\x1b[2J\x1b]0;owned\x07[red]name[/red] :smile:"}
    file = write(tmp_path / "milo.safetensors", metadata, **{"\x1b[31mbad": torch.zeros(1)})
    said = run_studio("inspect", file)
    assert "\x1b" not in said.out
    assert "[red]name[/red] :smile:" in said.out
    assert "suspicious: 1 keys are of no known convention and have no effect, e.g. bad" in said.out


def test_intruder_dimensions_against_a_base(run_studio, tmp_path: Path, tiny_sdxl: Path, tiny_loras: list[Path]):
    page = tmp_path / "page.html"
    said = run_studio("inspect", tiny_loras[0], "--base", tiny_sdxl, "--json", "--html", page)
    report = json.loads(said.out)
    assert sum(report["intruders"].values()) == sum(report["block_intruders"].values()) > 0
    assert len(report["intruders"]) == report["layers"]
    assert "Intruder dimensions by block" in page.read_text(encoding="utf-8")
    said = run_studio("inspect", tiny_loras[0], "--base", tiny_sdxl)
    assert "intruders" in said.out


def test_an_adapter_for_another_base_is_refused_with_both_names(run_studio, tmp_path: Path, tiny_sdxl: Path):
    said = run_studio("inspect", write(tmp_path / "milo.safetensors"), "--base", tiny_sdxl)
    assert said.code == 2
    assert "Stable Diffusion 1.5" in said.err
    assert "Stable Diffusion XL" in said.err


def test_numbers_that_are_not_finite_are_null_in_json(run_studio, tmp_path: Path):
    file = write(tmp_path / "milo.safetensors")
    tensors = load_file(file)
    next(t for key, t in tensors.items() if "up" in key)[0, 0] = float("nan")
    save_file(tensors, file)
    report = json.loads(run_studio("inspect", file, "--json", "--norms").out, parse_constant=pytest.fail)
    assert report["block_norms"] == {BLOCK: None}
    assert "not finite" in report["suspicious"][0]
    assert "not finite" in run_studio("inspect", file, "--norms").out


def test_pickles_are_read_by_the_flag_alone(run_studio, tmp_path: Path):
    file = tmp_path / "ed.pth"
    pair = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q_lora.down.weight": torch.ones(2, 8)}
    pair["mid_block.attentions.0.transformer_blocks.0.attn1.to_q_lora.up.weight"] = torch.ones(8, 2)
    torch.save({"params": {"new_concept_embedding": {"<new0>": torch.ones(16, 768)}, "unet": pair}}, file)
    assert run_studio("inspect", file).code == 2
    report = json.loads(run_studio("inspect", file, "--allow-pickle", "--json").out)
    assert report["words"] == ["<new0>"]
    assert report["layers"] == 1


@pytest.mark.parametrize(
    "arguments", [("none.safetensors",), ("{file}", "--html", "x.txt"), ("{file}", "--base", "no")]
)
def test_wrong_usage(run_studio, tmp_path: Path, arguments: tuple[str, ...]):
    file = write(tmp_path / "milo.safetensors")
    assert run_studio("inspect", *(one.replace("{file}", str(file)) for one in arguments)).code == 2
