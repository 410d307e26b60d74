"""How a launch ended: `state.json` in its logs, read by the launcher and by the next link of a chain.

Answers no seam: the worker calls it when `pretrain` has returned.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from emma.base.files import write_json
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import complete_steps
from emma.tools.runs.decision import DECISION, Decision
from emma.tools.runs.run_folder import GUARDED, Launch, RunFolder
from emma.tools.runs.safety import Rewind, record_skip
from emma.tools.runs.set_aside import Damaged, set_aside, set_asides

__all__ = ["record_damage", "record_end", "record_rewind"]


def record_rewind(recipe: Recipe, run: RunFolder, launch: Launch, rewind: Rewind) -> None:
    """Records the step to skip and asks the launcher for another launch.

    Raises:
        UserError: the run has gone back as often as the recipe allows (on rank 0, whose failure ends the
            others).
    """
    if torch.distributed.get_rank() == 0:
        record_skip(run.skipped_file, rewind, run.fence(launch), recipe.safety.rewinds)
        state = {"writer": launch.writer, "state": "rewind", "step": rewind.step, "reason": rewind.reason}
        write_json(launch.state_file, state)
    torch.distributed.barrier()


def record_damage(run: RunFolder, launch: Launch, damaged: Damaged) -> None:
    """Sets the damaged checkpoint aside, and asks the launcher for another launch.

    Raises:
        DisplacedError: another launch has taken the run over (on rank 0, whose failure ends the others).
    """
    if torch.distributed.get_rank() == 0:
        fence = run.fence(launch)
        record = set_aside(run.checkpoints, run.checkpoints_log, damaged.step, damaged.reason, "files", fence)
        print(record, flush=True)
        state = {"writer": launch.writer, "state": "set aside", **asdict(record), "reason": str(record)}
        write_json(launch.state_file, state)
    torch.distributed.barrier()


def record_end(recipe: Recipe, run: RunFolder, launch: Launch, decision: Decision | None = None) -> None:
    """Records whether the run has finished or stopped, and at which step; `decision` is why its guard ended it."""
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0 and run.holds_claim(launch):
        reached = max(complete_steps(run.checkpoints), default=0)
        state = "finished" if reached >= recipe.schedule.steps else "stopped"
        if decision is not None and reached == decision.step:
            # Not before its checkpoint is there: a launch that dies in between looks again.
            run.fence(launch).write_json(run.path / DECISION, decision.to_dict())
            state = GUARDED
        aside = [asdict(record) for record in set_asides(run.checkpoints).values()]
        more = {"set_aside": aside} if aside else {}
        write_json(launch.state_file, {"writer": launch.writer, "state": state, "step": reached, **more})
