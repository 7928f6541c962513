"""`studio doctor`: looks at the machine and says what is wrong and how to mend it."""

from dataclasses import asdict

import typer
from rich.console import Console
from rich.text import Text

from studio.home import Home
from studio.ui.options import HomeOption, JsonOption, print_json

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check the installation, the device and the state folder. Exit code 1 where the studio could not work."""
    from studio.doctor import examine, works

    checks = examine(Home.resolve(home))
    if as_json:
        print_json({"works": works(checks), "checks": [asdict(check) for check in checks]})
    else:
        console = Console(soft_wrap=True, highlight=False)
        for check in checks:
            console.print(Text(f"{check.status:>4}  ", _STYLES[check.status]) + Text(f"{check.name}: {check.detail}"))
            if check.remedy:
                console.print(Text(f"      {check.remedy}"))
        console.print("The studio can work here." if works(checks) else "The studio cannot work here yet.")
    if not works(checks):
        raise typer.Exit(1)
