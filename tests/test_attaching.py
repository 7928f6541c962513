import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from studio.adapters import check_family, load_adapter
from studio.attaching import attach
from studio.errors import StudioError, UsageError
from studio.models import find_base, load_base

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


def parts(base) -> list[torch.nn.Module]:
    return [base.unet, *base.text_encoders]


def snapshot(base) -> tuple[dict[str, bytes], Counter[type]]:
    weights = {
        f"{n}.{key}": value.numpy().tobytes()
        for n, one in enumerate(parts(base))
        for key, value in one.state_dict().items()
    }
    return weights, Counter(type(module) for one in parts(base) for module in one.modules())


def outputs(base) -> tuple[torch.Tensor, torch.Tensor]:
    """What the text encoders and the UNet compute for one fixed input."""
    states = base.encode(["a red cat on the grass"])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": states.pooled, "time_ids": base.time_ids((32, 32), (0, 0), (32, 32))[None]}
    with torch.no_grad():
        return states.embeds, base.unet(noise, 500, states.embeds, added_cond_kwargs=added).sample


def add_by_hand(base, file: Path, strength: float, scale: float) -> None:
    """W + strength * scale * up @ down, from the file's tensors."""
    tensors = load_file(file)
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        path = key.removesuffix(".lora_A.weight")
        component, inner = path.split(".", 1)
        layer = getattr(base.pipe, component).get_submodule(inner)
        layer.weight.data += strength * scale * tensors[f"{path}.lora_B.weight"] @ tensors[key]


