"""Which process it is: a number alone is given away again by the system."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_TOLERANCE = 2.0  # seconds: boot times are told anew by the clock, which may be set


@dataclass(frozen=True)
class Identity:
    """A process by its number, the time at which it began and the boot in which it lives."""

    pid: int
    born: float
    boot: str

    @classmethod
    def of(cls, pid: int | None = None) -> "Identity":
        """That of process `pid`, this one by default; raises psutil.NoSuchProcess."""
        process = psutil.Process(pid if pid is not None else os.getpid())
        return cls(process.pid, process.create_time(), boot_id())

    def process(self) -> psutil.Process | None:
        """The process while it lives: never one that got its number later."""
        if self.boot != boot_id():
            return None
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.born) < _TOLERANCE
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process() is not None

    def kill(self) -> None:
        """End it and what it started, at once; nothing happens if it is gone."""
        process = self.process()
        if process is None:
            return
        try:
            for one in [*process.children(recursive=True), process]:
                one.kill()
        except psutil.NoSuchProcess:
            return


@cache
def boot_id() -> str:
    """What tells this boot of the machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"
