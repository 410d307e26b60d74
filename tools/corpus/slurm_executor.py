"""datatrove's Slurm executor without what a build does not need. Imported only where jobs are submitted or run."""

from __future__ import annotations

from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor

__all__ = ["ArrayExecutor"]


class ArrayExecutor(SlurmPipelineExecutor):
    """Leaves settings without a value to the cluster's defaults, and submits no job that merges datatrove's own
    statistics: the stages keep accounts of theirs."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Arguments of sbatch that have a value."""
        arguments = super().get_sbatch_args(max_array)
        return {name: value for name, value in arguments.items() if value is not None}

    def launch_merge_stats(self) -> None:
        """Does nothing."""
