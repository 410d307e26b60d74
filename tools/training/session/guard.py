"""The guard: compares each validation with the base's, document by document, and ends the launch if the recipe says so.

Answers `train` (before the loop: reads the base's losses) and `checkpoint_and_decide_exit` (around Megatron's function:
leaves the loop). `Validation` calls `look` on every rank. What counts as forgotten is in `tools/runs/forgetting.py`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.training import get_args, training

from emma.base.errors import UserError
from emma.base.files import read_json, sha256_file
from emma.recipes.schema import Recipe
from emma.tools.runs.decision import Decision
from emma.tools.runs.fence import Fence
from emma.tools.runs.forgetting import FEWEST_DOCUMENTS, Look, level_of, look_at
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.session.data import Datasets

__all__ = ["Guard"]


class Guard:
    """Acts where the recipe has a `guard`. `decision`, the same on all ranks, is why this launch ends, if it does."""

    def __init__(self, recipe: Recipe, run: RunFolder, datasets: Datasets, fence: Fence) -> None:
        self.recipe, self.run, self.datasets, self.fence = recipe, run, datasets, fence
        self.decision: Decision | None = None
        self._base: dict[str, np.ndarray] | None = None
        self._before = 0

    def train(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Reads the base's losses, then trains.

        Raises:
            UserError: there are none, or of other documents.
        """
        guard, iteration = self.recipe.guard, get_args().iteration
        if guard is not None and (iteration > 0 or guard.base is not None):
            file = RunFolder(guard.base or self.run.path).guard_base_file
            self._base = self._read(file)
            looks = [row["step"] for row in read_metrics(self.run.metrics_file)[1] if row.get("guard")]
            self._before = max((step for step in looks if step <= iteration), default=0)
        return original(*values, **named)

    def look(self, iteration: int) -> list[Look]:
        """Compares the evaluation that has just been made; a collective.

        Returns:
            A look at each guarded group, on all ranks; none at step 0, where the base itself is measured.

        Raises:
            UserError: a group has too few documents.
        """
        guard, evaluator = self.recipe.guard, self.datasets.evaluator
        if guard is None or evaluator is None:
            return []
        # Only the last pipeline stage has them.
        holder: list[Any] = [None]
        if training.is_last_rank():
            holder = [{name: evaluator.documents[name] for name in guard.groups}]
        torch.distributed.broadcast_object_list(holder, torch.distributed.get_world_size() - 1)
        documents: dict[str, np.ndarray] = holder[0]
        if self._base is None:
            self._write(documents)
            return []
        steps = self.recipe.schedule.steps
        level = level_of(iteration, self._before, steps, len(guard.groups), guard.false_alarms)
        looks = [
            look_at(iteration, name, bound, self._base[name], documents[name], level)
            for name, bound in guard.groups.items()
        ]
        self._before = iteration
        forgotten = [look for look in looks if look.forgotten]
        if forgotten and guard.action != "warn" and guard.from_step <= iteration < steps:
            self.decision = Decision(iteration, guard.action, forgotten)
        return looks

    def checkpoint_and_decide_exit(self, original: Callable[..., bool], *rest: Any, **named: Any) -> bool:
        """Leaves the loop with a checkpoint once the launch is to end, as after a signal."""
        if self.decision is not None:
            signal.raise_signal(signal.SIGTERM)
        return original(*rest, **named)

    def _facts(self) -> dict[str, dict[str, Any]]:
        """What tells the scored documents of each group from others."""
        evaluator, guard = self.datasets.evaluator, self.recipe.guard
        assert evaluator is not None and guard is not None
        facts = {}
        for name in guard.groups:
            dataset: Any = evaluator.groups[name]
            samples = min(len(dataset), evaluator.samples or len(dataset))
            rows = sha256_file(Path(dataset.dataset.folder) / "rows.npy")
            facts[name] = {"rows": rows, "samples": samples}
        return facts

    def _write(self, documents: dict[str, np.ndarray]) -> None:
        for name, losses in documents.items():
            if len(losses) < FEWEST_DOCUMENTS:
                raise UserError(
                    f"guard.groups: {len(losses)} documents of {name} are evaluated, which cannot show forgetting beyond "
                    f"chance. Fix: at least {FEWEST_DOCUMENTS}: raise validation.samples, or set more documents apart"
                )
            if not np.isfinite(losses).all():
                raise UserError(f"guard.groups: the base's loss on {name} is not finite at step 0")
        self._base = documents
        if training.is_last_rank():
            groups = {
                name: {**facts, "nats": documents[name].tolist()} for name, facts in self._facts().items()
            }
            self.fence.write_json(self.run.guard_base_file, {"groups": groups})

    def _read(self, file: Path) -> dict[str, np.ndarray]:
        if not file.is_file():
            raise UserError(
                f"{file}: does not exist, so the guard has nothing to compare with: it must be on from step 0. Fix: remove "
                "`guard`, or name a run that has measured the same base (guard.base)"
            )
        found = read_json(file)["groups"]
        for name, facts in self._facts().items():
            if name not in found:
                raise UserError(
                    f"{file}: has no losses of {name}: it was not guarded at step 0. Fix: remove it from guard.groups"
                )
            if {key: found[name][key] for key in facts} != facts:
                raise UserError(
                    f"{file}: the losses of {name} are of other documents than this run validates with. Fix: the same mix "
                    "(its seed, its validation) and the same validation.samples as at step 0"
                )
        return {name: np.array(found[name]["nats"], np.float64) for name in found}
