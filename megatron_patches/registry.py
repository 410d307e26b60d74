"""The record of a patch, the list of all patches, and the one call that applies them."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emma.base.errors import UserError
from emma.megatron_patches.machine import Machine

__all__ = ["Decision", "Patch", "PatchError", "PatchStatus", "Target", "apply", "patches", "status"]

# Applied in this order: the CPU backend has to be there before the first Megatron module is imported.
MODULES = (
    "cpu_backend",
    "initialize_without_cuda",
    "dataset_helpers",
    "sequence_parallel_norm",
    "torch_adam_resume",
    "writer_signals",
    "rope_scaling",
)


class PatchError(UserError):
    """A patch that cannot be applied here: untested version, or a target that is not what the patch expects."""


@dataclass(frozen=True)
class Target:
    """Something of another library that a patch replaces or changes.

    Args:
        path: `module:qualified.name`.
        parameters: names of the parameters it must have, in order, space-separated; None where it is a class, a value
            or a C function, which have no signature to compare.
    """

    path: str
    parameters: str | None = None

    def owner(self) -> tuple[Any, str]:
        """Returns the object that holds the target, and the target's name in it."""
        module, _, qualified = self.path.partition(":")
        holder: Any = importlib.import_module(module)
        *outer, name = qualified.split(".")
        for part in outer:
            holder = getattr(holder, part)
        return holder, name

    def get(self) -> Any:
        """Returns the target as it stands now."""
        holder, name = self.owner()
        return getattr(holder, name)

    def check(self, patch: str) -> None:
        """Raises PatchError where the target has vanished or has another signature than the patch was written for."""
        try:
            found = self.get()
        except (ImportError, AttributeError) as error:
            raise PatchError(f"patch {patch}: its target {self.path} does not exist ({error})") from error
        if self.parameters is None:
            return
        names = " ".join(inspect.signature(found).parameters)
        if names != self.parameters:
            raise PatchError(
                f"patch {patch}: {self.path} has the parameters ({names}) instead of ({self.parameters}); "
                "another version or another patch has changed it. Fix: install the versions of requirements.lock"
            )

    def replace(self, new: Any) -> None:
        """Puts `new` in the target's place."""
        holder, name = self.owner()
        setattr(holder, name, new)


@dataclass(frozen=True)
class Decision:
    """Whether a patch is needed on this machine, and why (a short clause for people)."""

    on: bool
    why: str


@dataclass(frozen=True)
class Patch:
    """The declared record of a patch.

    Args:
        name: how people and reports call it.
        targets: what it changes; checked before it is applied.
        versions: per distribution, the versions it was tested with.
        reason: what goes wrong without it.
        upstream: address of the code or thread upstream.
        condition: says from the machine whether it is needed.
        install: changes the targets; called once, after the checks.
    """

    name: str
    targets: tuple[Target, ...]
    versions: Mapping[str, tuple[str, ...]]
    reason: str
    upstream: str
    condition: Callable[[Machine], Decision]
    install: Callable[[], None]

    def check_versions(self) -> None:
        """Raises PatchError where an installed version is not one that the patch was tested with."""
        for distribution, tested in self.versions.items():
            try:
                # What follows the + names the build (a CUDA version), not the source.
                found = importlib.metadata.version(distribution).partition("+")[0]
            except importlib.metadata.PackageNotFoundError as error:
                raise PatchError(
                    f"patch {self.name} needs {distribution}, which is not installed. "
                    f"Fix: pip install '{distribution}=={tested[-1]}'"
                ) from error
            if found not in tested:
                raise PatchError(
                    f"patch {self.name} was tested with {distribution} {', '.join(tested)}, and {found} is installed. "
                    f"Fix: pip install '{distribution}=={tested[-1]}', or run tests/megatron_patches with {found} "
                    f"and add it to megatron_patches"
                )


@dataclass(frozen=True)
class PatchStatus:
    """What became of a patch in this process (`applied`), or would (`on`), in words that fit a report."""

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
    """Returns every patch, in the order in which they are applied."""
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
    """Applies the patches that this machine needs; call it before Megatron is used. A second call changes nothing.

    Returns:
        One record a patch, in order, those that stay off included.

    Raises:
        PatchError: an untested version (nothing has been applied then), or a target that is not as expected.
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
    """Returns what `apply` did in this process or, before it was called, what it would do. Imports no torch."""
    if _applied is not None:
        return _applied
    machine = Machine.from_outside()
    return tuple(_status(patch, patch.condition(machine), applied=False) for patch in patches())
