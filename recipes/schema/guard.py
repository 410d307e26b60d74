"""The section that bounds forgetting while a run trains."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from emma.recipes.schema.section import Section

__all__ = ["Guard", "Replay"]


class Replay(Section):
    """The phase that `action: replay` writes: a part of its mix is text of the groups that were forgotten, the rest is the
    run's mix as it was. `weak` and `strong` are the parts for a weak and a strong shift in Ibrahim et al. 2024
    (arXiv 2403.08763)."""

    weak: float = Field(0.05, gt=0, lt=1)
    """Part of the phase's tokens that a group gets beyond what it has anyway, where it was forgotten a little."""
    strong: float = Field(0.25, gt=0, lt=1)
    """The same for a group that was forgotten much."""
    strong_from: float = Field(2.0, ge=1)
    """A group was forgotten much if its rise, as measured, is at least so many times its bound."""
    most: float = Field(0.5, gt=0, lt=1)
    """Largest part for all such groups together; above it, each gets proportionally less."""
    phases: int = Field(1, gt=0)
    """How many phases may follow each other; in the last one, the guard stops the run instead."""
    law: str | None = None
    """A `fit.json` of `emma mix optimise`, whose law says how large the parts must be, in place of `weak` and `strong`.
    Default: that of the run's only optimisation; `weak` and `strong` where there is none, or several."""
    documents: Literal["unread", "all"] = "unread"
    """What the phase reads. `unread`: documents that the run has not consumed, and no others. `all`: any, within what is
    left of their sources' caps, for runs that read their text several times."""
    settle: float = Field(0.5, ge=0, lt=1)
    """Part of a phase's steps in which its guard only records: what was forgotten takes a while to come back."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.weak <= self.strong <= self.most:
            raise ValueError(
                f"weak ({self.weak:g}), strong ({self.strong:g}) and most ({self.most:g}) must not decrease"
            )
        return self


class Guard(Section):
    """A bound on forgetting: what happens if a validation group's loss rises above the base model's."""

    groups: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Validation groups, each with the largest relative rise of its bits per byte (0.01: one percent) against step 0."""
    action: Literal["warn", "stop", "replay"] = "warn"
    """What follows once a group is above its bound beyond chance. `warn`: log and report say so, and training goes on.
    `stop`: the launch ends with a checkpoint, and nothing continues the run by itself. `replay`: the launch ends with a
    checkpoint, and the rest of the budget is trained as a phase with more text of that group."""
    false_alarms: float = Field(0.05, gt=0, lt=0.5)
    """Largest probability that any validation of the run finds a group above its bound though none is. Each validation
    uses up a part, in proportion to the steps since the one before, and each group an equal part of that."""
    from_step: int = Field(0, ge=0)
    """Validations before this step are recorded, but nothing follows from them."""
    base: str | None = None
    """Run folder whose losses at step 0 are the base model's; default: this run's own."""
    replay: Replay = Replay()
    """How `action: replay` makes the phase."""
