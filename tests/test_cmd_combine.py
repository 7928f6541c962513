import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.concepts import Concept, write_concept
from studio.home import Home

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONTENT, STYLE = (f"unet.up_blocks.0.attentions.{n}.transformer_blocks.0.attn1.to_q" for n in (0, 1))

SHIPPED = Path(__file__).parents[1] / "assets/concepts"


def write(file: Path, layers: dict[str, tuple[int, float]], **more: torch.Tensor) -> Path:
    """A LoRA in PEFT's names with (rank, alpha) by layer, the alphas in kohya's way."""
    tensors = dict(more)
    generator = torch.Generator().manual_seed(len(file.stem) + sum(file.stem.encode()))
    for layer, (rank, alpha) in layers.items():
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, 16, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(12, rank, generator=generator)
        tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, file)
    return file


def dense(file: Path, layer: str) -> torch.Tensor:
    """The change in float64; a file that the studio wrote states scale 1, with no alpha among its tensors."""
    tensors = load_file(file)
    down, up = (tensors[f"{layer}.lora_{side}.weight"].double() for side in "AB")
    return float(tensors.get(f"{layer}.alpha", down.shape[0])) / down.shape[0] * up @ down


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write(tmp_path / "a.safetensors", {Q: (2, 1.0), CONTENT: (2, 2.0)}),
        write(tmp_path / "b.safetensors", {Q: (3, 6.0)}),
    )


def test_a_weighted_sum_is_written_exactly(run_studio, tmp_path: Path, two):
    out = tmp_path / "sum.safetensors"
    said = run_studio("merge-adapters", f"{two[0]}=0.5", f"{two[1]}=-2", "--out", out, "--json")
    report = json.loads(said.out)
    truth = 0.5 * dense(two[0], Q) - 2 * dense(two[1], Q)
    assert (dense(out, Q) - truth).norm() < 1e-6 * truth.norm()
    assert (dense(out, CONTENT) - 0.5 * dense(two[0], CONTENT)).norm() < 1e-5
    assert [part["weight"] for part in report["merged"]] == [0.5, -2.0]
    assert report["written"][0]["ranks"] == [2, 5]
    assert "error" not in report


def test_svd_says_what_is_lost(run_studio, tmp_path: Path, two):
    out = tmp_path / "cut.safetensors"
    arguments = ("merge-adapters", *two, "--out", out, "--method", "svd", "--rank", "2")
    report = json.loads(run_studio(*arguments, "--json").out)
    truth = dense(two[0], Q) + dense(two[1], Q)
    whole = truth.square().sum() + dense(two[0], CONTENT).square().sum()
    lost = torch.linalg.svdvals(truth)[2:].square().sum()
    assert report["error"] == pytest.approx(float((lost / whole).sqrt()), rel=1e-6)
    assert report["worst"]["layer"] == Q
    assert (dense(out, Q) - truth).norm() == pytest.approx(float(lost.sqrt()), rel=1e-5)
    assert f"lost: {report['error']:.2%} of the change" in run_studio(*arguments).out


def test_lego_writes_the_ranks_asked_for(run_studio, tmp_path: Path, two):
    out = tmp_path / "lego.safetensors"
    assert run_studio("merge-adapters", *two, "--out", out, "--method", "lego", "--rank", "3").code == 0
    assert load_file(out)[f"{Q}.lora_A.weight"].shape == (3, 16)
    first = out.read_bytes()
    run_studio("merge-adapters", *two, "--out", out, "--method", "lego", "--rank", "3")
    assert load_file(out)[f"{Q}.lora_A.weight"].numpy().tobytes() in first


def test_half_halves_the_file(run_studio, tmp_path: Path, two):
    out = tmp_path / "half.safetensors"
    assert run_studio("merge-adapters", *two, "--out", out, "--half").code == 0
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
    truth = dense(two[0], Q) + dense(two[1], Q)
    assert (dense(out, Q) - truth).norm() < 2e-3 * truth.norm()


def test_resize_by_rank_and_by_energy(run_studio, tmp_path: Path, two):
    out = tmp_path / "small.safetensors"
    report = json.loads(run_studio("resize", two[1], "--rank", "1", "--out", out, "--json").out)
    values = torch.linalg.svdvals(dense(two[1], Q))
    assert report["error"] == pytest.approx(float(values[1:].norm() / values.norm()), rel=1e-6)
    assert report["written"][0]["ranks"] == [1]
    assert run_studio("resize", two[1], "--energy", "0.9999999", "--out", out).code == 0
    assert (dense(out, Q) - dense(two[1], Q)).norm() < 1e-3 * values.norm()


def test_split_writes_both_halves_and_names_what_is_dropped(run_studio, tmp_path: Path):
    file = write(tmp_path / "b.safetensors", {CONTENT: (2, 1.0), STYLE: (2, 4.0), Q: (2, 2.0)})
    content, style = tmp_path / "c.safetensors", tmp_path / "s.safetensors"
    said = run_studio("split", file, "--out-content", content, "--out-style", style)
    assert "1 layers are in neither half, e.g. unet.mid_block" in said.out
    assert {key.split(".transformer")[0] for key in load_file(content)} == {"unet.up_blocks.0.attentions.0"}
    assert {key.split(".transformer")[0] for key in load_file(style)} == {"unet.up_blocks.0.attentions.1"}
    from studio.adapters import load_adapter

    for out, layer in ((content, CONTENT), (style, STYLE)):
        truth = dense(file, layer)
        assert (load_adapter(out).delta(layer) - truth).norm() < 1e-6 * truth.norm()


