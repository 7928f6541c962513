"""Hostile and broken files, as they come: refused quickly, in little memory, and with words."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from adapter_files import Q, kohya_tensors, write_kohya
from safetensors.torch import load_file, save, save_file
from watching import nothing_unpickled, watched

from studio.adapters import load_adapter
from studio.errors import StudioError, UsageError
from studio.tensorfile import order_metadata, read_header


def build(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(*shape: int, start: int = 0, end: int | None = None, dtype: str = "F32") -> dict:
    size = 4 * int(torch.tensor(shape).prod()) if end is None else end - start
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}


def many(count: int) -> bytes:
    return build({f"t{n}": entry(1, start=4 * n) for n in range(count)}, bytes(4 * count))


SOUND = save(kohya_tensors())
DOWN, UP = f"{Q}.lora_down.weight", f"{Q}.lora_up.weight"
PAIR = {DOWN: entry(2, 8), UP: entry(8, 2, start=64)}
CASES = {
    "empty": b"",
    "four bytes": b"\x10\0\0\0",
    "header of 2^63": build(b"{}", length=2**63),
    "header of 2^64 - 1": build(b"{}", length=2**64 - 1),
    "header longer than the file": build({}, length=1000),
    "header of 9 MB of metadata": build({"__metadata__": {"a": "x" * 9 * 10**6}}),
    "20,001 tensors": many(20_001),
    "100,000 tensors": build({f"{n}": entry(0) for n in range(100_000)}),
    "overlapping offsets": build({**PAIR, UP: entry(8, 2)}, bytes(64)),
    "offsets beyond the end": build(PAIR, bytes(100)),
    "offsets backwards": build({DOWN: {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    "offsets of 2^63": build({DOWN: entry(1, start=2**63, end=2**63 + 4)}, bytes(4)),
    "a hole between tensors": build({**PAIR, UP: entry(8, 2, start=100)}, bytes(164)),
    "bytes left over": build(PAIR, bytes(500)),
    "a key twice": build(f'{{"{DOWN}": {json.dumps(entry(1))}, "{DOWN}": {json.dumps(entry(1))}}}'.encode(), bytes(8)),
    "deep nesting": build(b'{"a":' * 10**6 + b"1" + b"}" * 10**6),
    "deep nesting in metadata": build(b'{"__metadata__":' + b"[" * 10**6 + b"]" * 10**6 + b"}"),
    "NaN in the shape": build(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "a negative shape": build(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
    "metadata that is no text": build({"__metadata__": {"a": 7}, **PAIR}, bytes(128)),
    "metadata that is a list": build({"__metadata__": ["a"], **PAIR}, bytes(128)),
    "absurd shape": build({DOWN: {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, bytes(4)),
    "shape against the bytes": build({DOWN: entry(1000, 1000, end=64), UP: entry(8, 2, start=64)}, bytes(128)),
    "unknown type": build({DOWN: entry(2, 8, dtype="F31"), UP: entry(8, 2, start=64)}, bytes(128)),
    "no size": build({DOWN: entry(0, 8), UP: entry(8, 0)}),
    "no tensors": build({}),
    "only metadata": build({"__metadata__": {"a": "b"}}),
    "a list": build(b"[1, 2]"),
    "not UTF-8": build(b'{"\xff\xfe": 1}'),
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "all zeros": bytes(10**6),
}


@pytest.fixture
def refused(tmp_path):
    """Load a file of the given content; it must be refused in a second and 100 MB, in few words that are safe."""

    def load(content: bytes, name: str = "a.safetensors") -> str:
        file = tmp_path / name
        file.write_bytes(content)
        with watched(seconds=1, megabytes=100), nothing_unpickled(), pytest.raises(StudioError) as error:
            load_adapter(file)
        assert len(str(error.value).replace(str(file), "")) < 500
        assert all(char.isprintable() or char == "\n" for char in str(error.value))
        assert error.value.remedy
        return error.value.problem

    return load


@pytest.mark.parametrize("case", CASES)
def test_a_broken_file_is_refused(refused, case: str):
    refused(CASES[case])


def test_the_file_that_the_others_break_is_sound(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(SOUND)
    assert len(load_adapter(tmp_path / "a.safetensors").layers) == 1
    (tmp_path / "b.safetensors").write_bytes(build(PAIR, struct.pack("<32f", *range(32))))
    assert len(load_adapter(tmp_path / "b.safetensors").layers) == 1


def test_twenty_thousand_tensors_are_no_reason_to_refuse(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(many(20_000))
    with pytest.raises(UsageError, match="no adapter that the studio knows"):
        load_adapter(tmp_path / "a.safetensors")


def test_a_header_of_100_megabytes_is_refused_unread(tmp_path):
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 10**8) + b'{"a":')
        file.truncate(10**8 + 8)
    with watched(seconds=0.1, megabytes=5), pytest.raises(UsageError, match=r"100\.0 MB; 8 MB are the limit"):
        load_adapter(tmp_path / "a.safetensors")


def test_the_limits_are_named(refused):
    assert "9.0 MB; 8 MB are the limit" in refused(CASES["header of 9 MB of metadata"])
    assert "20,001 tensors; 20,000 are the limit" in refused(CASES["20,001 tensors"])


def test_a_file_cut_anywhere_is_refused(refused):
    length = 8 + int.from_bytes(SOUND[:8], "little")
    for end in {*range(0, 40), *range(40, length, 13), length, length + 1, (length + len(SOUND)) // 2, len(SOUND) - 1}:
        refused(SOUND[:end])


class Tripwire:
    def __reduce__(self):
        return Path.touch, (Path("tripped"),)


@pytest.mark.parametrize("name", ["a.safetensors", "a.SAFETENSORS", "a.pt", "a.ckpt"])
@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_is_known_by_content_and_never_runs(tmp_path, monkeypatch, name: str, allowed: bool):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Tripwire()}, "torch")
    contents = [Path("torch").read_bytes(), *(pickle.dumps(Tripwire(), protocol) for protocol in range(6))]
    for content in contents:
        Path(name).write_bytes(content)
        with pytest.raises(UsageError):
            load_adapter(Path(name).absolute(), allow_pickle=allowed)
        with pytest.raises(UsageError):
            read_header(Path(name).absolute())
    assert not Path("tripped").exists()


def test_safetensors_is_known_by_content_too(tmp_path):
    for name in ("a.pt", "a.ckpt", "a"):
        assert len(load_adapter(write_kohya(tmp_path / name)).layers) == 1


def test_a_folder_that_is_no_adapter_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no PEFT adapter"):
        load_adapter(tmp_path)
    with pytest.raises(UsageError, match="Cannot read"):
        read_header(tmp_path)


def test_metadata_comes_back_as_it_is_and_acts_nowhere(tmp_path):
    hostile = {"name": "../../x", "ss_network_args": "__import__('os').abort()", "t": "\x1b[2J" * 1000}
    adapter = load_adapter(write_kohya(tmp_path / "a.safetensors", hostile))
    assert adapter.metadata == hostile
    assert adapter.name == "a"


def test_names_of_strangers_are_safe_to_show(refused):
    key = "\x1b[2J" + "x" * 10_000 + ".lora_down.weight"
    refused(build({key: entry(0, 8)}))
    refused(build({key: entry(2, 8)}, bytes(64)))
    refused(build({DOWN: entry(2, 8, dtype="\x1b[2J" + "x" * 10_000)}, bytes(64)))


@pytest.mark.parametrize("text", ["plain", 'a "quoted" \\ word', "ämter\n\t\x01\x7f \u2028 🐱"])
def test_sorted_metadata_says_the_same_in_a_file_of_the_same_size(tmp_path: Path, text: str):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    contents, sizes = set(), set()
    for _ in range(4):
        save_file(tensors, tmp_path / "x.safetensors", {f"key {n}": f"{n} {text}" for n in range(20)})
        sizes.add((tmp_path / "x.safetensors").stat().st_size)
        order_metadata(tmp_path / "x.safetensors")
        contents.add((tmp_path / "x.safetensors").read_bytes())
    assert read_header(tmp_path / "x.safetensors").metadata == {f"key {n}": f"{n} {text}" for n in range(20)}
    assert all(torch.equal(load_file(tmp_path / "x.safetensors")[name], tensor) for name, tensor in tensors.items())
    assert [len(content) for content in contents] == [*sizes]