def changed(file: Path, to: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of the LoRA `file` with tensors replaced, or taken out where None, and its metadata kept."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    merged = {key: value for key, value in (load_file(file) | tensors).items() if value is not None}
    save_file(merged, to, metadata)
    return to


def test_several_adapters_add_up_to_the_dense_sum(base, tiny_sdxl, tiny_loras):
    one, two = tiny_loras
    with attach(base, [(one, 0.5), (two, -0.8)]):
        got = outputs(base)
    dense = load_base(find_base(str(tiny_sdxl)), "cpu")
    add_by_hand(dense, one, 0.5, 4 / 2)
    add_by_hand(dense, two, -0.8, 3 / 3)
    expected, plain = outputs(dense), outputs(base)
    for mine, truth, without in zip(got, expected, plain, strict=True):
        assert (mine - truth).abs().max() < 1e-5
        assert (without - truth).abs().max() > 1e-2


def test_nothing_is_left_behind(base, tiny_loras):
    before, drawn = snapshot(base), outputs(base)
    with attach(base, [(file, 1.0) for file in tiny_loras]):
        assert snapshot(base) != before
    assert snapshot(base) == before
    assert all(torch.equal(*pair) for pair in zip(outputs(base), drawn, strict=True))
    assert not any(parameter.requires_grad for one in parts(base) for parameter in one.parameters())


@pytest.mark.parametrize("accident", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_behind_by_an_accident(base, tiny_loras, accident):
    before = snapshot(base)
    with pytest.raises(accident), attach(base, [(tiny_loras[1], 1.0)]):
        raise accident
    assert snapshot(base) == before


def test_nothing_is_left_behind_by_an_interrupted_start(base, tiny_loras, monkeypatch):
    before = snapshot(base)
    monkeypatch.setattr("studio.attaching.teach_words", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), attach(base, [(file, 1.0) for file in tiny_loras]):
        pass
    assert snapshot(base) == before


def test_strength_zero_is_the_base(base, tiny_loras):
    plain = outputs(base)
    with attach(base, [(tiny_loras[1], 0.0)]):
        assert all(torch.equal(*pair) for pair in zip(outputs(base), plain, strict=True))


def test_damaged_files_are_refused_before_anything_is_attached(base, tiny_loras, tmp_path):
    one, up = tiny_loras[0], f"{Q}.lora_B.weight"
    zeros = {key: torch.zeros_like(value) for key, value in load_file(one).items() if "lora_B" in key}
    cases = [
        (changed(one, tmp_path / "nan.safetensors", **{up: torch.full((16, 2), torch.nan)}), "not finite"),
        (changed(one, tmp_path / "zero.safetensors", **zeros), "changes nothing"),
        (changed(one, tmp_path / "empty.safetensors", **{up: torch.zeros(0, 2)}), "is empty"),
        (tmp_path / "missing.safetensors", "no adapter file"),
    ]
    before = snapshot(base)
    for file, said in cases:
        with pytest.raises(StudioError, match=said), attach(base, [(one, 1.0), (file, 1.0)]):
            pass
    assert snapshot(base) == before


def test_what_does_not_fit_is_counted_and_named(base, tiny_loras, tmp_path):
    one, count = tiny_loras[0], len(load_file(tiny_loras[0])) // 2
    nowhere = {f"unet.nowhere.{n}.to_q.lora_A.weight": torch.ones(2, 8) for n in range(2)}
    nowhere |= {f"unet.down_blocks.9.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    file = changed(one, tmp_path / "part.safetensors", **nowhere, **{f"{Q}.lora_B.weight": torch.ones(32, 2)})
    with attach(base, [(file, 1.0)]) as receipts:
        said = receipts[0].warning() or ""
    assert receipts[0].matched == {"unet": count - 1}
    assert set(receipts[0].unmatched["unet"]) == {Q, "unet.down_blocks.9.to_q"}
    assert said.startswith(f"part: {count - 1} layers take effect; 4 entries")
    assert said.count("unet.") == 3


@pytest.mark.parametrize("path", ["down_blocks.1.attentions.0.proj_in", "conv_in"])
def test_the_effect_is_that_of_the_dense_change(base, tmp_path, path):
    weight = base.unet.get_submodule(path).weight.detach().double()
    generator = torch.Generator().manual_seed(1)
    ends = ((), ()) if weight.dim() == 2 else (weight.shape[2:], (1, 1))
    down = torch.randn(3, weight.shape[1], *ends[0], generator=generator)
    up = torch.randn(weight.shape[0], 3, *ends[1], generator=generator)
    tensors = {"A.weight": down, "B.weight": up}
    file = tmp_path / "a.safetensors"
    save_file({f"unet.{path}.lora_{name}": one for name, one in tensors.items()}, file)
    with attach(base, [(file, 2.0)]) as (receipt,):
        pass
    x = torch.randn(weight[0].numel(), generator=torch.Generator().manual_seed(0)).double()
    change = torch.einsum("or,ri->oi", up.double().flatten(1), down.double().flatten(1))
    assert receipt.effect == pytest.approx(float(2 * (change @ x).norm() / (weight.flatten(1) @ x).norm()), rel=1e-4)


def test_a_file_of_which_nothing_fits_is_refused(base, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({f"unet.down_blocks.9.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}, file)
    with pytest.raises(UsageError, match=r"none of its 1 layers.*down_blocks\.9\.to_q"), attach(base, [(file, 1.0)]):
        pass


def test_the_receipt_tells_effect_and_what_is_left_alone(base, tiny_loras):
    with attach(base, [(tiny_loras[1], 0.5), (tiny_loras[1], 1.0)]) as (half, whole):
        pass
    assert 0 < half.effect == pytest.approx(whole.effect / 2)
    assert whole.missing == {}
    assert whole.warning() is None
    assert (whole.base_family, whole.family) == ("sdxl", "sdxl")


@pytest.mark.parametrize(("width", "name"), [(768, "Stable Diffusion 1.5"), (1024, "Stable Diffusion 2"), (2048, None)])
def test_the_family_is_told_by_the_width_of_the_text(tmp_path, width, name):
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    file = tmp_path / "a.safetensors"
    save_file({f"{path}.lora_A.weight": torch.ones(2, width), f"{path}.lora_B.weight": torch.ones(8, 2)}, file)
    if name is None:
        check_family(load_adapter(file), "sdxl", "mine")
    else:
        with pytest.raises(UsageError, match=f"made for {name}; the base 'mine' is Stable Diffusion XL"):
            check_family(load_adapter(file), "sdxl", "mine")


def test_the_family_in_the_metadata_comes_first(tiny_loras, tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(load_file(tiny_loras[1]), file, {"studio.family": "sd15"})
    assert load_adapter(file).family == "sd15"
    assert load_adapter(tiny_loras[1]).family == "sdxl"


def test_a_word_with_a_row_for_each_layer_is_named_as_without_effect(base, tmp_path):
    file = tmp_path / "ed.pth"
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{path}_lora.down.weight": torch.ones(2, 16), f"{path}_lora.up.weight": torch.ones(16, 2)}
    torch.save({"params": {"new_concept_embedding": {"<new0>": torch.ones(16, 16)}, "unet": pair}}, file)
    with attach(base, [(load_adapter(file, allow_pickle=True), 1.0)]) as (receipt,):
        assert "<new0>" not in base.tokenizers[0].get_vocab()
    assert receipt.words == ()
    assert "the word <new0> (a row for each layer)" in (receipt.warning() or "")


def test_a_word_of_one_row_acts_in_any_capitals(base, tmp_path):
    """The embedded base's tokenizer, as those of CLIP, reads capitals as small letters."""
    base = load_base(find_base("picturebook"), "cpu")
    encoder: Any = base.text_encoders[0]
    rows = torch.randn(1, encoder.get_input_embeddings().weight.shape[1])
    save_file({"emb_params": rows}, tmp_path / "Zimbo.safetensors")
    with attach(base, [(tmp_path / "Zimbo.safetensors", 1.0)]):
        texts = base.encode(["a Zimbo cat", "a zimbo cat", "a ZIMBO cat"]).embeds
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], base.encode(["a zimbo cat"]).embeds[0])


@pytest.mark.parametrize("name", ["tiny", "picturebook"])
def test_every_row_of_a_word_acts_however_it_is_spelled(base, tmp_path, name):
    base = base if name == "tiny" else load_base(find_base(name), "cpu")
    encoder: Any = base.text_encoders[0]
    rows = torch.randn(3, encoder.get_input_embeddings().weight.shape[1])
    found = []
    for word, several in (("badhands", rows), ("BadHands", rows), ("BadHands", rows[:1])):
        save_file({"emb_params": several.contiguous()}, tmp_path / f"{word}.safetensors")
        with attach(base, [(tmp_path / f"{word}.safetensors", 1.0)]):
            found.append(base.encode([f"a {word} cat"]).embeds)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_a_compressed_pickle_is_refused(tmp_path):
    plain, packed = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"x": torch.zeros(100)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for one in source.infolist():
            target.writestr(one.filename, source.read(one))
    with pytest.raises(UsageError, match="compressed"):
        load_adapter(packed, allow_pickle=True)
