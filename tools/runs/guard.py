"""A thread of each rank: ends it when it has lost its run, whatever it is doing, and writes the heartbeat. Needs no
torch."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time

from emma.tools.runs.fence import DisplacedError, Fence
from emma.tools.runs.heartbeat import Heartbeat

__all__ = ["guard"]

SECONDS = 5.0
"""Between two looks of a rank at its claim, and two beats."""

STACKS = signal.SIGUSR1
"""Signal at which a rank prints the stack of each of its threads, and goes on."""


def guard(fence: Fence, heartbeat: Heartbeat) -> None:
    """Ends this process soon after its launch has lost the run, with exit code 3.

    The session looks before each write, but a rank may be importing, or wait in a collective for one that is gone.
    """
    faulthandler.register(STACKS, all_threads=True)

    def look() -> None:
        while True:
            try:
                # Looked at first: a rank that slept, as long as its node was lost, writes nothing when it wakes.
                if not fence.held():
                    print(f"error: {fence.displaced()}", file=sys.stderr, flush=True)
                    os._exit(DisplacedError.exit_code)
                heartbeat.write()
            except OSError as error:
                print(f"warning: this rank cannot look at its claim: {error}", file=sys.stderr, flush=True)
            time.sleep(SECONDS)

    threading.Thread(target=look, daemon=True, name="guard").start()
