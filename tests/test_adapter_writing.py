"""Adapters written for other tools: what is read back, what plain diffusers makes of it, what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from adapter_zoo import ATTENTION, ROWS, Row, Zoo, dense, save
from adapter_zoo_bases import build_bases, build_case, build_file, far, loaded_by_diffusers, outputs
from fixtures_models import diffusers
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from studio.adapter_algebra import add, resize
from studio.adapter_targets import TARGETS
from studio.adapter_writing import write_adapter
from studio.adapters import load_adapter
from studio.errors import StudioError, UsageError
from studio.factors import Dora, Hadamard, Kronecker, LowRank

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
NAMED = {row.name: row for row in ROWS}
# What a format cannot hold exactly, by a word of the row's name.
REFUSED = {
    "peft": ("LoHa", "LoKr, low-rank", "one magnitude an input", "whole differences", "words", "ED-LoRA"),
    "lycoris": ("IBM",),
    "kohya": (),
}
REFUSED["diffusers"] = tuple(kind for kind in REFUSED["peft"] if kind not in ("words", "ED-LoRA"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return build_bases(tmp_path_factory.mktemp("zoo-bases"))


@pytest.fixture
def made(bases, tmp_path):
    """(the case of a row, its adapter)."""

    def make(name: str):
        case = build_case(NAMED[name], bases[NAMED[name].family], tmp_path / "source")
        return case, load_adapter(case.file, allow_pickle=True)

    return make


@pytest.fixture(scope="module")
def files(bases, tmp_path_factory):
    """(dense changes, file, adapter) of every row."""
    found = {}
    for name, row in NAMED.items():
        zoo, file = build_file(row, bases[row.family], tmp_path_factory.mktemp("zoo"))
        adapter = load_adapter(file, allow_pickle=True)  # tiny widths do not tell the family
        named = replace(adapter, family=row.family, metadata=adapter.metadata | {"studio.family": row.family})
        found[name] = zoo, file, named
    return found


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", NAMED)
def test_what_is_written_is_the_dense_change_or_refused(files, tmp_path, name, to):
    zoo, _, adapter = files[name]
    if any(word in name for word in REFUSED[to]):
        with pytest.raises(UsageError, match=r"cannot hold.*\n.*another format"):
            write_adapter(adapter, tmp_path / "out", to)
        assert not (tmp_path / "out").exists()
        return
    written = write_adapter(adapter, tmp_path / "out", to)
    found = load_adapter(tmp_path / "out")
    assert written.error <= 1e-6
    assert found.factors.keys() == zoo.changes.keys()
    for layer, truth in zoo.changes.items():
        component, path = layer.split(".", 1)
        got = found.delta(layer, zoo.weight(path, component)).double().reshape(truth.shape)
        assert (got - truth).norm() <= 1e-6 * truth.norm()
    assert {layer: bias.tolist() for layer, bias in found.biases.items()} == {
        layer: bias.tolist() for layer, bias in zoo.biases.items()
    }
    assert found.embeddings.keys() == adapter.embeddings.keys()


@pytest.mark.parametrize(
    "name", ["diffusers today, no metadata", "diffusers today, DoRA", "kohya, no alphas, ranks differ"]
)
def test_lycoris_files_state_every_alpha(files, tmp_path, name):
    zoo, _, adapter = files[name]
    write_adapter(adapter, tmp_path / "out", "lycoris")
    tensors = load_file(tmp_path / "out")
    layers = {key.split(".")[0] for key in tensors}
    assert len(layers) == len(zoo.changes)
    assert all(float(tensors[f"{one}.alpha"]) == len(tensors[f"{one}.lora_down.weight"]) for one in layers)


@pytest.mark.parametrize("inner", ["LoHa", "LoKr"])
def test_alphas_of_lycoris_leave_the_change_as_it_is(tmp_path, inner):
    a, b, c, d = torch.randn(8, 2), torch.randn(2, 8), torch.randn(8, 2), torch.randn(2, 8)
    made = Hadamard(LowRank(b, a), LowRank(d, c)) if inner == "LoHa" else Kronecker(torch.ones(1, 1), LowRank(b, a))
    truth = a.double() @ b.double() * (c.double() @ d.double() if inner == "LoHa" else 1)
    write_adapter(small(tmp_path, **{Q: Dora(made, torch.ones(8))}), tmp_path / "out", "lycoris")
    assert [float(one) for key, one in load_file(tmp_path / "out").items() if key.endswith(".alpha")] == [2.0]
    found: Any = load_adapter(tmp_path / "out").factors[Q]
    assert (found.inner.delta().double() - truth).norm() <= 1e-6 * truth.norm()


SAME = [name for name, row in NAMED.items() if name.startswith(("kohya", "LoCon", "DoRA", "LoHa", "LoKr", "whole"))]
SAME = [name for name in SAME if "diffusers' names" not in name and "both kinds" not in name]


@pytest.mark.parametrize("name", SAME)
def test_kohya_to_kohya_is_the_same_file(files, tmp_path, name):
    _, file, adapter = files[name]
    write_adapter(adapter, tmp_path / "out", "kohya")
    before, after = load_file(file), load_file(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)


@pytest.mark.parametrize(
    "name",
    [
        "kohya, alphas differ by module",
        "kohya, alpha missing in some modules",
        "kohya, ranks differ, one alpha",
        "kohya SDXL, both kinds of names in one file",
        "kohya SDXL, both text encoders, alphas differ",
        "kohya SD1.5, text encoder",
        "LoCon, convolutions of 3 x 3",
        "LoCon, Tucker's lora_mid",
        "diffusers today, rsLoRA in the metadata",
        "diffusers today, DoRA",
        "DoRA, kohya's dora_scale",
        "DoRA, kohya's, both text encoders",
        "DiffuseKronA, usual order, as LoKr",
        "DiffuseKronA, IBM's file",
        "PEFT folder",
    ],
)
def test_plain_diffusers_reads_the_exact_strengths(made, tmp_path, name):
    case, adapter = made(name)
    write_adapter(adapter, tmp_path / "out.safetensors", "diffusers")
    with loaded_by_diffusers(case.base, tmp_path / "out.safetensors"):
        got = outputs(case.base)
    assert far(got, case.truth) <= 1e-5 * far(case.truth, case.plain)


@pytest.mark.parametrize("name", ["kohya SDXL, both text encoders, alphas differ", "DoRA, kohya's, both text encoders"])
def test_peft_reads_its_folders(made, tmp_path, name):
    case, adapter = made(name)
    write_adapter(adapter, tmp_path / "out", "peft")
    pipe = diffusers.DiffusionPipeline.from_pretrained(case.base.source.location)
    for component in ("text_encoder", "text_encoder_2"):
        model: Any = PeftModel.from_pretrained(getattr(pipe, component), tmp_path / "out" / component)
        setattr(pipe, component, model.merge_and_unload())
    got = outputs(replace(case.base, pipe=pipe))
    assert far(got, case.truth) <= 1e-5 * far(case.truth, case.plain)


def test_peft_reads_one_folder_of_a_unet(made, tmp_path):
    case, adapter = made("kohya, alphas differ by module")
    write_adapter(adapter, tmp_path / "out", "peft")
    pipe = diffusers.DiffusionPipeline.from_pretrained(case.base.source.location)
    pipe.unet = PeftModel.from_pretrained(pipe.unet, tmp_path / "out").merge_and_unload()
    assert far(outputs(replace(case.base, pipe=pipe)), case.truth) <= 1e-5 * far(case.truth, case.plain)


def small(tmp_path, **factors):
    """An adapter of a plain layer, with some factors replaced."""
    save_file({f"{Q}.lora_A.weight": torch.ones(2, 8), f"{Q}.lora_B.weight": torch.ones(8, 2)}, tmp_path / "a")
    adapter = load_adapter(tmp_path / "a")
    return replace(adapter, factors={Q: adapter.factors[Q], **factors})


def test_rslora_becomes_the_alpha_of_the_same_scale(tmp_path):
    adapter = small(tmp_path, **{Q: LowRank(torch.ones(4, 8), torch.ones(8, 4), 3.0, rank_stabilised=True)})
    write_adapter(adapter, tmp_path / "out", "kohya")
    assert float(load_file(tmp_path / "out")["lora_unet_" + Q[5:].replace(".", "_") + ".alpha"]) == 6.0


def test_metadata_is_kept_but_for_what_described_the_tensors(tmp_path):
    adapter = replace(small(tmp_path), metadata={"studio.family": "sd15", "ss_tag": "x", "lora_adapter_metadata": "{}"})
    write_adapter(adapter, tmp_path / "out", "kohya")
    with safe_open(tmp_path / "out", "pt") as file:
        assert file.metadata() == {"format": "pt", "studio.family": "sd15", "ss_tag": "x"}


def test_half_halves_and_keeps_its_tolerance(made, tmp_path):
    _, adapter = made("kohya, alphas differ by module")
    whole = write_adapter(adapter, tmp_path / "whole", "kohya")
    half = write_adapter(adapter, tmp_path / "half", "kohya", half=True)
    assert whole.error == 0.0 < half.error < 1e-3
    assert {str(t.dtype) for k, t in load_file(half.path).items() if "alpha" not in k} == {"torch.float16"}


def test_half_is_refused_where_it_would_lose_the_change(tmp_path):
    adapter = small(tmp_path, **{Q: LowRank(torch.ones(2, 8) * 1e-8, torch.ones(8, 2) * 1e6)})
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(StudioError, match=r"leave out --half"):
        write_adapter(adapter, tmp_path / "out", "kohya", half=True)
    assert (tmp_path / "out").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


def test_an_svd_stands_in_where_a_rank_is_given(made, tmp_path):
    case, adapter = made("LoHa")
    written = write_adapter(adapter, tmp_path / "out", "diffusers", rank=3)
    found, worst = load_adapter(tmp_path / "out"), 0.0
    for layer, truth in case.zoo.changes.items():
        values = torch.linalg.svdvals(truth.flatten(1))
        best = float(values[3:].norm() / values.norm())
        got = found.delta(layer).double().reshape(truth.shape)
        assert float((got - truth).norm() / truth.norm()) == pytest.approx(best, abs=1e-5)
        worst = max(worst, best)
    kernel: Any = found.factors["unet.mid_block.resnets.0.conv1"]
    assert kernel.down.dim() == 4
    assert written.error == pytest.approx(worst, abs=1e-5)
    assert written.approximated.keys() == case.zoo.changes.keys()


FLAT = ("attentions.0.proj_in", "resnets.0.conv1", "transformer_blocks.0.attn1.to_q", "resnets.0.conv_shortcut")


def flattened(zoo: Zoo, kind: str) -> None:
    """LoHa or LoKr on layers of every shape, all as matrices."""
    for path in zoo.layers(*FLAT):
        out, fan_in, key = len(zoo.weight(path)), zoo.weight(path)[0].numel(), "lora_unet_" + path.replace(".", "_")
        if kind == "LoHa":
            (a, b), (c, d) = ((zoo.draw(out, 2), zoo.draw(2, fan_in, size=fan_in**-0.5)) for _ in range(2))
            zoo.tensors |= {f"{key}.hada_{n}": one for n, one in (("w1_a", a), ("w1_b", b), ("w2_a", c), ("w2_b", d))}
            zoo.add(path, dense(b, a) * dense(d, c))
        else:
            one, up, down = zoo.draw(2, 2), zoo.draw(out // 2, 3), zoo.draw(3, fan_in // 2, size=fan_in**-0.5)
            zoo.tensors |= {f"{key}.lokr_{n}": t for n, t in (("w1", one), ("w2_a", up), ("w2_b", down))}
            zoo.add(path, torch.kron(one.double(), dense(down, up)))
    zoo.metadata = {"ss_base_model_version": "sd_v1"}


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_convolutions_are_written_as_plain_diffusers_has_them(bases, tmp_path, kind):
    case = build_case(Row(kind, "sd15", lambda zoo: flattened(zoo, kind)), bases["sd15"], tmp_path)
    adapter = load_adapter(case.file)
    small = resize(adapter, rank=400).adapter
    for n, one in enumerate((adapter, small, add([(small, 0.5), (small, 0.5)], "sum"))):
        file = tmp_path / f"{n}.safetensors"
        write_adapter(one, file, "diffusers", rank=400)
        with loaded_by_diffusers(case.base, file):
            got = outputs(case.base)
        assert far(got, case.truth) <= 1e-4 * far(case.truth, case.plain)


def test_dora_on_some_layers_of_a_component_is_refused_by_peft(made, tmp_path):
    _, adapter = made("DoRA, kohya's dora_scale")
    other = next(iter(adapter.factors))
    mixed = replace(adapter, factors=adapter.factors | {other: adapter.factors[other].inner})
    with pytest.raises(UsageError, match=f"{other} has no DoRA magnitude"):
        write_adapter(mixed, tmp_path / "out", "diffusers")
    write_adapter(mixed, tmp_path / "out", "kohya")


def test_ibm_order_is_no_lokr_and_says_where_it_could_go(tmp_path):
    adapter = small(tmp_path, **{Q: Kronecker(torch.ones(2, 4), torch.ones(4, 2), layout="ibm")})
    with pytest.raises(UsageError, match=rf"(?s){Q} is KronA.*another format: diffusers, kohya or peft"):
        write_adapter(adapter, tmp_path / "out", "lycoris")


def test_a_layer_that_sdxl_does_not_have_gets_no_other_layers_name(tmp_path):
    layer = "unet.down_blocks.2.attentions.3.proj_in"  # would be the name of down_blocks.3.attentions.0
    adapter = replace(small(tmp_path), family="sdxl", factors={layer: LowRank(torch.ones(2, 8), torch.ones(8, 2))})
    with pytest.raises(UsageError, match=rf"{layer} has no name among Stability's"):
        write_adapter(adapter, tmp_path / "out", "kohya")


def test_an_anchored_pattern_means_one_layer(tmp_path):
    zoo_layers = {"transformer.proj_out": 4.0, "transformer.single_transformer_blocks.0.proj_out": 2.0}
    factors = {layer: LowRank(torch.ones(2, 8), torch.ones(8, 2), alpha) for layer, alpha in zoo_layers.items()}
    adapter = replace(small(tmp_path), factors=factors)
    write_adapter(adapter, tmp_path / "out", "diffusers")
    found: Any = load_adapter(tmp_path / "out")
    assert {layer: one.alpha for layer, one in found.factors.items()} == zoo_layers
    with pytest.raises(UsageError, match="no agreed name"):
        write_adapter(adapter, tmp_path / "flux", "kohya")


def test_a_written_peft_folder_replaces_the_old_one_whole(made, tmp_path):
    _, adapter = made("kohya SDXL, both text encoders, alphas differ")
    write_adapter(adapter, tmp_path / "out", "peft")
    write_adapter(small(tmp_path), tmp_path / "out", "peft")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_convert_writes_beside_the_file_and_does_not_overwrite(bases, tmp_path, run_studio):
    zoo = Zoo(bases["sdxl"].pipe)
    for path in zoo.layers(*ATTENTION):
        zoo.kohya(path, path, 4, 2.0)
    file = save(zoo, tmp_path)
    first = run_studio("convert", file, "--to", "diffusers", "--json")
    report = json.loads(first.out)
    assert (first.code, report["layers"], report["max_relative_error"]) == (0, len(zoo.changes), 0.0)
    assert report["written"] == str(tmp_path / "adapter.diffusers.safetensors")
    again = run_studio("convert", file, "--to", "diffusers")
    assert again.code == 2
    assert "--overwrite" in again.err
    assert run_studio("convert", file, "--to", "diffusers", "--overwrite", "--half").code == 0
    assert run_studio("convert", file, "--to", "peft").code == 0
    path = next(iter(zoo.changes))
    pair: Any = load_adapter(tmp_path / "adapter.peft").factors[path]
    assert torch.allclose(pair.delta().double(), 0.5 * dense(pair.down, pair.up), atol=1e-6)


def test_convert_writes_beside_the_folder_that_it_stands_in(tmp_path, monkeypatch, run_studio):
    write_adapter(small(tmp_path), tmp_path / "mine", "peft")
    monkeypatch.chdir(tmp_path / "mine")
    assert run_studio("convert", ".", "--to", "kohya").code == 0
    assert (tmp_path / "mine.kohya.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onnx"], "is no format"),
        (["--to", "kohya", "--out", "a.safetensors"], "is the adapter itself"),
        (["--to", "peft", "--out", "full"], "holds other things"),
    ],
)
def test_convert_refuses_before_it_reads(tmp_path, monkeypatch, run_studio, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"not read")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    ended = run_studio("convert", "a.safetensors", *arguments, "--overwrite")
    assert ended.code == 2
    assert said in ended.err
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
