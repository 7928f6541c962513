"""A machine that has other work to do computes more slowly, and not a hundred times so."""

import os
import subprocess
import sys

import pytest

from studio.threads import SPINS, wait_briefly

PASSES = """
import studio, time, torch
torch.set_num_threads({threads})
x = torch.randn(64, 64, 48)
began = time.perf_counter()
for _ in range(300):
    x.sin()
print(time.perf_counter() - began)
"""
BUSY = "print('', flush=True)\nwhile True: pass"


def seconds(threads: int) -> float:
    chosen = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    code = PASSES.format(threads=threads)
    return float(subprocess.run([sys.executable, "-c", code], env=chosen, capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is torch's on Linux")
def test_threads_beside_other_work_do_not_wait_for_each_other_in_vain():
    cores = len(os.sched_getaffinity(0))
    busy = [subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) for _ in range(cores)]
    try:
        for one in busy:
            assert one.stdout is not None
            one.stdout.readline()
        assert seconds(cores) < 10 * seconds(1)
    finally:
        for one in busy:
            one.kill()
            one.wait()


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_what_the_environment_says_stays(name: str, monkeypatch: pytest.MonkeyPatch):
    for one in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "active")
    wait_briefly()
    assert {key: value for key, value in os.environ.items() if key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} == {
        name: "active"
    }


def test_otherwise_they_wait_briefly(monkeypatch: pytest.MonkeyPatch):
    for one in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(one, raising=False)
    wait_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS
