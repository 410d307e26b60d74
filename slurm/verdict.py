"""Slurm's word about the job that holds a run: whether its writer can still be alive.

That a list of jobs does not show it says nothing: lists are empty for other users' jobs where `PrivateData=jobs`. What
counts is a state that Slurm gives for that very job, by `scontrol show job` or from accounting.
"""

from __future__ import annotations

from typing import Literal

from emma.tools.runs.claim import Claim

__all__ = ["FINAL", "OUTSIDE", "Verdict", "from_outside", "verdict"]

FINAL = frozenset(
    "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL PREEMPTED BOOT_FAIL DEADLINE OUT_OF_MEMORY REVOKED".split()
)
"""States after which nothing of a job runs under Slurm's eyes."""

OUTSIDE = frozenset("NODE_FAIL PREEMPTED BOOT_FAIL CANCELLED REVOKED".split())
"""States that are no fault of the run."""

_WAITING = frozenset("PENDING CONFIGURING REQUEUE_HOLD REQUEUE_FED SPECIAL_EXIT REQUEUED".split())

type Verdict = tuple[Literal["ended", "ending", "alive", "unknown"], str]
"""What is known of a claim's job, and Slurm's state, in lower case, or why nothing is known."""


def verdict(text: str, claim: Claim) -> Verdict:
    """What Slurm's answers say about a claim's job, in the incarnation (restart) that made the claim.

    Args:
        text: `scontrol --oneliner show job JOB`, then `sacct --noheader --parsable2 --allocations --duplicates
            --format=JobIDRaw,State --jobs=JOB`, with their error messages.
        claim: a claim of a Slurm job.
    """
    for line in text.splitlines():
        shown = dict(item.split("=", 1) for item in line.split() if "=" in item)
        if shown.get("JobId") == claim.job:
            return _shown(shown["JobState"], int(shown.get("Restarts", 0)), claim.restart)
    rows = [line.split("|") for line in text.splitlines() if line.startswith(f"{claim.job}|")]
    states = [row[1].split()[0] for row in rows if len(row) == 2 and row[1]]
    if states and all(state in FINAL or state == "REQUEUED" for state in states):
        return "ended", states[-1].lower()
    if states:
        return "alive", states[-1].lower()
    return "unknown", "Slurm says nothing about it"


def _shown(state: str, restarts: int, restart: int) -> Verdict:
    if state in FINAL:
        return "ended", state.lower()
    if restarts > restart:
        # The incarnation of the claim has ended; a later one that runs will claim the run itself.
        return ("ended", "requeued by slurm") if state in _WAITING else ("alive", f"{state.lower()} again")
    if state in ("COMPLETING", "STAGE_OUT", *_WAITING):
        return "ending", state.lower()
    return "alive", state.lower()


def from_outside(how: str) -> bool:
    """Whether the recorded end of a launch is no fault of the run: requeued, preempted, a lost node, cancelled."""
    return how == "requeued by slurm" or how.upper() in OUTSIDE
