"""Keeps torch's threads from starving one another where the machine has other work to do.

On Linux torch computes with libgomp, whose threads wait for each other by spinning 300,000 times before they give their
core away: milliseconds, after every small operation. On a machine of its own nobody notices; beside as many busy
processes as there are cores the threads take the cores from the one they wait for, and a picture of a second takes
minutes.
"""

import os

SPINS = "3000"  # 10,000 already doubled the time beside two busy processes; 1,000 gained nothing over this
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Let threads that wait give their core away soon, unless the environment says how; before torch is imported."""
    if not any(name in os.environ for name in _CHOICES):
        os.environ[_CHOICES[0]] = SPINS
