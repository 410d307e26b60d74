"""Weights & Biases, where the recipe names a project (`logging.wandb_project`).

Answers no seam: `Metrics` and `Validation` call it on the last rank, where Megatron has started the client with the
arguments of `_output` in `tools/training/arguments.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron.training import training

__all__ = ["log_to_wandb"]


def log_to_wandb(row: Mapping[str, float | None], iteration: int) -> None:
    """Logs the values of a row that are not None; does nothing without a project."""
    writer = training.get_wandb_writer()
    if writer:
        writer.log({name: value for name, value in row.items() if value is not None}, iteration)
