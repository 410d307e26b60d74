"""A rank that has lost its run ends, whatever it is doing. Needs no torch."""

from __future__ import annotations

import os
import sys
import threading
import time

from emma.tools.runs.fence import DisplacedError, Fence

__all__ = ["guard"]

SECONDS = 5.0
"""Between two looks of a rank at its claim."""


def guard(fence: Fence) -> threading.Thread:
    """Ends this process soon after its launch has lost the run, with exit code 3.

    The session looks before each write, but a rank may be importing, or wait in a collective for one that is gone.
    """

    def look() -> None:
        while True:
            time.sleep(SECONDS)
            try:
                held = fence.held()
            except OSError as error:
                print(f"warning: this rank cannot look at its claim: {error}", file=sys.stderr, flush=True)
                continue
            if not held:
                print(f"error: {fence.displaced()}", file=sys.stderr, flush=True)
                os._exit(DisplacedError.exit_code)

    thread = threading.Thread(target=look, daemon=True, name="guard")
    thread.start()
    return thread
