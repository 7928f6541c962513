"""Adapter files with random damage: each is refused with words, or acts on a base and leaves no trace."""

import json
import random
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from soaking import SOAK
from watching import nothing_unpickled, watched

from studio.adapters import load_adapter
from studio.attaching import attach
from studio.errors import StudioError
from studio.models import find_base, load_base

MUTATIONS = 5000 if SOAK else 300
FIRST = random.randrange(2**32) if SOAK else 0  # the seed of the first mutation
LINEAR = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # [8, 8] in the tiny base
CONV = "mid_block_resnets_0_conv1"  # [16, 16, 3, 3]
DTYPES = [
    "F64",
    "F32",
    "F16",
    "BF16",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "I64",
    "I8",
    "U8",
    "U16",
    "U64",
    "BOOL",
    "C64",
    "",
    "F31",
]
STRANGE = [0, -1, 1, 2**31, 2**63, 2**64, 1.5, None, "8", [8], True]
TEXTS = [
    "",
    "\0",
    "\x1b[2J",
    "../../x",
    "x" * 5000,
    "NaN",
    "[" * 2000,
    '{"unet.lora_alpha": NaN}',
    '{"r": 1e400}',
    "{}",
]


def seeds() -> list[bytes]:
    """One sound file of each kind."""
    generator = torch.Generator().manual_seed(0)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    name, conv, dotted = f"lora_unet_{LINEAR}", f"lora_unet_{CONV}", "unet.mid_block.attentions.0.proj_in"
    lora = {f"{name}.lora_down.weight": r(2, 8), f"{name}.lora_up.weight": r(8, 2), f"{name}.alpha": torch.tensor(1.0)}
    locon = {f"{conv}.lora_down.weight": r(2, 16, 1, 1), f"{conv}.lora_mid.weight": r(2, 2, 3, 3),
             f"{conv}.lora_up.weight": r(16, 2, 1, 1)}  # fmt: skip
    loha = {f"{name}.hada_w{n}_{s}": r(*shape) for n in (1, 2) for s, shape in (("a", (8, 2)), ("b", (2, 8)))}
    lokr = {f"{name}.lokr_w1": r(2, 2), f"{name}.lokr_w2_a": r(4, 2), f"{name}.lokr_w2_b": r(2, 4)}
    peft = {f"{dotted}.lora_A.weight": r(2, 16, 1, 1), f"{dotted}.lora_B.weight": r(16, 2, 1, 1)}
    ibm = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.{side}.weight": r(*shape)
           for side, shape in (("down", (8, 4)), ("up", (4, 2)))}  # fmt: skip
    dora = {f"{name}.dora_scale": r(8, 1).abs()}
    whole = {f"{conv}.diff": r(16, 16, 3, 3) * 0.1, f"{conv}.diff_b": r(16)}
    words = {"bundle_emb.zwx.string_to_param.*": r(2, 16)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4}), "ss_tag_frequency": "{}"}
    return [save({k: t.contiguous() for k, t in one.items()}, metadata) for one in (
        lora, lora | locon, loha, lokr, peft, ibm, lora | dora, lora | whole, lora | words, {"emb_params": r(2, 16)},
    )]  # fmt: skip


def flip(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_in_header(rng: random.Random, content: bytes) -> bytes:
    end = 8 + int.from_bytes(content[:8], "little")
    return flip(rng, content[:end]) + content[end:]


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def splice(rng: random.Random, content: bytes) -> bytes:
    start, length = rng.randrange(len(content)), rng.randrange(64)
    return content[:start] + rng.choice((b"", bytes(length), rng.randbytes(length))) + content[start + length :]


def change_length(rng: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    lengths = (0, 1, length - 1, length + 1, len(content), len(content) - 8, 2**31, 2**63, 2**64 - 1)
    return struct.pack("<Q", rng.choice(lengths)) + content[8:]


def edit_header(rng: random.Random, content: bytes) -> bytes:
    """The header with one or two entries renamed, retyped, reshaped, moved, lost or doubled; the data as it was."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    for _ in range(rng.choice((1, 2))):
        key = rng.choice(list(header))
        edit = rng.randrange(7)
        if key == "__metadata__":
            header[key] = {**header[key], rng.choice(list(header[key]) or ["a"]): rng.choice((*TEXTS, 7, None, []))}
        elif edit == 0:
            header[
                rng.choice((key[:-1], key + "x", key.replace("lora", "lokr"), "", "\x1b[2J", "x" * 9000, "a" * 9))
            ] = header.pop(key)
        elif edit == 1:
            header[key]["dtype"] = rng.choice(DTYPES)
        elif edit == 2:
            shape = header[key]["shape"]
            header[key]["shape"] = rng.choice(
                (shape[::-1], [*shape, 1], [1, *shape], shape[:-1], [rng.choice(STRANGE)], [-1])
            )
        elif edit == 3:
            total = 1
            for size in header[key]["shape"]:
                total *= size
            header[key]["shape"] = rng.choice(
                ([total], [1, total], [total, 1], [1, 1, total], [total, 1, 1, 1], [2, total // 2])
            )
        elif edit == 4:
            header[key]["data_offsets"] = [rng.choice((*header[key]["data_offsets"], *STRANGE)) for _ in range(2)]
        elif edit == 5:
            other = rng.choice([one for one in header if one != "__metadata__"])
            header[key], header[other] = header[other], header[key]
        else:
            del header[key]
            if not header:
                break
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[end:]


def edit_data(rng: random.Random, content: bytes) -> bytes:
    """Four bytes of data replaced by a number that hurts."""
    end = 8 + int.from_bytes(content[:8], "little")
    place = end + 4 * rng.randrange((len(content) - end) // 4)
    number = struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38, -3e38, 1e-45, 0.0)))
    return content[:place] + number + content[place + 4 :]


WAYS = (flip, flip_in_header, cut, splice, change_length, edit_header, edit_header, edit_header, edit_data)


@pytest.fixture(scope="module")
def base(tiny_sd15):
    return load_base(find_base(str(tiny_sd15)), "cpu")


def state_of(base) -> list[torch.Tensor]:
    return [weight.clone() for model in (base.unet, *base.text_encoders) for weight in model.state_dict().values()]


def result(base, file: Path) -> str:
    """ "refused" or "acts"; whatever else happens is the test's failure."""
    try:
        load_adapter(file, values=False)
        with attach(base, [(file, 1.0)]) as receipts:
            assert receipts[0].matched or receipts[0].words
            for model in (base.unet, *base.text_encoders):
                assert all(weight.isfinite().all() for weight in model.parameters())
    except StudioError as error:
        text = str(error).replace(str(file), "")
        assert len(text) < 700
        assert all(char.isprintable() or char == "\n" for char in text)
        return "refused"
    return "acts"


@pytest.mark.timeout(3600)
def test_damaged_files_are_refused_or_act(base, tmp_path):
    files, before = seeds(), state_of(base)
    file, results = tmp_path / "zwx.safetensors", Counter()
    for sound in files:
        file.write_bytes(sound)
        assert result(base, file) == "acts"
    with watched(seconds=3600, megabytes=200), nothing_unpickled():
        for number in range(FIRST, FIRST + MUTATIONS):
            rng = random.Random(number)
            content, way = rng.choice(files), rng.choice(WAYS)
            file.write_bytes(way(rng, content))
            try:
                with watched(seconds=1, megabytes=200):
                    results[result(base, file)] += 1
            except BaseException as error:
                error.add_note(f"mutation {number}, {way.__name__}")
                raise
    assert min(results["refused"], results["acts"]) > MUTATIONS // 20, results
    assert all(torch.equal(*pair) for pair in zip(before, state_of(base), strict=True))
    print(dict(results))
