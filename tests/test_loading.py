"""What a warm worker keeps from job to job, and when it does not."""

import os
import shutil
from dataclasses import replace

import pytest

from studio.bases import find_base
from studio.concepts import Concept, file_hash
from studio.errors import StudioError
from studio.events import silent
from studio.job_worker import Bench
from studio.ui import loading
from studio.ui.loading import Warm


@pytest.fixture
def concept(tiny_loras, tmp_path):
    shutil.copy(tiny_loras[0], tmp_path / "adapter.safetensors")
    return Concept("milo", "sks", "cat", "tiny", "sdxl", "lora", tmp_path)


def job(home, kept):
    return Warm(Bench(home, silent, None, 1, 1, kept))


def test_adapters_of_the_last_job_are_kept_and_no_others(home, concept):
    kept: dict = {}
    first = job(home, kept).adapter(concept)
    assert job(home, kept).adapter(concept) is first
    job(home, kept)  # one that needs no adapter
    assert job(home, kept).adapter(concept) is not first


def test_a_file_that_changed_is_read_again_and_checked(home, concept, monkeypatch):
    kept: dict = {}
    sealed = replace(concept, sha256=file_hash(concept.adapter_file))
    job(home, kept).adapter(sealed)
    os.utime(concept.adapter_file, (1, 1))
    monkeypatch.setattr(loading, "read", lambda one: "read anew")
    assert job(home, dict(kept)).adapter(sealed) == "read anew"
    monkeypatch.undo()
    concept.adapter_file.write_bytes(concept.adapter_file.read_bytes() + b" ")
    with pytest.raises(StudioError, match="has changed since"):
        job(home, kept).adapter(sealed)


def test_the_base_is_kept_until_its_files_change(home, tiny_sdxl, tmp_path):
    folder = shutil.copytree(tiny_sdxl, tmp_path / "base")
    kept: dict = {}
    source = find_base(str(folder))
    base = job(home, kept)(source, "cpu", False)
    assert job(home, kept)(source, "cpu", False) is base
    os.utime(folder / "model_index.json", (2**31, 2**31))
    assert job(home, kept)(source, "cpu", False) is not base
