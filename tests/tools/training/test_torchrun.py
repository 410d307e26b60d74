"""The ranks' time to save: after a signal, torchrun waits longer than its own 30 seconds, with every torch."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SAVES_SLOWLY = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(35)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(600)
"""


@pytest.mark.slow
def test_a_rank_that_needs_35_seconds_to_save_is_not_killed(tmp_path: Path) -> None:
    launcher = subprocess.Popen(
        [
            *(
                sys.executable,
                "-P",
                "-m",
                "emma.tools.training.torchrun",
                "--standalone",
                "--nproc-per-node=2",
            ),
            *("--no-python", sys.executable, "-c", SAVES_SLOWLY, str(tmp_path)),
        ]
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "started").exists():
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        launcher.send_signal(signal.SIGTERM)
        launcher.wait(timeout=120)
    finally:
        launcher.kill()
    assert (tmp_path / "saved").exists()
