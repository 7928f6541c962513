"""A real browser on pages of this process: whatever a page logs as an error or asks of another host fails its test."""

import os
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before anything imports gradio

import gradio as gr
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from watched_pages import CHROMIUM, FLAGS, Watched

from studio.ui.theme import StudioTheme

SHEET = Path(str(files("studio.assets"))) / "web" / "studio.css"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, started once; the tests that want it are skipped where there is none."""
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}: install it, or name it in STUDIO_CHROMIUM")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def plain(browser: Browser) -> BrowserContext:
    """What pages share unless they ask for another: above all the cache of gradio's many scripts."""
    return browser.new_context(viewport={"width": 1024, "height": 900})


@pytest.fixture
def watched(plain: BrowserContext) -> Iterator[Watched]:
    """`watched.open(url, **context)` opens a page; at the end the test fails if any did what it should not."""
    pages = Watched(plain)
    yield pages
    pages.close()
    assert not pages.problems, "\n".join(pages.problems)


@pytest.fixture
def page(watched: Watched) -> Page:
    """One watched page, still empty."""
    return watched.open("about:blank")


@pytest.fixture(scope="module")
def launch() -> Iterator[Callable[[gr.Blocks], str]]:
    """`launch(blocks)` serves the blocks with the studio's look on a port of its own, and returns the address."""
    served: list[gr.Blocks] = []

    def serve(blocks: gr.Blocks) -> str:
        served.append(blocks)
        _, url, _ = blocks.launch(
            prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, share=False, pwa=False,
            run_history=False, footer_links=[], theme=StudioTheme(), css_paths=SHEET,
        )  # fmt: skip
        return url

    yield serve
    for blocks in served:
        blocks.close(verbose=False)