def test_words_that_come_along_are_kept(run_studio, tmp_path: Path, two):
    word = {"bundle_emb.milo.string_to_param.*": torch.ones(2, 768)}
    named = write(tmp_path / "w.safetensors", {Q: (2, 2.0)}, **word)
    out = tmp_path / "sum.safetensors"
    assert run_studio("merge-adapters", named, two[0], "--out", out).code == 0
    assert torch.equal(load_file(out)["bundle_emb.milo.string_to_param.*"], torch.ones(2, 768))


def test_what_is_not_understood_is_told(run_studio, tmp_path: Path, two):
    odd = write(tmp_path / "odd.safetensors", {Q: (2, 2.0)}, **{"what.is.this": torch.ones(2)})
    said = run_studio("resize", odd, "--rank", "1", "--out", tmp_path / "o.safetensors")
    assert "note: 1 keys are not understood and left out, e.g. what.is.this" in said.out


def test_a_path_may_hold_an_equals_sign(run_studio, tmp_path: Path, two):
    odd = write(tmp_path / "x=2.safetensors", {Q: (2, 2.0)})
    out = tmp_path / "o.safetensors"
    assert run_studio("merge-adapters", odd, f"{odd}=0.5", "--out", out).code == 0
    assert (dense(out, Q) - 1.5 * dense(odd, Q)).norm() < 1e-5


def test_concepts_go_by_their_names_also_where_a_folder_is_called_so(run_studio, home: Home, tmp_path, monkeypatch):
    for name in ("milo", "rex"):
        folder = home.library / name
        folder.mkdir(parents=True)
        write(folder / "adapter.safetensors", {Q: (2, 1.0), CONTENT: (2, 2.0)})
        write_concept(Concept(name, "sks", "cat", "picturebook", "sdxl", "lora", folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "milo").mkdir()
    (tmp_path / "milo" / "photo.png").touch()
    assert run_studio("merge-adapters", "milo=0.7", "rex", "--out", "both.safetensors").code == 0
    change = 0.7 * dense(home.library / "milo/adapter.safetensors", Q) + dense(
        home.library / "rex/adapter.safetensors", Q
    )
    assert (dense(tmp_path / "both.safetensors", Q) - change).norm() < 1e-5
    assert run_studio("resize", "milo", "--rank", "1", "--out", "small.safetensors").code == 0
    assert json.loads(run_studio("inspect", "milo", "--json").out)["name"] == "milo"
    assert run_studio("convert", "milo", "--to", "diffusers").out.splitlines()[0] == "milo.diffusers.safetensors"
    for wrong in ("./milo", "cleo"):
        assert run_studio("resize", wrong, "--rank", "1", "--out", "no.safetensors").code == 2
    assert "give a concept's name: studio library list" in run_studio("inspect", "cleo").err


def test_a_style_of_the_embedded_base_is_split_by_its_own_blocks(run_studio, tmp_path: Path):
    content, style = tmp_path / "c.safetensors", tmp_path / "s.safetensors"
    said = run_studio("split", SHIPPED / "neon/adapter.safetensors", "--out-content", content, "--out-style", style)
    assert said.code == 0, said.err
    assert {key.split(".transformer")[0] for key in load_file(style)} == {"unet.up_blocks.1.attentions.2"}


@pytest.mark.parametrize(
    "words",
    [
        "merge-adapters {a} --out {out}",
        "merge-adapters {a} {b} --out {a}",
        "merge-adapters {a} {b} --out out.txt",
        "merge-adapters {a} {b}=0 --out {out}",
        "merge-adapters {a} {b}=nan --out {out}",
        "merge-adapters {a} {b}=much --out {out}",
        "merge-adapters {a} {b} --out {out} --method mean",
        "merge-adapters {a} {b} --out {out} --method svd",
        "merge-adapters {a} {b} --out {out} --rank 4",
        "merge-adapters {a} {b} --out {out} --method lego --rank 0",
        "merge-adapters {a} missing.safetensors --out {out}",
        "resize {a} --out {out}",
        "resize {a} --out {out} --rank 2 --energy 0.5",
        "resize {a} --out {out} --energy 2",
        "split {a} --out-content {out} --out-style {out}",
        "split {b} --out-content {out} --out-style {b}.s.safetensors",
    ],
)
def test_wrong_usage_writes_nothing(run_studio, tmp_path: Path, two, words: str):
    out = tmp_path / "out.safetensors"
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    said = run_studio(*(word.format(a=two[0], b=two[1], out=out) for word in words.split()))
    assert said.code == 2, said.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_values_that_cannot_be_used_are_refused(run_studio, tmp_path: Path, two):
    tensors = load_file(two[1])
    tensors[f"{Q}.lora_A.weight"][0, 0] = float("nan")
    save_file(tensors, two[1])
    said = run_studio("merge-adapters", *two, "--out", tmp_path / "o.safetensors")
    assert said.code == 1
    assert "not finite" in said.err
