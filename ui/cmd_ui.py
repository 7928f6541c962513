"""`studio ui`: the web studio, for this machine alone unless one says otherwise."""

import os
from typing import Annotated

import typer

from studio.errors import UsageError
from studio.home import Home, ensure_writable
from studio.ui.options import HomeOption
from studio.ui.quick_gradio import WithoutStubs

PASSWORD = "STUDIO_PASSWORD"
_OURS = ("127.0.0.1", "localhost", "::1")


def ui(
    host: Annotated[str, typer.Option(help="Where to listen. Others than this machine's own need a password.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 7860, or the next that is free.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name by which the server may be called. Can be repeated.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the pages.")] = True,
    home: HomeOption = None,
) -> None:
    """Train, compose, stylize, keep and score in the browser. Jobs go on when this ends; Ctrl-C ends it.

    $STUDIO_PASSWORD, where it is set, is asked of everyone who comes.
    """
    password = os.environ.get(PASSWORD) or None
    if host not in _OURS and password is None:
        raise UsageError(
            f"--host {host} lets others in, and there is no password.",
            f"Set one in ${PASSWORD}, or reach this machine by ssh -L 7860:127.0.0.1:7860 instead.",
        )
    state = Home.resolve(home)
    ensure_writable(state.root)
    typer.echo("Starting the pages ...", err=True)
    WithoutStubs.begin()
    from studio.ui.app import serve

    def tell(address: str) -> None:
        typer.echo(f"The studio is at {address.rstrip('/')}  (Ctrl-C ends the pages; jobs go on)")

    serve(state, host, port, password, tuple(allow_host or ()), tell=tell, open_browser=browser and host in _OURS)
