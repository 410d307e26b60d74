"""The claim: a launch whose run another launch has taken over stops before it writes.

Answers `save_checkpoint_and_time`, before the save. `Validation` and `Metrics` ask it before they write. The
claim is made in `tools/runs/run_folder.py`, when a launch is prepared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from emma.base.errors import UserError
from emma.tools.runs.run_folder import Launch, RunFolder

__all__ = ["Claim"]


class Claim:
    """Whether `writer.json` still names this launch."""

    def __init__(self, run: RunFolder, launch: Launch) -> None:
        self.run, self.launch = run, launch

    def save_checkpoint_and_time(
        self, original: Callable[..., Any], iteration: int, *rest: Any, **named: Any
    ) -> Any:
        """Saves only while the claim is held."""
        self.check(iteration)
        return original(iteration, *rest, **named)

    def check(self, iteration: int) -> None:
        """Stops all ranks if the claim is lost; a collective.

        Raises:
            UserError: another launch has claimed the run.
        """
        held = torch.ones(1, dtype=torch.int32, device="cuda")
        if torch.distributed.get_rank() == 0:
            held.fill_(int(self.held()))
        torch.distributed.broadcast(held, 0)
        if not held.item():
            raise self.lost(iteration)

    def held(self) -> bool:
        """What this rank reads in the run folder now."""
        return self.run.holds_claim(self.launch)

    def lost(self, iteration: int) -> UserError:
        """The error that ends a launch without its claim."""
        return UserError(
            f"{self.run.writer_file} names another launch, which took this run over. "
            f"Nothing is written at step {iteration}; this launch stops"
        )
