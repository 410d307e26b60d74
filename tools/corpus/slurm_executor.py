"""datatrove's Slurm executor, less what a build doesn't need. Imported only to submit or run jobs."""

from __future__ import annotations

from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor

__all__ = ["ArrayExecutor"]


class ArrayExecutor(SlurmPipelineExecutor):
    """Leaves unset options to the cluster's defaults, and submits no job to merge datatrove's own statistics:
    the stages keep their own accounts."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """sbatch arguments that have a value."""
        arguments = super().get_sbatch_args(max_array)
        return {name: value for name, value in arguments.items() if value is not None}

    def launch_merge_stats(self) -> None:
        """Does nothing."""
