"""The base's training script: what it keeps others from spoiling."""

from pathlib import Path

import pytest
from filelock import FileLock

from studio.errors import StudioError
from studio.trainers.picturebook import _alone_in


def test_a_second_team_is_kept_out_of_a_run(tmp_path: Path):
    with FileLock(tmp_path / "lock"), pytest.raises(StudioError, match="Another process"), _alone_in(tmp_path):
        pass
    with _alone_in(tmp_path):
        assert (tmp_path / "lock").exists()
