"""Commands to type next: lines that run this very studio, on this very home, from the folder of the moment."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from studio.ui.story import Command


def command_maker(home_option: Path | None) -> Callable[[str], str]:
    """Turns the words of a command into a line that works here: an environment's `studio` may not be on the PATH."""
    own = shutil.which("studio", path=str(Path(sys.executable).parent))
    program = "studio"
    if own is not None and shutil.which("studio") != own:
        program = os.path.relpath(own) if Path(own).is_relative_to(Path.cwd()) else own
    program = f'"{program}"' if " " in program else program
    suffix = f' --home "{home_option}"' if home_option else ""
    return lambda words: f"{program} {words}{suffix}"


def next_commands(first: str, second: str, command: Callable[[str], str]) -> tuple[Command, ...]:
    """What to try after a demo that learned the concepts `first` and `second`."""
    yours = "train-concept PATH/TO/YOUR/PICTURES --name NAME --class cat"
    return (
        Command(command(f'generate "a <{first}> under the stars, hatched style" --count 4'), f"{first} somewhere else"),
        Command(
            command(f'generate "a <{second}> on the left and a red car on the right on grass" --count 4'),
            f"{second}, with something that nobody trained",
        ),
        Command(
            command(
                f'compose "a <{first}> and a <{second}> at night" --box {first}=0.5,0,1,1 --box {second}=0,0,0.5,1'
            ),
            "Both together, each where you say",
        ),
        Command(command(yours), "A concept from a folder of your own drawings"),
        Command(command(f"{yours} --base sdxl"), "From photographs, on Stable Diffusion XL; this wants a GPU"),
        Command(command("library list"), "What has been learned so far"),
    )
