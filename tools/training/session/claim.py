"""The claim: a launch whose run another launch has taken over stops, all ranks together, before it writes.

Answers `save_checkpoint_and_time`, before the save. `Validation` and `Metrics` ask it before they write. That it cannot
write even where it does not ask is the work of `tools/runs/fence.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from emma.tools.runs.fence import DisplacedError, Fence

__all__ = ["Claim"]


class Claim:
    """Whether the run is still this launch's."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence

    def save_checkpoint_and_time(
        self, original: Callable[..., Any], iteration: int, *rest: Any, **named: Any
    ) -> Any:
        """Saves only while the claim is held."""
        self.check(iteration)
        return original(iteration, *rest, **named)

    def check(self, iteration: int) -> None:
        """Stops all ranks if the claim is lost; a collective.

        Raises:
            DisplacedError: another launch has claimed the run.
        """
        held = torch.ones(1, dtype=torch.int32, device="cuda")
        if torch.distributed.get_rank() == 0:
            held.fill_(int(self.held()))
        torch.distributed.broadcast(held, 0)
        if not held.item():
            raise self.lost(iteration)

    def held(self) -> bool:
        """What this rank reads in the run folder now."""
        return self.fence.held()

    def lost(self, iteration: int) -> DisplacedError:
        """The error that ends a launch without its claim."""
        return self.fence.displaced(f" at step {iteration}")
