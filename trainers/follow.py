"""A process that trains along: `python -m studio.trainers.follow ORDER`, started by the one that leads."""

import json
import signal
import sys
from pathlib import Path

from torch import distributed

from studio.errors import StudioError
from studio.home import Home
from studio.trainers.dreambooth import follow
from studio.trainers.processes import Team, joined
from studio.trainers.recipe import build_recipe


def main(order: str) -> int:
    """Take part in the training that `order` (JSON) describes; returns the exit code."""
    told = json.loads(order)
    for kind in (signal.SIGINT, signal.SIGTERM):  # which a terminal sends to all: the leader decides
        signal.signal(kind, signal.SIG_IGN)
    team, device = Team(told["rank"], told["size"]), told["device"]
    store = distributed.FileStore(told["meeting"], team.size)
    with joined(store, team, device.partition(":")[0]):
        try:
            follow(build_recipe([told["recipe"]]), Home(Path(told["home"])), device, team)
        except StudioError:  # which the leader meets too, and tells
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
