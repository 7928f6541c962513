"""What all pages share: the job that is looked at, and how what they show follows what happens."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from studio.errors import StudioError, named
from studio.ui.fragments import message
from studio.ui.service import Service

log = logging.getLogger("studio.server")
P = ParamSpec("P")
R = TypeVar("R")
Render = Callable[..., Any]
SOON_MILLISECONDS = 40


# Inputs often change together, and each answer costs a slow browser a tenth of a second: all of them get one.
_SOON = f"""() => {{
  clearTimeout(window.studioSoon);
  window.studioSoon = setTimeout(() => document.querySelector('#refresh')?.click(), {SOON_MILLISECONDS});
}}"""


@dataclass
class _Watcher:
    component: Any
    inputs: Sequence[Any]
    render: Render


@dataclass
class Frame:
    """The pages' common ground. `job` holds the number of the job that the page Jobs shows, "" for none; `page` the
    name of the page that is to be shown, which handlers may set."""

    service: Service
    page: gr.Textbox
    job: gr.Textbox
    shows: list[tuple[str, Callable[[], Any], Sequence[Any]]] = field(default_factory=list)
    _watchers: list[_Watcher] = field(default_factory=list)

    def speaking(self, handler: Callable[P, R]) -> Callable[P, R]:
        """A handler whose refusals are shown as a message with problem and remedy, and whose faults are not silent."""

        @functools.wraps(handler)
        def shown(*arguments: P.args, **options: P.kwargs) -> R:
            try:
                return handler(*arguments, **options)
            except StudioError as error:
                text = self._plain(f"{error.problem} {error.remedy}".strip())
                raise gr.Error(text, duration=12, title="This cannot be done", print_exception=False) from None
            except gr.Error:
                raise
            except Exception as error:
                log.exception("A handler failed")
                text = self._plain(f"{named(error)} This is a fault of the studio; the server's log has more.")
                raise gr.Error(text, duration=None, title="Something went wrong", print_exception=False) from None

        return shown

    def _plain(self, text: str) -> str:
        return escape(self.service.without_places(text))

    def watch(self, component: Any, render: Render, *inputs: Any) -> None:
        """Let `component` show `render(*values of inputs)`, looked at anew whenever jobs or inputs change."""
        self._watchers.append(_Watcher(component, inputs, render))

    def on_show(self, page: str, fill: Callable[[], Any], outputs: Sequence[Any]) -> None:
        """Let `fill` set `outputs` whenever `page` comes into sight."""
        self.shows.append((page, fill, outputs))

    def follow(self, arrival: Any) -> None:
        """Keep everything watched up to date, from `arrival` on: the page asks what it shows when it hears that jobs
        changed."""
        inputs = [one for watcher in self._watchers for one in watcher.inputs]
        outputs = [watcher.component for watcher in self._watchers]
        seen, asking = gr.State({}), gr.Button("Refresh", visible="hidden", elem_id="refresh")
        gr.on(
            [asking.click, arrival], self._tick, [seen, *inputs], [seen, *outputs],
            queue=False, show_progress="hidden", api_visibility="private", trigger_mode="always_last",
        )  # fmt: skip
        gr.on([one.change for one in inputs], None, None, None, js=_SOON)

    def _tick(self, seen: dict[str, Any], *values: Any) -> list[Any]:
        version = (changes(self.service), values)
        if seen.get("version") == version:
            return [gr.skip()] * (1 + len(self._watchers))
        shown, found, at = dict(seen.get("shown", {})), [], 0
        for n, watcher in enumerate(self._watchers):
            given = values[at : at + len(watcher.inputs)]
            at += len(watcher.inputs)
            value = self._rendered(watcher, given)
            found.append(gr.skip() if n in shown and shown[n] == value else value)
            shown[n] = value
        return [{"version": version, "shown": shown}, *found]

    def _rendered(self, watcher: _Watcher, given: Sequence[Any]) -> Any:
        """What a part shows for `given`; one that fails takes only itself with it, and stays as it is if it is no
        text."""
        try:
            return watcher.render(*given)
        except Exception as error:
            log.exception("A part of the page failed")
            if not isinstance(watcher.component, gr.HTML):
                return gr.skip()
            told = self.service.without_places(named(error))
            return message(told, "This is a fault of the studio; the server's log has more.", "bad")


def changes(service: Service) -> tuple[int, int]:
    """What is another value after every write to the jobs, whoever wrote."""
    try:
        about = Path(f"{service.store.file}-wal").stat()
    except OSError:
        return 0, 0
    return about.st_mtime_ns, about.st_size
