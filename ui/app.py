"""The web studio: one page with tabs, its API, and the server that keeps both to itself."""

import os
import threading
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from studio.errors import StudioError
from studio.home import Home, ensure_writable
from studio.ui import (
    api,
    fragments,
    page_compose,
    page_evaluate,
    page_jobs,
    page_library,
    page_stylize,
    page_train,
)
from studio.ui.frame import Frame, changes, log
from studio.ui.guard import LOOPBACK, Guard
from studio.ui.page_parts import chosen_number, private
from studio.ui.service import Service
from studio.ui.theme import StudioTheme
from studio.ui.thumbs import ROUTE, Thumbs

PAGES: dict[str, Callable[[Frame], Any]] = {
    "compose": page_compose.build, "train": page_train.build, "stylize": page_stylize.build,
    "library": page_library.build, "evaluate": page_evaluate.build, "jobs": page_jobs.build,
}  # fmt: skip
MOST_WAITING = 256
KEPT = ("library", "jobs", "jobs.sqlite", "cache", "datasets", "outputs")  # of the home; nothing is handed out by path
QUEUE_SECONDS = 0.05  # between two looks into Gradio's queue, through which everything goes that may be refused
WAKE_SECONDS = 5.0  # between two looks whether jobs wait and nobody works
# Asking for a few bytes costs nothing, and unlike a stream takes none of the six connections that a browser allows all
# tabs of a server together.
_LISTEN = """() => {
  let last = null;
  const ask = async () => {
    try {
      const now = await (await fetch('/studio/changes')).text();
      if (now !== last) { last = now; document.querySelector('#refresh')?.click(); }
    } catch { /* the server is away; it may come back */ }
    setTimeout(ask, document.hidden ? 4000 : 700);
  };
  ask();
}"""
# The address keeps page and job, so that a reload or a second tab lands where the first was. ("page" is Gradio's own.)
_REMEMBER = """(page, job) => {
  const query = new URLSearchParams(window.location.search);
  query.set('view', page);
  job ? query.set('job', job) : query.delete('job');
  window.history.replaceState(null, '', '?' + query);
}"""


