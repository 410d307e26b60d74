"""What a run's guard has decided: `RUN/guard.json`, and where the run goes on after it. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from emma.base.files import read_json, write_json
from emma.recipes.schema import Recipe
from emma.tools.runs.forgetting import Look

__all__ = ["DECISION", "Decision", "latest_phase", "phases_after", "read_decision"]

DECISION = "guard.json"


@dataclass(frozen=True)
class Decision:
    """Why a launch ended before the end of its schedule.

    Attributes:
        step: of the validation, and of the checkpoint.
        action: what the recipe asked for.
        looks: the groups that were found above their bounds.
        phase: run in which training goes on, in a folder beside this run's; None until it is written.
        refused: why there can be no phase.
        replay: the numbers of the phase's mix (`Replayed.to_dict` in `tools/mix/replay.py`).
    """

    step: int
    action: Literal["stop", "replay"]
    looks: list[Look]
    phase: str | None = None
    refused: str | None = None
    replay: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """`guard.json`."""
        return asdict(self)

    @property
    def reason(self) -> str:
        """The groups, in words."""
        return "; ".join(map(str, self.looks))

    def stands(self, recipe: Recipe, latest: int) -> bool:
        """Whether the run must not go on by itself: the recipe still asks for it, its bounds are still exceeded, and
        training has not passed that step since.

        Args:
            recipe: of the next launch.
            latest: step of the run's latest checkpoint.
        """
        guard = recipe.guard
        if guard is None or guard.action == "warn" or latest > self.step:
            return False
        return any(
            look.group in guard.groups and (look.at_least is None or look.at_least > guard.groups[look.group])
            for look in self.looks
        )

    def refusal(self, folder: Path) -> str:
        """What to say where the run is asked to go on."""
        said = f"{folder}: its guard ended it at step {self.step}: {self.reason}. "
        if self.refused is not None:
            said += f"A phase cannot follow: {self.refused}. "
        elif self.phase is not None:
            return said + f"Training goes on in {folder.parent / self.phase}"
        elif self.action == "replay":
            return said + "Its phase is not written yet. Fix: call `emma train` or submit the run"
        return said + "Fix: to go on all the same, raise the bound (guard.groups) or set guard.action=warn"

    def write(self, folder: Path, **facts: Any) -> Decision:
        """Writes `guard.json` with other facts, and returns it."""
        decision = replace(self, **facts)
        write_json(folder / DECISION, decision.to_dict())
        return decision


def read_decision(folder: Path) -> Decision | None:
    """The decision of a run's guard, if it has made one."""
    file = folder / DECISION
    if not file.is_file():
        return None
    value = read_json(file)
    return Decision(**{**value, "looks": [Look(**look) for look in value["looks"]]})


def phases_after(folder: Path) -> Sequence[Path]:
    """Run folders of the phases that a run's guards have written, in order."""
    found: list[Path] = []
    while (decision := read_decision(folder)) is not None and decision.phase is not None:
        folder = folder.parent / decision.phase
        found.append(folder)
    return found


def latest_phase(folder: Path) -> Path:
    """Run folder in which a run's training goes on: its own, or that of the last phase after it."""
    return [folder, *phases_after(folder)][-1]
