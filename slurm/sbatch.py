"""Submitting one script, and asking Slurm beforehand whether it would take it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from emma.base.errors import UserError
from emma.base.files import write_text
from emma.slurm import query

__all__ = ["refuse_if_slurm_would", "sbatch"]

# Reasons of squeue (man squeue, "Job reason codes") for which no waiting helps.
_NEVER = (
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
)


def sbatch(script: Path, options: Sequence[str]) -> int:
    """Submits a script and returns the job's id."""
    answer = query.run_slurm(["sbatch", "--parsable", *options, str(script)])
    return int(answer.strip().split(";")[0])


def refuse_if_slurm_would(script: Path) -> None:
    """Asks Slurm whether it takes such a job.

    `--test-only` also fails where a job would wait, e.g. for a node that is down, and sbatch also takes jobs that can
    never start. So for what the first refuses, a job with the script's options that does nothing is submitted for a far
    day, the reason why it waits is read, and it is cancelled.

    Raises:
        UserError: it does not; the message gives Slurm's reason.
    """
    try:
        query.run_slurm(["sbatch", "--test-only", str(script)])
        return
    except query.SlurmError as error:
        tested = error
    with tempfile.TemporaryDirectory() as folder:
        asks = Path(folder) / script.name
        options = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
        write_text(asks, "\n".join(["#!/bin/bash", *options, "exit 0", ""]))
        try:
            number = sbatch(asks, ["--begin=now+10days", "--job-name=emma-asks"])
        except query.SlurmError as error:
            raise _refusal(script, str(error)) from None
    try:
        reason = query.run_slurm(["squeue", "--noheader", f"--jobs={number}", "--format=%r"]).strip()
    finally:
        query.run_slurm(["scancel", str(number)])
    if reason in _NEVER:
        raise _refusal(script, f"{tested}; it would wait forever ({reason})")


def _refusal(script: Path, said: str) -> UserError:
    said = re.sub(r"sbatch: |error: |allocation failure: ", "", said).replace("\n", "; ")
    return UserError(
        f"{script}: Slurm would refuse this job: {said}. Fix: change cluster.slurm.* or cluster.* to match this "
        f"cluster (sinfo, sacctmgr show assoc user={os.environ.get('USER', '$USER')})"
    )
