"""Pages of a real browser that are watched for what no page of the studio may do."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page

CHROMIUM = Path(os.environ.get("STUDIO_CHROMIUM", "/usr/bin/chromium"))
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)


class Watched:
    """Opens pages; `problems` says what any of them logged as an error or asked of another host."""

    def __init__(self, plain: BrowserContext) -> None:
        self.plain = plain
        self.pages: list[Page] = []
        self.problems: list[str] = []

    def open(self, url: str, **context: Any) -> Page:
        """A new page on `url`; what is said of its context, such as `has_touch=True`, gives it one of its own."""
        browser = self.plain.browser
        wanted: dict[str, Any] = {"viewport": {"width": 1024, "height": 900}} | context
        page = browser.new_page(**wanted) if context and browser else self.plain.new_page()
        self.pages.append(page)
        page.on("console", lambda said: self._note(said.type == "error", f"console: {said.text} {said.location}"))
        page.on("pageerror", lambda error: self._note(True, f"error: {error}"))
        page.on("request", lambda request: self._note(_elsewhere(request.url), f"request: {request.url[:200]}"))
        page.goto(url)
        return page

    def close(self) -> None:
        """Close every page."""
        for page in self.pages:
            page.close()

    def _note(self, wrong: bool, what: str) -> None:
        if wrong:
            self.problems.append(what)


def _elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about") and parts.hostname not in ("127.0.0.1", "localhost")
