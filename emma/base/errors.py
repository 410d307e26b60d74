"""Errors that a user can act on.

The command line prints them as one message, without a stack trace, and exits with code 2. Anything else that
escapes is a bug of this project and shows its trace.
"""

from __future__ import annotations

__all__ = ["CheckFailedError", "RecipeError", "UserError"]


class UserError(Exception):
    """A mistake or a bad input that the user can fix; the message names file, place, field and fix."""

    exit_code = 2


class CheckFailedError(UserError):
    """A verification completed and found faults (exit code 1, so that scripts can tell it from misuse)."""

    exit_code = 1


class RecipeError(UserError):
    """A recipe that cannot be used: unknown key, wrong type, impossible combination.

    Args:
        key: dotted key, e.g. `parallelism.tensor`.
        problem: what is wrong, with the values that make it wrong.
        fix: what to write instead.
        origin: `file:line` (or `command line`) that the value came from, if known.
    """

    def __init__(self, key: str, problem: str, fix: str, origin: str | None = None) -> None:
        self.key, self.problem, self.fix, self.origin = key, problem, fix, origin
        place = f"{origin}: " if origin else ""
        super().__init__(f"{place}{key}: {problem}. Fix: {fix}")
