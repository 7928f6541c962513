"""Files that are sound safetensors and unsound adapters: refused, counted as not understood, or without effect."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from watching import nothing_unpickled, watched

from studio.adapters import check_values, load_adapter
from studio.attaching import attach
from studio.errors import StudioError, UsageError
from studio.factors import LowRank
from studio.models import find_base, load_base

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"  # [16, 16] in the tiny base
CONV = "lora_unet_mid_block_resnets_0_conv1"  # [16, 16, 3, 3]
F = "lora_unet_single_blocks_0_linear1"


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape).to(dtype)


def lora(name: str = Q, out: int = 16, rank: int = 2, into: int = 16) -> dict[str, torch.Tensor]:
    return {f"{name}.lora_down.weight": ones(rank, into), f"{name}.lora_up.weight": ones(out, rank)}


def loha(**parts: torch.Tensor) -> dict[str, torch.Tensor]:
    whole = {"w1_a": ones(16, 2), "w1_b": ones(2, 16), "w2_a": ones(16, 2), "w2_b": ones(2, 16)}
    return {f"{Q}.hada_{part}": tensor for part, tensor in (whole | parts).items()}


def peft(text: str) -> dict[str, str]:
    return {"lora_adapter_metadata": text}


PLAIN = {f"unet.{'mid_block.attentions.0.transformer_blocks.0.attn1.to_q'}.lora_{side}.weight": ones(*shape)
         for side, shape in (("A", (2, 16)), ("B", (16, 2)))}  # fmt: skip

UNUSABLE = {
    "alpha is not a number": (lora() | {f"{Q}.alpha": torch.tensor(float("nan"))}, {}),
    "alpha is infinite": (lora() | {f"{Q}.alpha": torch.tensor(float("inf"))}, {}),
    "alpha is zero": (lora() | {f"{Q}.alpha": torch.tensor(0.0)}, {}),
    "alpha of LoHa is zero": (loha() | {f"{Q}.alpha": torch.tensor(0.0)}, {}),
    "alpha in the metadata is not a number": (PLAIN, peft('{"lora_alpha": NaN}')),
    "alpha in the metadata is immense": (PLAIN, peft('{"lora_alpha": 1' + "0" * 400 + "}")),
    "one half of LoHa is zero": (loha(w2_a=torch.zeros(16, 2)), {}),
    "a word is not a number": ({"bundle_emb.milo.emb_params": torch.full((1, 768), torch.nan)}, {}),
    "up is not finite in 8 bits": (
        lora() | {f"{Q}.lora_up.weight": torch.full((16, 2), torch.nan).to(torch.float8_e4m3fn)}, {},
    ),
    "complex numbers": (lora() | {f"{Q}.lora_up.weight": ones(16, 2, dtype=torch.complex64)}, {}),
}  # fmt: skip

NOT_UNDERSTOOD = {
    "down without size": {f"{Q}.lora_down.weight": torch.tensor(1.0), f"{Q}.lora_up.weight": ones(16, 2)},
    "q_proj without size": {
        "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.tensor(1.0)
    },
    "ranks differ": {f"{Q}.lora_down.weight": ones(3, 16), f"{Q}.lora_up.weight": ones(16, 2)} | lora(CONV),
    "a change without size": {f"{Q}.diff": torch.tensor(1.0)},
    "halves of LoHa differ": loha(w2_b=ones(2, 8)),
    "kernel in down beside Tucker's core": {
        f"{CONV}.lora_down.weight": ones(2, 16, 3, 3), f"{CONV}.lora_up.weight": ones(16, 2, 1, 1),
        f"{CONV}.lora_mid.weight": ones(2, 2, 3, 3),
    },
    "a magnitude alone": {f"{Q}.dora_scale": ones(16, 1)},
    "an alpha alone": {f"{Q}.alpha": torch.tensor(1.0)},
}  # fmt: skip

NO_FIT = {
    "a kernel that the layer lacks": {
        f"{CONV}.lora_down.weight": ones(2, 16, 5, 5), f"{CONV}.lora_up.weight": ones(16, 2, 1, 1)
    },
    "a terabyte of LoRA": lora(out=10**6, rank=1, into=10**6),
    "a terabyte of LoKr": {f"{Q}.lokr_w1": ones(1000, 1000), f"{Q}.lokr_w2": ones(1000, 1000)},
    "a terabyte of LoHa": loha(w1_a=ones(10**6, 1), w1_b=ones(1, 10**6), w2_a=ones(10**6, 1), w2_b=ones(1, 10**6)),
    "a kernel of a terabyte": {
        f"{CONV}.lora_down.weight": ones(1, 16, 512, 512), f"{CONV}.lora_up.weight": ones(16, 1, 1, 1)
    },
    "a magnitude for other outputs": lora() | {f"{Q}.dora_scale": ones(8, 1)},
    "a block of 5,000 digits": lora("lora_unet_input_blocks_" + "9" * 5000 + "_1_proj_in"),
    "rows that Flux cannot share out": lora(F, out=23),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_sd15):
    return load_base(find_base(str(tiny_sd15)), "cpu")


def saved(file, tensors, metadata=None):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    return file


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_would_ruin_or_not_change_a_picture_is_refused(tmp_path, case):
    tensors, metadata = UNUSABLE[case]
    file = saved(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(StudioError):
        check_values(load_adapter(file))


@pytest.mark.parametrize("case", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_counted(tmp_path, case):
    tensors = NOT_UNDERSTOOD[case]
    sound = "lora_unet_mid_block_attentions_0_proj_in"
    for values in (True, False):
        adapter = load_adapter(saved(tmp_path / "a.safetensors", tensors | lora(sound)), values=values)
        extra = lora(CONV) if case == "ranks differ" else {}
        assert set(adapter.unread) == set(tensors) - set(extra)


@pytest.mark.parametrize("case", NO_FIT)
def test_what_fits_no_layer_is_refused_before_it_takes_memory(base, tmp_path, case):
    file = saved(tmp_path / "a.safetensors", NO_FIT[case])
    with nothing_unpickled(), watched(seconds=1, megabytes=200), pytest.raises(UsageError), attach(base, [(file, 1.0)]):
        pass


def test_numbers_whose_product_is_too_large_are_refused_without_a_trace(base, tmp_path):
    file = saved(tmp_path / "a.safetensors", {key: tensor * 1e20 for key, tensor in lora().items()})
    before = [weight.clone() for weight in base.unet.parameters()]
    with pytest.raises(StudioError, match="more than"), attach(base, [(file, 1.0)]):
        pass
    assert all(torch.equal(*pair) for pair in zip(before, base.unet.parameters(), strict=True))


@pytest.mark.parametrize("values", [True, False])
def test_an_alpha_may_have_dimensions(tmp_path, values):
    file = saved(tmp_path / "a.safetensors", lora() | {f"{Q}.alpha": torch.full((1, 1), 4.0)})
    (factor,) = load_adapter(file, values=values).factors.values()
    assert isinstance(factor, LowRank)
    assert factor.alpha == 4


@pytest.mark.parametrize("more", [{f"{Q}.on_input": torch.tensor(False)}, {f"{Q}.ia3_l": ones(16, 1)}])
def test_a_kind_that_is_not_read_is_refused_by_its_name(tmp_path, more):
    with pytest.raises(UsageError, match=r"\(IA\)\^3, which the studio does not read"):
        load_adapter(saved(tmp_path / "a.safetensors", {f"{Q}.weight": ones(16, 1)} | more))


def test_eight_bits_are_read(tmp_path):
    small = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in lora().items()}
    adapter = load_adapter(saved(tmp_path / "a.safetensors", small))
    check_values(adapter)
    assert (adapter.delta(adapter.layers[0]) == 2).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_measured_and_converted(tmp_path, run_studio, dtype):
    file = saved(tmp_path / "a.safetensors", {key: tensor.to(dtype) for key, tensor in lora().items()})
    measured = run_studio("inspect", file, "--norms")
    assert (measured.code, "not finite" in measured.out) == (0, False)
    for target in ("kohya", "diffusers"):
        out = tmp_path / f"{target}.safetensors"
        assert run_studio("convert", file, "--to", target, "--half", "--out", out).code == 0
        assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}
    broken = saved(tmp_path / "b.safetensors", {key: (tensor * torch.nan).to(dtype) for key, tensor in lora().items()})
    assert "not finite" in run_studio("inspect", broken, "--norms").out


def test_a_layer_that_is_there_twice_is_not_dropped_in_silence(tmp_path):
    sgm = lora("lora_unet_input_blocks_4_1_proj_in")
    diffusers = lora("lora_unet_down_blocks_1_attentions_0_proj_in")
    adapter = load_adapter(saved(tmp_path / "a.safetensors", sgm | diffusers))
    assert len(adapter.layers) == 1
    assert set(adapter.unread) in (set(sgm), set(diffusers))


@pytest.mark.parametrize("key", ["emb_params", "bundle_emb.zwx.emb_params"])
@pytest.mark.parametrize("shape", [(), (1, 2, 16)])
def test_a_word_that_is_no_table_of_rows_is_refused(tmp_path, key, shape):
    with pytest.raises(UsageError, match="no adapter"):
        load_adapter(saved(tmp_path / "zwx.safetensors", {key: ones(*shape)}))


def test_a_word_that_the_base_knows_already_is_an_error_with_words(base, tmp_path):
    file = saved(tmp_path / "a.safetensors", {"bundle_emb.cat</w>.string_to_param.*": ones(1, 16)})
    with pytest.raises(StudioError, match=re.escape("cat</w>")), attach(base, [(file, 1.0)]):
        pass


def test_a_word_of_several_rows_is_learned_and_forgotten_each_time(base, tmp_path):
    rows = torch.randn(3, 16)
    file = saved(tmp_path / "zwx.safetensors", {"emb_params": rows})
    tokenizer, table = base.tokenizers[0], base.text_encoders[0].get_input_embeddings()
    ids = tokenizer("a zwx zwx_1 cat").input_ids
    for _ in range(2):
        with attach(base, [(file, 1.0)]) as receipts:
            learned = tokenizer.convert_tokens_to_ids(["zwx", "zwx_1", "zwx_2"])
            weight = base.text_encoders[0].get_input_embeddings().weight
            assert torch.equal(weight[learned], rows)
            assert torch.equal(weight[: len(table.weight)], table.weight)
            assert not weight.requires_grad
        assert receipts[0].words == ("zwx",)
        assert base.text_encoders[0].get_input_embeddings() is table
        assert tokenizer("a zwx zwx_1 cat").input_ids == ids


@pytest.mark.parametrize(
    "settings",
    ["[" * 100_000, "7", "null", '{"alpha_pattern": 7}', '{"lora_alpha": "8"}'],
    ids=lambda text: text[:20],
)
def test_settings_of_the_wrong_kind_are_not_obeyed(tmp_path, settings):
    adapter = load_adapter(saved(tmp_path / "a.safetensors", PLAIN, peft(settings)))
    assert (adapter.delta(adapter.layers[0]) == 2).all()


def test_a_folder_with_settings_nested_too_deep_is_refused(tmp_path):
    saved(tmp_path / "adapter_model.safetensors", {f"base_model.model.{k[5:]}": t for k, t in PLAIN.items()})
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        load_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 10**400, "lora_alpha": 10**400}))
    with pytest.raises(StudioError, match="not finite"):
        check_values(load_adapter(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        {"params": 7},
        {"string_to_param": {}},
        {"a": 7},
        [1, 2],
        {f"unet.{Q}": {1: 2}},
        {f"{Q}.lora_down.weight": torch.zeros(0, 16), f"{Q}.lora_up.weight": torch.zeros(16, 0)},
        {f"{Q}.diff": torch.ones(1).expand(10**6, 10**6)},
        {f"{Q}.diff": torch.eye(16).to_sparse()},
        {f"{Q}.diff": torch.ones(16, 16, device="meta")},
    ],
    ids=range(9),
)
def test_what_is_no_adapter_in_a_pickle_is_refused(tmp_path, content):
    file = tmp_path / "a.pt"
    torch.save(content, file)
    with watched(seconds=1, megabytes=200), pytest.raises(StudioError):
        check_values(load_adapter(file, allow_pickle=True))
