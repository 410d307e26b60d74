"""Requests by file: `save` in the run folder asks for one checkpoint, `stop` for a checkpoint and the end.

Answers `checkpoint_and_decide_exit`, around Megatron's function.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch
from megatron.training import get_args

from emma.tools.runs.run_folder import RunFolder

__all__ = ["SaveAndStop"]

_SAVE, _STOP = 1, 2


class SaveAndStop:
    """Looks for the files on rank 0 after each step."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def checkpoint_and_decide_exit(self, original: Callable[..., bool], *rest: Any, **named: Any) -> bool:
        """Does what the files ask for; returns whether the loop ends."""
        request = torch.zeros(1, dtype=torch.int32, device="cuda")
        if torch.distributed.get_rank() == 0:
            run = self.run
            request.fill_(_STOP if run.stop_request.exists() else _SAVE if run.save_request.exists() else 0)
        torch.distributed.broadcast(request, 0)
        if request.item() == _STOP:
            # As after a signal: a checkpoint, then the end of the loop.
            signal.raise_signal(signal.SIGTERM)
        if request.item() != _SAVE:
            return original(*rest, **named)
        args = get_args()
        interval, args.save_interval = args.save_interval, 1
        try:
            leaves = original(*rest, **named)
        finally:
            args.save_interval = interval
        if torch.distributed.get_rank() == 0:
            self.run.save_request.unlink(missing_ok=True)
        return leaves
