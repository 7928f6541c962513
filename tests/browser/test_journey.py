"""A newcomer's way through the studio on the embedded base, in a real browser on a real server."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect
from watched_pages import Watched

from studio.datasets import sample_folder

sys.path.insert(0, str(Path(__file__).parent.parent))
from web import served

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]
PATIENCE = 240_000  # milliseconds, for what draws or trains


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty home."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """A server of the empty home."""
    with served(place) as found:
        yield found


def to(page: Page, name: str) -> None:
    """Go to a page by its tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def drag(page: Page, *corners: float) -> None:
    """Draw from one corner to another, in fractions of the canvas."""
    stage = page.locator("#compose-canvas .stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    left, top, right, bottom = corners
    page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=5)
    page.mouse.up()


def draw_boxes(page: Page) -> None:
    """A box for milo on the left, one for rex on the right."""
    drag(page, 0.04, 0.1, 0.47, 0.95)
    page.locator("#compose-canvas .choice button").first.click()
    drag(page, 0.53, 0.1, 0.96, 0.95)
    expect(page.locator("#compose-canvas [aria-label^='Box ']")).to_have_count(2)


def test_a_newcomer_composes_two_sample_concepts_and_draws_them_again(watched: Watched, address: str, tmp_path: Path):
    page = watched.open(address, viewport={"width": 1440, "height": 1000})
    page.locator("#compose-samples").click()
    expect(page.locator("#compose-prompt textarea")).to_have_value("a <milo> and a <rex>", timeout=PATIENCE)
    draw_boxes(page)
    before = page.locator("#compose-canvas [aria-label^='Box A']").get_attribute("aria-label")
    page.locator("#compose-canvas [aria-label^='Box A']").focus()
    page.keyboard.press("ArrowRight")
    moved = page.locator("#compose-canvas [aria-label^='Box A']")
    expect(moved).not_to_have_attribute("aria-label", before or "")
    page.locator("#compose-go").click()
    expect(page.locator("#compose-result .pair img.over")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#compose-result table.leak td.own")).to_have_count(2, timeout=PATIENCE)
    slider = page.locator("#compose-result .beside input")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator("#compose-result .beside")).to_have_attribute("style", re.compile("--cut: ?0%"))

    picture = page.locator("#compose-result .pictures a").first.get_attribute("href") or ""
    kept = tmp_path / "kept.png"
    kept.write_bytes(httpx.get(f"{address}{picture}").content)
    again = watched.open(address, viewport={"width": 1440, "height": 1000})
    again.get_by_text("Draw again from a picture").click()
    again.locator("#compose-restore input[type=file]").set_input_files(kept)
    expect(again.locator("#compose-prompt textarea")).to_have_value("a <milo> and a <rex>")
    expect(again.locator("#compose-canvas [aria-label^='Box ']")).to_have_count(2)
    expect(again.locator("#compose-canvas [aria-label^='Box A']")).to_have_attribute(
        "aria-label", moved.get_attribute("aria-label") or ""
    )


def test_a_mistake_is_told_and_the_button_is_of_use_again(watched: Watched, address: str):
    page = watched.open(address, viewport={"width": 1440, "height": 1000})
    page.locator("#compose-prompt textarea").fill("a <nobody>")
    go = page.locator("#compose-go")
    go.click()
    expect(page.locator(".toast-body").first).to_contain_text("'nobody'", timeout=60_000)
    expect(go).to_be_enabled()
    expect(go).to_have_text("Compose")


