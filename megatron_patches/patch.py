"""The record of a patch: what it changes, in which versions, why, and where it is needed."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from emma.base.errors import UserError
from emma.megatron_patches.machine import Machine

__all__ = ["Decision", "Patch", "PatchError", "Target"]


class PatchError(UserError):
    """A patch that cannot be applied here: untested version, or a target that is not what the patch expects."""


@dataclass(frozen=True)
class Target:
    """A function, class or value of another library that a patch replaces or changes.

    Args:
        path: `module:qualified.name`.
        parameters: names of the parameters it must have, in order, separated by spaces; None for a class, a value or a
            C function, which have no signature to compare.
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
        """Returns the target as it is now."""
        holder, name = self.owner()
        return getattr(holder, name)

    def check(self, patch: str) -> None:
        """Raises PatchError if the target does not exist or its signature is not what the patch was written for."""
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
    """Whether a patch is needed on this machine, and why (a short clause for readers)."""

    on: bool
    why: str


@dataclass(frozen=True)
class Patch:
    """The record of a patch.

    Args:
        name: what reports call it.
        targets: what it changes; checked before it is applied.
        versions: the versions it was tested with, by distribution.
        reason: what goes wrong without it.
        upstream: address of the code or thread upstream.
        condition: decides from the machine whether it is needed.
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
        """Raises PatchError if an installed version is not one that the patch was tested with."""
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
