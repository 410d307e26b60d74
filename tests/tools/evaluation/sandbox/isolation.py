"""A sandbox that shows Python, on machines that can isolate."""

from __future__ import annotations

import functools

import pytest

from emma.base.errors import UserError
from emma.tools.evaluation.sandbox.sandbox import Limits, Outcome, Sandbox, Step
from emma.tools.evaluation.sandbox.toolchains import _view, get_toolchain

__all__ = ["needs_isolation", "python_view", "run_python"]


def python_view() -> tuple[dict[str, str], dict[str, str]]:
    """What is shown, and the environment."""
    return _view(get_toolchain("python"))


@functools.cache
def _refused() -> str | None:
    try:
        Sandbox(*python_view(), Limits()).run({}, [Step(["python3", "-I", "-c", ""], 20)])
    except UserError as error:
        return str(error)
    return None


def needs_isolation() -> None:
    """Skips a test where the machine does not allow user namespaces."""
    if (why := _refused()) is not None:
        pytest.skip(why)


def run_python(program: str, seconds: float = 20, limits: Limits | None = None) -> Outcome:
    """Runs a Python program in a sandbox."""
    needs_isolation()
    sandbox = Sandbox(*python_view(), limits or Limits())
    return sandbox.run({"program.py": program}, [Step(["python3", "-I", "program.py"], seconds)])