def build(service: Service) -> gr.Blocks:
    """The pages and the API of `service`."""
    with gr.Blocks(title="concept studio", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        gr.HTML(_text("masthead.html"))
        strip = gr.HTML(elem_id="strip")
        job, page = gr.Textbox(visible=False), gr.Textbox("compose", visible=False)
        frame = Frame(service, page, job)
        frame.watch(strip, lambda: fragments.strip(service))
        with gr.Tabs(elem_id="pages") as tabs:
            shown: dict[str, gr.Tab] = {}
            for name, build_page in PAGES.items():
                with gr.Tab(name.capitalize(), id=name) as shown[name]:
                    build_page(frame)
        for name, tab in shown.items():
            tab.select(lambda name=name: name, None, page, **private())
        for name, fill, outputs in frame.shows:
            gr.on([shown[name].select, demo.load], fill, None, list(outputs), **private())
        page.change(lambda name: gr.Tabs(selected=name) if name in PAGES else gr.skip(), page, tabs, **private())
        gr.on([page.change, job.change], None, [page, job], None, js=_REMEMBER)
        demo.load(_arrive, None, [tabs, page, job], **private())
        demo.load(service.get_ready, None, None, **private())
        demo.load(None, None, None, js=_LISTEN)
        demo.load(None, None, None, js=_text("keys.js"))
        frame.follow(demo.load)
        api.offer(frame)
    return demo


def _arrive(request: gr.Request) -> tuple[Any, Any, str]:
    """The page and the job that the address names."""
    number = chosen_number(request.query_params.get("job"))
    job, page = "" if number is None else str(number), request.query_params.get("view", "")
    if page not in PAGES:  # none is named: the user may already have gone to another than the first
        return gr.skip(), gr.skip(), job
    return gr.Tabs(selected=page), page, job


def serve(
    home: Home,
    host: str = "127.0.0.1",
    port: int | None = None,
    password: str | None = None,
    allow_hosts: tuple[str, ...] = (),
    *,
    tell: Callable[[str], None],
    open_browser: bool = False,
) -> None:
    """Serve the pages of `home` for as long as this process lives, and `tell` their address.

    Raises UsageError for a host that others reach without a password, StudioError where the port is taken.
    """
    run = home.root / "run"  # Gradio hands out what lies in the working directory: it is to be empty
    ensure_writable(run)
    _settle_environment(home)
    os.chdir(run)
    service = Service(home)
    service.wake()
    demo = build(service)
    demo.queue(max_size=MOST_WAITING, default_concurrency_limit=8)
    # A thousandth by Gradio's own, which takes 9 % of a core from an idle server.
    demo._queue.sleep_when_free = demo._queue.progress_update_sleep_when_free = QUEUE_SECONDS
    guard = Middleware(Guard, hosts=(*LOOPBACK, host.strip("[]"), *allow_hosts), password=password)
    try:
        _, address, _ = demo.launch(
            server_name=host, server_port=port, share=False, quiet=True, inbrowser=open_browser,
            prevent_thread_lock=True, show_error=False, allowed_paths=[],
            blocked_paths=[str(home.root / name) for name in KEPT],
            max_file_size="1gb", strict_cors=True, ssr_mode=False, run_history=False, enable_monitoring=False,
            footer_links=["settings"], mcp_server=False, pwa=False, theme=StudioTheme(), css=_style(),
            app_kwargs={"middleware": [guard], "routes": _routes(service), "docs_url": None, "redoc_url": None,
                        "openapi_url": None},
        )  # fmt: skip
    except OSError as error:
        raise StudioError(f"The pages cannot be served: {error}.", "Choose another port with --port.") from error
    tell(address)
    threading.Thread(target=_get_ready, daemon=True).start()
    stand_by(service)


def stand_by(service: Service) -> NoReturn:
    """Look after the jobs for ever; a look that fails (a locked file, no more processes) ends no server."""
    while True:
        time.sleep(WAKE_SECONDS)
        try:
            service.wake()
        except Exception:
            log.exception("The jobs could not be looked after")


def _get_ready() -> None:
    """Import what the first request would otherwise wait for, once the first page is out."""
    import studio.adapters
    import studio.trainers.planning  # noqa: F401


def _settle_environment(home: Home) -> None:
    """Gradio reads its settings from the environment too: what would share or open more is taken out of it."""
    for name in ("GRADIO_SHARE", "GRADIO_ALLOWED_PATHS", "GRADIO_MCP_SERVER", "GRADIO_ROOT_PATH", "GRADIO_SSR_MODE"):
        os.environ.pop(name, None)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(home.root / "gradio-cache")


def _style() -> str:
    return "".join(_text(f"{name}.css") for name in ("studio", "pages", "library"))


def _text(name: str) -> str:
    return (Path(str(files("studio.assets"))) / "web" / name).read_text(encoding="utf-8")


def _routes(service: Service) -> list[Route]:
    """Pictures, by the number of their job; thumbnails, by names that tell nothing."""
    thumbs = Thumbs(service.home)

    def thumb(request: Request) -> Response:
        file = thumbs.file(request.path_params["name"])
        headers = {"cache-control": "private, max-age=86400, immutable"}
        return _missing() if file is None else FileResponse(file, media_type="image/webp", headers=headers)

    def picture(request: Request) -> Response:
        job, number = chosen_number(request.path_params["job"]), chosen_number(request.path_params["number"])
        if job is None or number is None:
            return _missing()
        try:
            file = Path(service.store.job(job).result["pictures"][number]["path"])
        except (StudioError, LookupError, TypeError):
            return _missing()
        if file.suffix.lower() != ".png" or not file.is_file():
            return _missing()
        saved = file.name if "download" in request.query_params else None
        return FileResponse(file, media_type="image/png", filename=saved)

    async def told(request: Request) -> Response:
        return PlainTextResponse("{}-{}".format(*changes(service)), headers={"cache-control": "no-store"})

    return [
        Route(f"{ROUTE}{{name}}", thumb),
        Route("/studio/pictures/{job}/{number}", picture),
        Route("/studio/changes", told),
    ]


def _missing() -> Response:
    return PlainTextResponse("There is no such picture.", 404)
