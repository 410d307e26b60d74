"""Running the demo's own commands, which stand outside `emma` because only the demo needs them."""

from __future__ import annotations

import sys

import click

from emma.base.errors import UserError

__all__ = ["run_command"]


def run_command(command: click.Command) -> None:
    """Runs a click command; a user's mistake becomes one message and an exit code, as in `emma`."""
    try:
        command()
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
