"""The list of all patches, and the one call that applies them."""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass
from typing import Any

from emma.megatron_patches.machine import Machine
from emma.megatron_patches.patch import Decision, Patch

__all__ = ["PatchStatus", "apply", "patches", "status"]

# Applied in this order: the CPU backend must be in place before the first Megatron module is imported.
MODULES = (
    "cpu_backend",
    "initialize_without_cuda",
    "inert_loading",
    "dataset_helpers",
    "sequence_parallel_norm",
    "accumulated_gradient",
    "zero_centred_norm",
    "window_mask",
    "torch_adam_resume",
    "writer_signals",
    "optimizer_rows",
    "even_blocks",
    "exact_reads",
    "rope_scaling",
    "param_remainders",
)


@dataclass(frozen=True)
class PatchStatus:
    """What was done about a patch in this process (`applied`) or would be (`on`), ready for a report."""

    name: str
    on: bool
    applied: bool
    why: str
    targets: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    reason: str
    upstream: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the record as JSON-ready values."""
        return asdict(self)


_applied: tuple[PatchStatus, ...] | None = None


def patches() -> tuple[Patch, ...]:
    """Returns all patches, in the order in which they are applied."""
    return tuple(importlib.import_module(f"emma.megatron_patches.{module}").PATCH for module in MODULES)


def _status(patch: Patch, decision: Decision, applied: bool) -> PatchStatus:
    return PatchStatus(
        name=patch.name,
        on=decision.on,
        applied=applied,
        why=decision.why,
        targets=tuple(target.path for target in patch.targets),
        versions=dict(patch.versions),
        reason=patch.reason,
        upstream=patch.upstream,
    )


def apply() -> tuple[PatchStatus, ...]:
    """Applies the patches that this machine needs; call it before Megatron is used. A second call changes
    nothing.

    Returns:
        One record per patch, in order, including those that stay off.

    Raises:
        PatchError: an untested version (in which case nothing has been applied), or an unexpected target.
    """
    global _applied
    if _applied is not None:
        return _applied
    machine = Machine.from_torch()
    decisions = [(patch, patch.condition(machine)) for patch in patches()]
    for patch, decision in decisions:
        if decision.on:
            patch.check_versions()
    for patch, decision in decisions:
        if decision.on:
            for target in patch.targets:
                target.check(patch.name)
            patch.install()
    _applied = tuple(_status(patch, decision, applied=decision.on) for patch, decision in decisions)
    return _applied


def status() -> tuple[PatchStatus, ...]:
    """Returns what `apply` did in this process or, before the call, would do. Imports no torch."""
    if _applied is not None:
        return _applied
    machine = Machine.from_outside()
    return tuple(_status(patch, patch.condition(machine), applied=False) for patch in patches())
