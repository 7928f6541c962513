"""Draws docs/web.png, the page Compose after two sample concepts were composed: `make web-picture`."""

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]
from test_journey import PATIENCE, draw_boxes  # noqa: E402
from watched_pages import CHROMIUM, FLAGS  # noqa: E402
from web import served  # noqa: E402

WIDTH, HEIGHT = 1440, 1500


def compose(page: Page) -> None:
    """Bring the samples in, place both, and draw."""
    page.locator("#compose-samples").click()
    prompt = page.locator("#compose-prompt textarea")
    expect(prompt).to_have_value("a <milo> and a <rex>", timeout=PATIENCE)
    prompt.fill("a <milo> and a <rex> on grass")
    draw_boxes(page)
    page.locator("#compose-more").click()
    page.get_by_label("Seed", exact=True).fill("5")
    page.locator("#compose-more").get_by_role("button").first.click()
    page.locator("#compose-go").click()
    expect(page.locator("#compose-result table.leak")).to_be_visible(timeout=PATIENCE)
    page.wait_for_timeout(1500)


def main() -> None:
    """Write the picture."""
    home = tempfile.mkdtemp()
    with served(home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(address)
        compose(page)
        page.evaluate("window.scrollTo(0, 0)")
        file = ROOT / "docs" / "web.png"
        page.screenshot(path=file)
        browser.close()
    with Image.open(file) as picture:
        picture.convert("RGB").quantize(128).save(file, optimize=True)


if __name__ == "__main__":
    main()
