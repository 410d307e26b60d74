"""Programs that answer like Slurm's and note how they were called, for tests of what is asked of Slurm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Pretended", "pretend"]

# Each call is a line of `calls`: the program, then its arguments, separated by tabs. `sbatch` numbers jobs from 101 and
# refuses the script whose name `refuse` holds; with `down`, --test-only fails, as with a node that is down, and `down` holds the
# reason why a job waits.
_PROGRAM = r"""#!/bin/bash
here=@HERE@
{ printf '%s' "${0##*/}"; printf '\t%s' "$@"; echo; } >>"$here/calls"
case ${0##*/} in
  sbatch)
    script=${*: -1}
    refused=$(cat "$here/refuse" 2>/dev/null)
    if [[ " $* " == *" --test-only "* ]]; then
      if [[ -e $here/down ]]; then echo 'allocation failure: Requested nodes are busy' >&2; exit 1; fi
      exit 0
    fi
    if [[ -n $refused && ${script##*/} == "$refused" ]]; then echo 'sbatch: error: no such thing' >&2; exit 1; fi
    number=$(($(cat "$here/number" 2>/dev/null || echo 100) + 1))
    echo "$number" >"$here/number"
    echo "$number"
    ;;
  squeue)
    for job in $(cat "$here/others" 2>/dev/null); do
      if [[ " $* " == *" --jobs=$job "* ]]; then echo RUNNING; fi
    done
    if [[ $* == *--format=%r* ]]; then cat "$here/down"; fi
    if [[ $* == *--format=%E* ]]; then
      for job in $(cat "$here/private" 2>/dev/null); do echo "afterany:$job(unfulfilled)"; done
    fi
    ;;
  sacctmgr)
    if [[ $* == *name=cheap* ]]; then echo 'cancel|00:05:00'; fi
    ;;
  scontrol)
    if [[ $* == *"show partition"* ]]; then
      echo 'PartitionName=low Default=NO MaxTime=2-00:00:00 TotalNodes=8 State=UP PreemptMode=REQUEUE GraceTime=90'
      echo 'PartitionName=main Default=YES MaxTime=2-00:00:00 TotalNodes=8 State=UP PreemptMode=OFF GraceTime=0'
    else
      cat "$here/config"
    fi
    ;;
esac
"""


@dataclass(frozen=True)
class Pretended:
    """Where the programs note what they were asked."""

    folder: Path

    def calls(self, program: str) -> list[list[str]]:
        """Arguments of each call of a program, in order."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [line.split("\t")[1:] for line in lines if line.split("\t")[0] == program]

    def refuse(self, script: str) -> None:
        """From now on sbatch refuses the script of that name."""
        (self.folder / "refuse").write_text(script)

    def lose_a_node(self, reason: str = "ReqNodeNotAvail, UnavailableNodes:n2") -> None:
        """From now on --test-only fails, and sbatch takes jobs all the same, which wait for `reason`."""
        (self.folder / "down").write_text(reason)

    def others(self, jobs: list[int]) -> None:
        """Running jobs of other users, which squeue shows."""
        (self.folder / "others").write_text(" ".join(map(str, jobs)))

    def private(self, jobs: list[int]) -> None:
        """Running jobs of other users that squeue does not show."""
        (self.folder / "private").write_text(" ".join(map(str, jobs)))

    def configure(self, text: str) -> None:
        """What `scontrol show config` says."""
        (self.folder / "config").write_text(text)


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Pretended:
    """Puts the programs first in PATH."""
    folder.mkdir(parents=True)
    pretended = Pretended(folder)
    pretended.configure("KillWait = 30 sec\nPreemptMode = OFF\n")
    for name in ("sbatch", "squeue", "scontrol", "scancel", "sacctmgr", "sinfo"):
        program = folder / name
        program.write_text(_PROGRAM.replace("@HERE@", str(folder)))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return pretended
