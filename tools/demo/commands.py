"""Runs the demo's own commands, which are not part of `emma` because only the demo needs them."""

from __future__ import annotations

import sys

import click

from emma.base.extras import explain_missing
from emma.base.system_errors import report

__all__ = ["run_command"]


def run_command(command: click.Command) -> None:
    """Runs a click command and, like `emma`, reports a mistake or a fault in one message with an exit code."""
    try:
        with explain_missing("train"):
            command()
    except Exception as error:
        if (code := report(error)) is None:
            raise
        sys.exit(code)
