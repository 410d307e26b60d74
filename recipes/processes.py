"""Processes that do not outlive the one they work for."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Called in a process of `multiprocessing`: ends it as soon as its parent is gone, however that ended.

    Without it, a process whose parent got SIGKILL waits for work for ever.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
