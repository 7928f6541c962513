import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapter_files import Q, kohya_tensors, write_kohya
from safetensors.torch import load_file, save_file

from studio.adapters import load_adapter, load_concept
from studio.errors import StudioError, UsageError
from studio.exporting import export_concept
from studio.home import Home
from studio.importing import Arrival, import_adapter
from studio.library import Library
from studio.trainers.shipped_concepts import add_shipped


@pytest.fixture
def library(home) -> Library:
    return Library(home)


def bring(library: Library, path: Path, **given):
    return import_adapter(library, replace(Arrival(path, "milo", "cat", "sks"), **given))


def dense(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    up, down = tensors[f"{Q}.lora_up.weight"].double(), tensors[f"{Q}.lora_down.weight"].double()
    return 1.0 / len(down) * up @ down


def test_a_file_is_kept_byte_for_byte_with_its_hash_and_name(library, tmp_path):
    file = write_kohya(tmp_path / "Cat v2.safetensors", {"any": "thing"})
    concept, adapter = bring(library, file)
    assert concept.adapter_file.read_bytes() == file.read_bytes()
    assert concept.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert concept.source == "Cat v2.safetensors"
    assert (concept.base, concept.family, concept.method) == ("sd15", "sd15", "LoRA")
    assert concept == library.find("milo")
    assert adapter.unread == ()
    assert [path.name for path in library.root.iterdir()] == ["milo"]


def test_what_it_learned_is_what_the_file_holds(library, tmp_path):
    concept, _ = bring(library, write_kohya(tmp_path / "a.safetensors"))
    adapter = load_concept(concept)
    (layer,) = adapter.layers
    assert adapter.name == "milo"
    assert (adapter.delta(layer) - dense(kohya_tensors())).abs().max() < 1e-5


@pytest.mark.parametrize(("width", "family"), [(768, "sd15"), (2048, "sdxl")])
def test_the_base_follows_from_the_family(library, tmp_path, width, family):
    concept, _ = bring(library, write_kohya(tmp_path / "a.safetensors", width=width))
    assert (concept.base, concept.family) == (family, family)


def test_a_base_can_be_named(library, tmp_path, tiny_sdxl):
    concept, _ = bring(library, write_kohya(tmp_path / "a.safetensors", width=2048), base=str(tiny_sdxl))
    assert (concept.base, concept.family) == (str(tiny_sdxl), "sdxl")
    concept, _ = bring(library, write_kohya(tmp_path / "b.safetensors", width=40), name="rex", base="sdxl")
    assert (concept.base, concept.family) == ("sdxl", "sdxl")


@pytest.mark.parametrize(
    ("metadata", "width", "given", "said"),
    [
        ({}, 40, {}, "does not tell which family"),
        ({}, 1024, {}, "made for Stable Diffusion 2, with which"),
        ({}, 768, {"base": "sdxl"}, "made for Stable Diffusion 1.5; the base 'sdxl'"),
        ({}, 768, {"base": "sdx"}, "no base model 'sdx'"),
        ({}, 768, {"trigger": None}, "does not tell which word"),
        ({}, 768, {"trigger": "a\nb"}, "no text for a prompt"),
        ({}, 768, {"class_word": ""}, "no text for a prompt"),
        ({}, 768, {"name": "../milo"}, "cannot be used"),
        ({}, 768, {"sha256": "abc"}, "no SHA-256"),
        ({}, 768, {"path": Path("nowhere.safetensors")}, "no adapter file"),
        ({}, 768, {"path": Path("nowhere.safetensors"), "sha256": "0" * 64}, "no adapter file"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_leaves_nothing(library, tmp_path, metadata, width, given, said):
    path = given.pop("path", None) or write_kohya(tmp_path / "a.safetensors", metadata, width)
    with pytest.raises(UsageError, match=said):
        bring(library, path, **given)
    assert not library.root.exists()


def test_a_taken_name_is_refused(library, tmp_path):
    file = write_kohya(tmp_path / "a.safetensors")
    bring(library, file)
    with pytest.raises(UsageError, match="already"):
        bring(library, file, name="Milo")


def test_an_expected_hash_is_compared_before_anything_is_read(library, tmp_path):
    file = write_kohya(tmp_path / "a.safetensors")
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    bring(library, file, sha256=right.upper())
    with pytest.raises(StudioError, match=f"{right[:12]}.*{'0' * 12}"):
        bring(library, file, name="rex", sha256="0" * 64)
    assert [one.name for one in library.concepts()] == ["milo"]


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "not finite"), (0.0, "changes nothing")])
def test_values_that_cannot_be_used_are_refused_and_leave_nothing(library, tmp_path, value, said):
    up = {f"{Q}.lora_up.weight": torch.full((320, 2), value)}
    with pytest.raises(StudioError, match=said):
        bring(library, write_kohya(tmp_path / "a.safetensors", more=up))
    assert list(library.root.iterdir()) == []


def test_the_trigger_is_taken_from_the_metadata_where_none_is_given(library, tmp_path):
    tags = {"ss_tag_frequency": json.dumps({"10_x": {"zwx \x1b[1mcat": 10, "hat": 2}})}
    concept, _ = bring(library, write_kohya(tmp_path / "a.safetensors", tags), trigger=None)
    assert (concept.trigger, concept.phrase) == ("zwx", "zwx cat")
    concept, _ = bring(library, write_kohya(tmp_path / "a.safetensors", tags), name="rex")
    assert concept.trigger == "sks"


def test_keys_that_nothing_explains_are_counted(library, tmp_path):
    more = {f"strange.{n}": torch.ones(1) for n in range(5)}
    _, adapter = bring(library, write_kohya(tmp_path / "a.safetensors", more=more))
    assert set(adapter.unread) == set(more)


def test_a_folder_of_peft_becomes_one_file(library, tmp_path):
    path = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = kohya_tensors()
    down, up = tensors[f"{Q}.lora_down.weight"], tensors[f"{Q}.lora_up.weight"]
    save_file({f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1}))
    concept, _ = bring(library, tmp_path)
    adapter = load_adapter(concept.adapter_file)
    assert (adapter.delta(adapter.layers[0]) - dense(tensors)).abs().max() < 1e-5
    assert concept.sha256 == hashlib.sha256(concept.adapter_file.read_bytes()).hexdigest()
    assert concept.source == tmp_path.name


