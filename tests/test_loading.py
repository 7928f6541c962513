"""What a warm worker keeps from job to job, and when it does not."""

import gc
import os
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from composing import SETTINGS

from studio.bank import AdapterBank
from studio.bases import EMBEDDED, find_base
from studio.concepts import Concept, file_hash
from studio.errors import StudioError
from studio.events import silent
from studio.job_worker import Bench
from studio.models import load_base
from studio.pipelines.compose import draw
from studio.pipelines.methods import METHODS
from studio.trainers.shipped_concepts import add_shipped
from studio.ui import loading
from studio.ui.asks import ComposeAsk
from studio.ui.loading import Warm
from studio.ui.work import get_ready


@pytest.fixture
def concept(tiny_loras, tmp_path):
    shutil.copy(tiny_loras[0], tmp_path / "adapter.safetensors")
    return Concept("milo", "sks", "cat", "tiny", "sdxl", "lora", tmp_path)


@pytest.fixture
def base(tiny_sdxl):
    return load_base(find_base(str(tiny_sdxl)), "cpu")


def job(home, kept, *, keep_bank=True):
    return Warm(Bench(home, silent, None, 1, 1, kept), keep_bank=keep_bank)


def test_adapters_of_the_last_job_are_kept_and_no_others(home, base, concept):
    kept: dict = {}
    both = job(home, kept)
    first, riders = both.bank_of(base, [concept]), both.bank_of(base, [])
    again = job(home, kept)
    assert (again.bank_of(base, [concept]), again.bank_of(base, [])) == (first, riders)
    job(home, kept, keep_bank=False)
    assert job(home, kept).bank_of(base, [concept]) is not first


def test_those_that_are_not_wanted_again_are_let_go_before_others_are_read(home, base, concept, monkeypatch):
    kept: dict = {}
    first = weakref.ref(job(home, kept).bank_of(base, [concept]))
    alive: list = []
    monkeypatch.setattr(loading, "bank_of", lambda *given: alive.append((gc.collect(), first())[1]))
    job(home, kept).bank_of(base, [replace(concept, name="rex")])
    assert alive == [None]


def test_kept_adapters_draw_the_same(home, base, concept):
    kept: dict = {}
    settings = replace(SETTINGS, prompt="a <milo> on the grass")

    def drawn(bank_of):
        return draw(base, settings, [(concept, 0.8)], METHODS["auto"].make(), silent, bank_of=bank_of)

    one, two = (drawn(job(home, kept).bank_of) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one, drawn(AdapterBank.of))


def test_a_file_that_changed_is_read_again_and_checked(home, base, concept, monkeypatch):
    kept: dict = {}
    sealed = replace(concept, sha256=file_hash(concept.adapter_file))
    job(home, kept).bank_of(base, [sealed])
    os.utime(concept.adapter_file, (1, 1))
    monkeypatch.setattr(loading, "bank_of", lambda *given: "read anew")
    assert job(home, dict(kept)).bank_of(base, [sealed]) == "read anew"
    monkeypatch.undo()
    concept.adapter_file.write_bytes(concept.adapter_file.read_bytes() + b" ")
    with pytest.raises(StudioError, match="has changed since"):
        job(home, kept).bank_of(base, [sealed])


def test_the_base_is_kept_until_its_files_change(home, tiny_sdxl, tmp_path):
    folder = shutil.copytree(tiny_sdxl, tmp_path / "base")
    kept: dict = {}
    source = find_base(str(folder))
    base = job(home, kept)(source, "cpu", False)
    assert job(home, kept)(source, "cpu", False) is base
    os.utime(folder / "model_index.json", (2**31, 2**31))
    assert job(home, kept)(source, "cpu", False) is not base


def test_a_worker_that_got_ready_has_the_base_that_a_first_picture_asks_for(home, monkeypatch):
    bench = Bench(home, silent, "cpu", 0, 0)
    get_ready({}, bench)
    monkeypatch.setattr(loading, "load", lambda *given: pytest.fail("loaded anew"))
    add_shipped(home)
    first = ComposeAsk.read({"prompt": "a <milo>"}).plan(home)
    assert Warm(bench)(first.source, "cpu", first.settings.offload).source.name == EMBEDDED
