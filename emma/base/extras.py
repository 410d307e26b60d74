"""Packages that only some commands need: which extra of the distribution installs the one that is missing.

The distribution's own metadata says what each extra brings, so pyproject.toml is the only place that lists it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from emma.base.errors import UserError

__all__ = ["explain_missing", "extras_with", "install_command", "need"]

_DISTRIBUTION = "emma-recipes"

# Modules whose package on the index has another name.
_PACKAGES = {"fasttext": "fasttext-predict", "megatron": "megatron-core"}


def extras_with(module: str) -> list[str]:
    """Extras that install the package of a top-level module, in pyproject.toml's order; none for a package that every
    installation has, or that is not ours to name."""
    package = _PACKAGES.get(module, module).replace("_", "-").lower()
    return [extra for extra, packages in _contents().items() if package in packages]


def install_command(module: str, extra: str | None = None) -> str:
    """What to type to get a missing module, e.g. `pip install 'emma-recipes[train]'`.

    Args:
        module: top-level name, e.g. `torch`.
        extra: the one to name if several bring the module; otherwise the first is named.
    """
    extras = extras_with(module)
    chosen = extra if extra in extras or not extras else extras[0]
    return f"pip install '{_DISTRIBUTION}[{chosen}]'" if chosen else f"pip install {module}"


def need(extra: str, purpose: str, *modules: str) -> None:
    """Checks that top-level modules are installed before work begins that needs them, perhaps in another process.

    Args:
        extra: the one to name if several bring a module.
        purpose: what needs the modules, e.g. a recipe's key and value or an option.
        modules: top-level names.

    Raises:
        UserError: one of them is not installed.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _missing(purpose, module, extra)


@contextmanager
def explain_missing(extra: str | None = None) -> Iterator[None]:
    """Turns a `ModuleNotFoundError` of a package that an extra brings into a `UserError` that names the extra.

    Any other missing module (one of this project, a submodule of an installed package) is a fault and passes through.

    Args:
        extra: the extra to name if several bring the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or not extras_with(module) or find_spec(module) is not None:
            raise
        raise _missing("this command", module, extra) from error


def _missing(purpose: str, module: str, extra: str | None) -> UserError:
    return UserError(
        f"{purpose}: needs `{module}`, not installed here. Fix: {install_command(module, extra)}"
    )


@functools.cache
def _contents() -> dict[str, set[str]]:
    """Packages of each extra, including those of the extras that it contains."""
    # Imported here: they take longer than all that `emma --help` needs.
    from importlib.metadata import PackageNotFoundError, metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        told = metadata(_DISTRIBUTION)
    except PackageNotFoundError:  # a checkout that is not installed
        return {}
    requirements = [Requirement(line) for line in told.get_all("Requires-Dist") or []]
    direct = {
        extra: [r for r in requirements if r.marker and r.marker.evaluate({"extra": extra})]
        for extra in told.get_all("Provides-Extra") or []
    }

    def packages(extra: str) -> set[str]:
        found: set[str] = set()
        for requirement in direct[extra]:
            if canonicalize_name(requirement.name) == _DISTRIBUTION:
                found = found.union(*map(packages, requirement.extras))
            else:
                found.add(canonicalize_name(requirement.name))
        return found

    return {extra: packages(extra) for extra in direct}
