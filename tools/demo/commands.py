"""Runs the demo's own commands, which are not part of `emma` because only the demo needs them."""

from __future__ import annotations

import sys

import click

from emma.base.errors import UserError
from emma.base.extras import explain_missing

__all__ = ["run_command"]


def run_command(command: click.Command) -> None:
    """Runs a click command and, like `emma`, reports a user's mistake in one message with an exit code."""
    try:
        with explain_missing("train"):
            command()
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