def test_a_training_is_followed_found_again_after_a_reload_and_cancelled(watched: Watched, address: str):
    page = watched.open(address, viewport={"width": 1440, "height": 1000})
    to(page, "Train")
    page.locator("#train-sample input").click()
    page.get_by_role("option", name="bolt", exact=True).click()
    expect(page.locator("#train-pictures table.dataset tbody tr")).to_have_count(5, timeout=60_000)
    page.get_by_role("button", name="Next: the concept").click()
    expect(page.locator("#train-name input, #train-name textarea")).to_have_value("bolt")
    page.get_by_role("button", name="Next: the recipe").click()
    page.get_by_label("Quick").check()
    page.get_by_role("button", name="Next: check").click()
    expect(page.locator("#train-checks .checks")).to_be_visible(timeout=60_000)
    assert page.locator("#train-checks .bad").count() == 0
    assert "--preset quick" in page.locator("#train-command textarea").input_value()
    page.locator("#train-start").click()
    expect(page.locator("#job-view h2")).to_contain_text("Train bolt", timeout=60_000)
    expect(page.locator("#job-view .chart")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#job-view table.previews img").first).to_be_visible(timeout=PATIENCE)
    first = page.locator("#job-view .chart figcaption").inner_text()
    expect(page.locator("#job-view .chart figcaption")).not_to_have_text(first, timeout=PATIENCE)

    page.reload()
    expect(page.locator("#job-view h2")).to_contain_text("Train bolt", timeout=60_000)
    expect(page.locator("#strip .state-running")).to_be_visible(timeout=60_000)
    second = watched.open(address)
    expect(second.locator("#strip .what")).to_contain_text("Train bolt", timeout=60_000)
    page.locator("#job-cancel").click()
    expect(page.locator("#job-view .state-cancelled")).to_be_visible(timeout=60_000)
    expect(second.locator("#strip .state-cancelled")).to_be_visible(timeout=10_000)


def test_a_picture_that_is_taken_away_again_is_not_in_the_set(watched: Watched, address: str):
    page = watched.open(f"{address}/?view=train", viewport={"width": 1440, "height": 1000})
    rows = page.locator("#train-pictures table.dataset tbody tr")
    page.locator("#train-files input[type=file]").set_input_files(sorted(sample_folder("milo").glob("*.png"))[:3])
    expect(rows).to_have_count(3, timeout=60_000)
    for left in (2, 1):
        page.locator("#train-files").get_by_role("button", name="Remove").first.click()
        expect(rows).to_have_count(left, timeout=60_000)
    page.locator("#train-files").get_by_role("button", name="Clear").click()
    expect(page.locator("#train-pictures")).to_contain_text("No pictures yet", timeout=60_000)


def test_samples_are_scored(watched: Watched, address: str):
    page = watched.open(f"{address}/?view=evaluate", viewport={"width": 1440, "height": 1000})
    samples = page.locator("#evaluate-samples")
    chosen = page.locator("#evaluate-names input:checked")
    expect(page.locator("#evaluate-samples:visible, #evaluate-names input")).not_to_have_count(0, timeout=30_000)
    if samples.is_visible():
        samples.click()
    else:
        for name in ("milo", "rex"):
            page.locator("#evaluate-names").get_by_text(name, exact=True).click()
    expect(chosen).to_have_count(2, timeout=60_000)
    page.locator("#evaluate-question").get_by_text("my own prompts").click()
    page.locator("#evaluate-prompts textarea").fill("a <milo> and a <rex> on grass")
    page.get_by_label("number input for Pictures of each prompt").fill("1")
    page.get_by_text("More", exact=True).locator("visible=true").click()
    page.get_by_label("Steps").locator("visible=true").fill("4")
    page.locator("#evaluate-go").click()
    expect(page.locator("#evaluation table").first).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#evaluation tbody tr").first).to_contain_text("auto", timeout=PATIENCE)


def test_a_smaller_copy_stands_among_the_cards_when_its_job_is_done(watched: Watched, address: str):
    page = watched.open(f"{address}/?view=library", viewport={"width": 1440, "height": 1000})
    page.locator(".cards [data-name=milo]").click()
    page.get_by_text("Make a smaller copy").click(timeout=60_000)
    name = page.get_by_label("Name of the copy")
    expect(name).to_have_value("milo-small", timeout=60_000)  # a field that opens is given its value a moment later
    name.fill("milo-two")
    page.get_by_label("number input for Highest rank of a layer").fill("2")
    page.get_by_role("button", name="Make the copy").click()
    expect(page.locator("#library-said")).to_contain_text("makes milo-two", timeout=60_000)
    expect(page.locator(".cards [data-name=milo-two]")).to_be_visible(timeout=PATIENCE)


def test_a_concept_is_deleted_and_comes_back(watched: Watched, address: str):
    page = watched.open(f"{address}/?view=library", viewport={"width": 1440, "height": 1000})
    page.locator(".cards [data-name=neon]").click()
    page.get_by_text("Rename or throw away").click(timeout=60_000)
    page.locator("#concept-trash").click()
    expect(page.locator(".cards [data-name=neon]")).to_have_count(0, timeout=60_000)
    page.locator("#library-trash").get_by_text("Trash", exact=True).click()
    page.locator("#library-trash").get_by_role("button", name="Restore", exact=True).click()
    expect(page.locator(".cards [data-name=neon]")).to_be_visible(timeout=60_000)


def test_keys_are_listed_and_lead_to_pages_but_not_while_one_types(watched: Watched, address: str):
    page = watched.open(address)
    prompt = page.locator("#compose-prompt textarea")
    prompt.fill("")
    prompt.press_sequentially("?2")
    expect(prompt).to_have_value("?2")
    prompt.blur()
    expect(page.locator("#keys")).to_be_hidden()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.locator(".masthead .keys").click()
    page.locator("#keys").get_by_role("button", name="Close").click()
    page.keyboard.press("2")
    expect(page.get_by_role("tab", selected=True).first).to_contain_text("Train")


@pytest.mark.parametrize("width", [1440, 1024, 390])
@pytest.mark.parametrize("view", ["compose", "train", "stylize", "library", "evaluate", "jobs"])
def test_every_page_fits_its_width_and_names_its_pictures(watched: Watched, address: str, view: str, width: int):
    page = watched.open(f"{address}/?view={view}", viewport={"width": width, "height": 900})
    expect(page.get_by_role("tab", selected=True).first).to_contain_text(view.capitalize(), timeout=30_000)
    page.wait_for_timeout(1500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("img:not([alt]), img[alt='']:visible").count() == 0
