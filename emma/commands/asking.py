"""What commands that submit jobs share: the question before many GPU-hours, refusals of a dry run, JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from emma.base.errors import UserError

__all__ = ["confirm", "print_json", "say_problems"]


def confirm(gpu_hours: float, limit: float, yes: bool) -> None:
    """Asks before jobs that can use many GPU-hours.

    Raises:
        UserError: nobody can be asked, and `yes` is off.
    """
    from emma.base.errors import UserError

    if yes or gpu_hours <= limit:
        return
    if not sys.stdin.isatty():
        raise UserError(
            f"these jobs can use {gpu_hours:,.0f} GPU-hours, more than the {limit:,.0f} allowed without confirmation "
            "(cluster.slurm.confirm_gpu_hours). Fix: add --yes"
        )
    click.confirm(f"More than {limit:,.0f} GPU-hours. Submit?", abort=True, err=True)


def say_problems(problems: Sequence[UserError]) -> int:
    """Reports, after a dry run, why a submission would be refused; returns the exit code."""
    from emma.slurm.query import SlurmError

    refusals = [problem for problem in problems if not isinstance(problem, SlurmError)]
    for problem in refusals:
        click.echo(f"error: {problem}", err=True)
    if len(refusals) < len(problems):
        reason = next(str(problem) for problem in problems if isinstance(problem, SlurmError)).splitlines()[0]
        click.echo(f"note: Slurm does not answer here ({reason}): cannot tell what it would refuse", err=True)
    return refusals[0].exit_code if refusals else 0


def print_json(value: object) -> None:
    """Prints indented JSON."""
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
