"""Which process it is: a number alone is given away again by the system."""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_TOLERANCE = 2.0  # seconds, of a time by the clock: it is set a little now and then
_BY_CLOCK = 1e9  # seconds: no machine is up for so long, while the clock has been past it since 2001


@dataclass(frozen=True)
class Identity:
    """A process by its number, when it was `born` and the boot in which it lives.

    `born` is in seconds since the boot; where the system does not tell them, and where an older studio wrote it down,
    in seconds since 1970.
    """

    pid: int
    born: float
    boot: str

    @classmethod
    def of(cls, pid: int | None = None) -> "Identity":
        """That of process `pid`, this one by default; raises psutil.NoSuchProcess."""
        process = psutil.Process(pid if pid is not None else os.getpid())
        return cls(process.pid, _born(process), boot_id())

    def process(self) -> psutil.Process | None:
        """The process while it lives: never one that got its number later."""
        if self.boot != boot_id():
            return None
        try:
            found = psutil.Process(self.pid)
            if self.born > _BY_CLOCK:
                same = abs(found.create_time() - self.born) < _TOLERANCE
            else:
                same = _born(found) == self.born
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


def _born(process: psutil.Process) -> float:
    if not psutil.LINUX:
        return process.create_time()
    try:
        told = Path(f"/proc/{process.pid}/stat").read_bytes()
    except OSError as error:
        raise psutil.NoSuchProcess(process.pid) from error
    after_name = told.rpartition(b")")[2].split()  # a name may hold anything, its end is the last of these
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


@cache
def boot_id() -> str:
    """What tells this boot of the machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"
