"""The page Library without a browser: what it shows, and what its handlers do."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from adapter_files import write_kohya
from PIL import Image

from studio.concepts import Concept, file_hash, write_concept
from studio.errors import StudioError, UsageError
from studio.home import Home
from studio.importing import import_adapter
from studio.job_records import BEST
from studio.job_worker import Bench
from studio.library import Library
from studio.ui import downloads, page_import, page_library, page_trash, reworking
from studio.ui import library_parts as parts
from studio.ui.frame import Frame
from studio.ui.service import Service
from studio.ui.thumbs import ROUTE, Thumbs

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def frame(home: Home, monkeypatch: pytest.MonkeyPatch) -> Frame:
    """A frame whose service starts no process."""
    monkeypatch.setattr("studio.ui.service.ensure_runner", lambda home, device: None)
    return Frame(Service(home), gr.Textbox(render=False), gr.Textbox(render=False))


def put(home: Home, name: str, **words) -> Concept:
    """A concept of SD 1.5 in the library; `file` is where its adapter is copied from."""
    folder, file = home.library / name, words.pop("file", None)
    folder.mkdir(parents=True)
    if file is None:
        write_kohya(folder / "adapter.safetensors")
    else:
        shutil.copy(file, folder / "adapter.safetensors")
    given: dict[str, Any] = {"trigger": "sks", "class_word": "cat", "base": "sd15", "family": "sd15"}
    given |= {"method": "lora"} | words
    given.setdefault("sha256", file_hash(folder / "adapter.safetensors"))
    write_concept(Concept(name, folder=folder, **given))
    return Library(home).find(name)


def bench(home: Home) -> tuple[Bench, list[object]]:
    heard: list[object] = []
    return Bench(home, heard.append, "cpu", 1, 1), heard


def test_the_page_is_laid_out_and_follows_the_library(frame: Frame):
    with gr.Blocks():
        page_library.build(frame)
    assert [name for name, _, _ in frame.shows] == ["library"]
    _, fill, outputs = frame.shows[0]
    assert len(fill()) == len(outputs)


def test_an_empty_library_invites(frame: Frame):
    assert "No concept yet" in parts.cards(frame.service, parts.Sought())


def test_cards_tell_what_is_there(frame: Frame, home: Home):
    put(home, "milo", tags=("pets",))
    put(home, "rex", sha256="0" * 64, class_word="dog")
    put(home, "old", sha256=None)
    shown = parts.cards(frame.service, parts.Sought(), "rex")
    assert shown.count("data-name=") == 3
    assert shown.count('aria-current="true"') == 1
    assert (shown.count("✓ verified"), shown.count("✕ changed")) == (1, 1)
    assert "9.1 kB" in shown


@pytest.mark.parametrize(
    ("sought", "names"),
    [
        (("MILO",), ["milo"]), (("dog sks",), ["rex"]), (("", "sdxl"), ["rex"]), (("", "", "b-lora"), ["milo"]),
        (("", "", "", "pets"), ["rex"]), ((None, None, None, None), ["milo", "rex"]), (("pets", "sd15"), []),
    ],
)  # fmt: skip
def test_filters_choose(home: Home, sought: tuple[str | None, ...], names: list[str]):
    put(home, "milo", method="b-lora")
    put(home, "rex", class_word="dog", base="sdxl", tags=("pets",))
    chosen = parts.Sought.of(*sought)
    assert [one.name for one in Library(home).concepts() if chosen.fits(one)] == names


def test_strangers_words_do_not_act(frame: Frame, home: Home, tmp_path: Path):
    tags = json.dumps({"folder": {EVIL: 3}})
    file = write_kohya(tmp_path / "evil.safetensors", {"ss_tag_frequency": tags}, more={EVIL: torch.ones(2)})
    words = {"trigger": EVIL, "class_word": '"><img src=x onerror=alert(2)>', "method": "<b>", "source": "<i>"}
    concept = put(home, "milo", file=file, **words)
    (concept.folder / "recipe.toml").write_text(f'steps = "{EVIL}"\n')
    (home.library / "bad").mkdir()
    (home.library / "bad/concept.json").write_text(EVIL)
    for shown in (
        parts.cards(frame.service, parts.Sought()), parts.detail(frame.service, "milo"), parts.inspected(concept),
        parts.inspection(parts.arrived(file)),
    ):  # fmt: skip
        assert "<script" not in shown
        assert "<img src=x" not in shown
        assert "&lt;script&gt;" in shown


def test_a_concept_in_full(frame: Frame, home: Home):
    concept = put(home, "milo", source="cat.safetensors", base="/somewhere/private/tiny")
    (concept.folder / "recipe.toml").write_text("steps = 300\nrank = 16\n")
    for name in ("samples", "loss"):
        Image.new("RGB", (40, 20)).save(concept.folder / f"{name}.png")
    shown = parts.detail(frame.service, "milo")
    assert "sks cat" in shown
    assert "the file is the one" in shown
    assert shown.count(ROUTE) == 2
    assert "300" in shown
    assert "private" not in shown
    with pytest.raises(UsageError):
        parts.detail(frame.service, "../milo")
    assert "no concept" in page_library.shown_detail(frame, "rex")


def test_what_a_file_holds_is_told_with_bars(home: Home):
    shown = parts.inspected(put(home, "milo"))
    assert "Stable Diffusion 1.5" in shown
    assert "width:100.0%" in shown
    damaged = put(home, "rex")
    damaged.adapter_file.write_bytes(b"weights")
    assert 'class="message bad"' in parts.inspected(damaged)


def test_the_cover_is_the_last_sample_else_a_picture_it_learned(home: Home, tmp_path: Path):
    concept = put(home, "milo")
    assert parts.cover(concept) is None
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (concept.folder / "recipe.toml").write_text(f"pictures = {json.dumps(str(tmp_path))}\n")
    parts._cover.cache_clear()
    assert parts.cover(concept) == tmp_path / "1.png"
    (concept.folder / "samples").mkdir()
    for step in (0, 420, 210):
        Image.new("RGB", (8, 8)).save(concept.folder / f"samples/step-{step:06}-0.png")
    parts._cover.cache_clear()
    assert parts.cover(concept) == concept.folder / "samples/step-000420-0.png"
    assert parts.picture(Thumbs(home), concept).startswith(ROUTE)


def test_large_files_are_not_hashed_for_a_card(home: Home):
    concept = put(home, "milo")
    assert parts.is_sound(concept, limit=10) is None
    assert parts.is_sound(concept) is True
    assert parts.is_sound(concept, limit=10) is True


@pytest.mark.parametrize(("size", "words"), [(999, "999 bytes"), (4_685_880, "4.7 MB"), (231_000_000, "231 MB")])
def test_sizes_in_words(size: int, words: str):
    assert parts.size_words(size) == words


@pytest.mark.parametrize("kind", downloads.KINDS)
def test_exports_are_files_to_save(home: Home, kind: str):
    concept = put(home, "milo")
    made = downloads.exported(concept, kind)
    names = ["milo-peft.zip"] if kind == "peft" else ["milo.safetensors", "milo.md"]
    assert [one.name for one in made] == names
    assert not any(one.is_relative_to(home.root) for one in made)
    assert downloads.exported(concept, kind) == made


def test_an_export_that_is_refused_leaves_nothing(home: Home):
    concept = put(home, "milo", sha256="0" * 64)
    for _ in range(2):
        with pytest.raises(StudioError, match="has changed"):
            downloads.exported(concept, "kohya")
    with pytest.raises(UsageError, match="no format"):
        downloads.exported(concept, EVIL)


def upload(tmp_path: Path, name: str = "Cat v2.safetensors", **given) -> str:
    return str(write_kohya(tmp_path / name, **given))


def test_a_file_is_taken_in_with_a_receipt(frame: Frame, home: Home, tmp_path: Path):
    path = upload(tmp_path, more={EVIL: torch.ones(2)})
    arrival = page_import.arrival_of(frame, path, " cleo ", "cat", " sks ", "")
    concept, adapter = import_adapter(frame.service.library, arrival)
    said = parts.receipt(concept, adapter)
    assert (concept.name, concept.trigger, concept.base) == ("cleo", "sks", "sd15")
    assert "1 layer in" in said
    assert "&lt;script&gt;" in said
    assert "<script" not in said


def test_the_receipt_names_words_that_nothing_calls(frame: Frame, tmp_path: Path):
    more = {f"bundle_emb.<{word}>.emb_params": torch.ones(1, 768) for word in ("one", "two")}
    arrival = page_import.arrival_of(frame, upload(tmp_path, more=more), "cleo", "cat", "sks", "")
    said = parts.receipt(*import_adapter(frame.service.library, arrival))
    assert "&lt;one&gt;, &lt;two&gt; act only where a prompt says them" in said


@pytest.mark.parametrize(
    ("path", "word", "base"),
    [(None, "cat", ""), ("", "cat", ""), ("file", " ", ""), ("file", "cat", "/etc"), ("file", "cat", "../x")],
)
def test_what_is_missing_or_unknown_is_refused(frame: Frame, tmp_path: Path, path: str, word: str, base: str):
    given = upload(tmp_path) if path == "file" else path
    with pytest.raises(UsageError):
        page_import.arrival_of(frame, given, "cleo", word, "sks", base)


def test_only_safetensors_of_some_size_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="This is no"):
        page_import.checked_upload(str(tmp_path / "cat.pt"))
    monkeypatch.setattr(page_import, "MOST_BYTES", 100)
    with pytest.raises(UsageError, match="at most"):
        page_import.checked_upload(upload(tmp_path))


def test_bases_and_names_are_offered(frame: Frame, home: Home):
    put(home, "milo", base="/models/mine")
    choices = page_import.offered_bases(frame)["choices"]
    assert [words for words, _ in choices] == ["as the file says", "picturebook", "sd15", "sdxl", "mine"]
    assert page_import.suggested_name("/tmp/My <b>Cat v2.safetensors") == "my--b-cat-v2"


def test_thrown_away_concepts_can_be_chosen(frame: Frame, home: Home):
    assert page_trash.trash_choices(frame)["value"] is None
    put(home, "milo")
    thrown = Library(home).trash("milo")
    (label, entry), *others = page_trash.trash_choices(frame)["choices"]
    assert (entry, others) == (thrown.entry, [])
    assert label.startswith("milo, ")


def test_a_smaller_copy_becomes_a_concept(home: Home, frame: Frame):
    put(home, "milo", tags=("pets",))
    order = reworking.ResizeAsk.read({"name": "milo", "new": "small", "rank": 1}).order(home)
    assert order.device != BEST  # it does not wait behind a training
    place, heard = bench(home)
    result = reworking.resize(order.arguments, place)
    small = Library(home).find("small")
    assert (result["concept"], small.phrase, small.tags) == ("small", "sks cat", ("pets",))
    assert small.adapter_file.stat().st_size < Library(home).find("milo").adapter_file.stat().st_size
    assert 0 < result["error"] < 1
    assert any("is lost" in str(one) for one in heard)
    assert parts.is_sound(small)


def test_two_become_one_that_answers_to_both(home: Home):
    put(home, "milo")
    put(home, "rex", trigger="ohwx", class_word="dog")
    ask = {"names": ("milo", "rex"), "weights": (1.0, 0.5), "new": "both"}
    reworking.merge(reworking.MergeAsk.read(ask).order(home).arguments, bench(home)[0])
    assert Library(home).find("both").phrase == "sks cat and ohwx dog"
    cut = reworking.merge(reworking.MergeAsk.read(ask | {"new": "few", "rank": 1}).arguments(), bench(home)[0])
    assert cut["error"] > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ("milo", "milo")}, {"names": ("milo", "nobody")}, {"names": ("milo", "xl")}, {"new": "milo"},
        {"new": "../x"}, {"weights": (0, 1)}, {"rank": 0}, {"names": ("milo",)},
    ],
)  # fmt: skip
def test_what_cannot_be_merged_is_refused(home: Home, changes: dict[str, object]):
    for name in ("milo", "rex"):
        put(home, name)
    put(home, "xl", base="sdxl", family="sdxl")
    given = {"names": ("milo", "rex"), "weights": (1.0, 1.0), "new": "both"} | changes
    with pytest.raises(UsageError):
        reworking.MergeAsk.read(given).order(home)


def test_the_page_asks_for_jobs_and_says_so(frame: Frame, home: Home):
    put(home, "milo")
    with gr.Blocks() as blocks:
        page_library.build(frame)
    act: Any = next(one.fn for one in blocks.fns.values() if one.name == "handler")  # the first: the smaller copy
    said, changed = act("milo", 3, 4, " tiny ")
    assert "Job 1" in said
    assert changed == 4
    assert frame.service.store.job(1).arguments == {"name": "milo", "new": "tiny", "rank": 4}
    with pytest.raises(gr.Error, match="No concept is chosen"):
        act("", 3, 4, "tiny")


def test_a_choice_fills_the_panel(frame: Frame, home: Home):
    put(home, "milo", tags=("pets",))
    put(home, "rex")
    with gr.Blocks() as blocks:
        page_library.build(frame)
    choose: Any = next(one.fn for one in blocks.fns.values() if one.name == "choose")
    name, panel, view, _, tags, *_ = choose(SimpleNamespace(_data={"name": "milo"}))
    assert (name, panel["visible"], tags["value"], tags["choices"]) == ("milo", True, ["pets"], ["pets"])
    assert "sks cat" in view
    for wrong in ("../milo", EVIL, ""):
        with pytest.raises(gr.Error):
            choose(SimpleNamespace(_data={"name": wrong}))