def test_a_file_that_begins_like_a_pickle_is_kept_as_it_is(library, tmp_path):
    turn = {f"{Q}.oft_blocks": torch.randn(4, 80, 80), f"{Q}.alpha": torch.tensor(0.0)}
    for name, tensors in (("lora", kohya_tensors()), ("oft", turn)):
        for padding in range(256):
            save_file(tensors, tmp_path / name, {"pad": "x" * padding})
            if (tmp_path / name).read_bytes()[:1] == b"\x80":
                break
        concept, _ = bring(library, tmp_path / name, name=name, base="sd15", allow_pickle=True)
        assert concept.adapter_file.read_bytes() == (tmp_path / name).read_bytes()


def test_a_pickled_rotation_is_kept_as_lycoris_has_it(library, tmp_path):
    blocks = torch.randn(4, 80, 80)
    torch.save({f"{Q}.oft_blocks": blocks, f"{Q}.alpha": torch.tensor(0.0)}, tmp_path / "oft.pt")
    concept, _ = bring(library, tmp_path / "oft.pt", base="sd15", allow_pickle=True)
    assert torch.equal(load_file(concept.adapter_file)[f"{Q}.oft_blocks"], blocks)


def test_a_pickle_is_read_only_on_demand_and_kept_as_safetensors(library, tmp_path):
    file = tmp_path / "ed.pth"
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up = torch.randn(4, 768), torch.randn(320, 4)
    unet = {f"{path}_lora.down.weight": down, f"{path}_lora.up.weight": up}
    torch.save({"params": {"unet": unet}}, file)
    with pytest.raises(UsageError, match="pickled"):
        bring(library, file)
    concept, _ = bring(library, file, allow_pickle=True)
    assert set(map(tuple, (t.shape for t in load_file(concept.adapter_file).values()))) >= {(4, 768), (320, 4)}
    adapter = load_adapter(concept.adapter_file)
    assert (adapter.delta(adapter.layers[0]) - up @ down).abs().max() < 1e-4


def test_an_embedding_is_called_by_its_file_name_or_the_trigger(library, tmp_path):
    rows = torch.randn(2, 768)
    save_file({"emb_params": rows}, tmp_path / "zwx.safetensors")
    concept, _ = bring(library, tmp_path / "zwx.safetensors", trigger=None)
    assert (concept.trigger, concept.method, concept.base) == ("zwx", "embedding", "sd15")
    assert torch.equal(load_concept(concept).embeddings["zwx"]["*"], rows)
    concept, _ = bring(library, tmp_path / "zwx.safetensors", name="rex", trigger="qqq")
    assert list(load_concept(concept).embeddings) == ["qqq"]


@pytest.mark.parametrize(
    "tensors", [{"<cat-toy>": torch.ones(768)}, {"bundle_emb.ohwx.emb_params": torch.ones(2, 768)} | kohya_tensors()]
)
def test_a_single_word_goes_by_the_trigger_that_does_not_say_it(library, tmp_path, tensors):
    (own,) = [key.removeprefix("bundle_emb.").removesuffix(".emb_params") for key in tensors if "lora" not in key]
    save_file(tensors, tmp_path / "a.safetensors")
    for name, trigger, word in (("a", "sks", "sks"), ("b", f"my {own}", own), ("c", None, own)):
        concept, _ = bring(library, tmp_path / "a.safetensors", name=name, trigger=trigger)
        assert list(load_concept(concept).embeddings) == [word]
        assert word in concept.phrase


def test_a_pickled_embedding_goes_by_the_trigger(library, tmp_path):
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}, "name": "my-style"}, tmp_path / "a.pt")
    concept, _ = bring(library, tmp_path / "a.pt", allow_pickle=True)
    assert list(load_concept(concept).embeddings) == ["sks"]


def test_a_full_disk_leaves_nothing(library, tmp_path, monkeypatch):
    def full(_, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(StudioError, match="No space left"):
        bring(library, write_kohya(tmp_path / "a.safetensors"))
    assert list(library.root.iterdir()) == []


def test_what_the_studio_trained_comes_back_as_it_was(library, tmp_path):
    add_shipped(Home(library.root.parent))
    for name in ("milo", "neon"):
        known = library.find(name)
        file = export_concept(known, tmp_path / name)[0]
        again, _ = import_adapter(library, Arrival(file, f"{name}-again", None))
        assert (again.base, again.family, again.phrase) == (known.base, known.family, known.phrase)


def test_the_cards_command_takes_the_file_back(library, tmp_path):
    add_shipped(Home(library.root.parent))
    file, card = export_concept(library.find("milo"), tmp_path)
    (line,) = [one for one in card.read_text().splitlines() if one.startswith("studio library import")]
    assert line == f"studio library import {file.name} --name milo --class cat --trigger milo0 --base picturebook"


def test_a_strangers_file_does_not_tell_what_it_shows(library, tmp_path):
    with pytest.raises(UsageError, match="does not tell what it shows"):
        import_adapter(library, Arrival(write_kohya(tmp_path / "a.safetensors"), "milo", None, "sks"))
