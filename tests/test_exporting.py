from dataclasses import replace

import pytest
import torch
from adapter_files import write_kohya
from safetensors.torch import load_file

from studio.adapters import Adapter, load_adapter
from studio.concepts import Concept
from studio.errors import StudioError, UsageError
from studio.exporting import export_concept
from studio.factors import Full
from studio.importing import Arrival, import_adapter
from studio.library import Library


@pytest.fixture
def milo(home, tmp_path) -> Concept:
    notes = {"studio.steps": "300", "studio.note": "<script>|`x`\x1b[31m", "other": "kept in the file"}
    file = write_kohya(tmp_path / "cat.safetensors", notes)
    return import_adapter(Library(home), Arrival(file, "milo", "cat", "sks $(rm)"))[0]


def test_a_folder_gets_a_copy_and_a_card(milo, tmp_path):
    written = export_concept(milo, tmp_path / "out")
    assert written == [tmp_path / "out/milo.safetensors", tmp_path / "out/milo.md"]
    assert written[0].read_bytes() == milo.adapter_file.read_bytes()
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_file_is_written_under_the_name_that_was_given(milo, tmp_path):
    written = export_concept(milo, tmp_path / "mine.safetensors")
    assert written == [tmp_path / "mine.safetensors", tmp_path / "mine.md"]


def test_the_card_tells_how_to_use_it_and_lets_no_markup_act(milo, tmp_path):
    card = export_concept(milo, tmp_path / "out")[1].read_text()
    assert milo.sha256 is not None
    assert "studio library import milo.safetensors --name milo --class cat --trigger 'sks $(rm)'" in card
    assert "| steps | 300 |" in card
    assert milo.sha256 in card
    assert "<script>" not in card
    assert "\x1b" not in card


@pytest.mark.parametrize("taken", ["milo.safetensors", "milo.md"])
def test_nothing_is_written_over(milo, tmp_path, taken):
    (tmp_path / taken).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"{taken} exists"):
        export_concept(milo, tmp_path)
    assert (tmp_path / taken).read_bytes() == b"mine"


def test_unknown_formats_and_files_for_peft_are_refused(milo, tmp_path):
    with pytest.raises(UsageError, match="no format 'onnx'"):
        export_concept(milo, tmp_path, "onnx")
    with pytest.raises(UsageError, match="is a folder"):
        export_concept(milo, tmp_path / "a.safetensors", "peft")


def test_a_refused_conversion_leaves_nothing_and_names_no_option_of_another_command(milo, tmp_path, monkeypatch):
    norm = Adapter("milo", "", "sd15", {"unet.conv_norm_out": Full(torch.ones(4))})
    monkeypatch.setattr("studio.exporting.load_concept", lambda concept: norm)
    with pytest.raises(UsageError, match=r"is a whole change.*\nChoose another format: kohya or lycoris\.$"):
        export_concept(milo, tmp_path / "out" / "deep", "peft")
    assert not (tmp_path / "out").exists()


def test_changed_weights_are_not_handed_on(milo, tmp_path):
    with pytest.raises(StudioError, match="has changed"):
        export_concept(replace(milo, sha256="0" * 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["diffusers", "kohya", "peft"])
def test_a_converted_file_does_the_same(milo, tmp_path, kind):
    target, card = export_concept(milo, tmp_path / "out", kind)
    before, after = load_adapter(milo.adapter_file), load_adapter(target)
    for layer in before.layers:
        assert (before.delta(layer) - after.delta(layer)).abs().max() < 1e-6
    assert before.layers == after.layers
    assert card.is_file()
    if kind == "kohya":
        assert {key.split(".")[-1] for key in load_file(target)} == {"weight", "alpha"}
    if kind == "peft":
        assert {path.name for path in target.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
