"""How the threads of one process get along with other processes."""

import os


def share_processor() -> None:
    """Let torch's threads sleep while they wait for each other; by default they spin, and beside another busy process a
    drawing of two threads then takes ten times as long. To be called before torch is imported; what the user set in
    $OMP_WAIT_POLICY stays."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
