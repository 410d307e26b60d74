"""`emma doctor`."""

from __future__ import annotations

import json

import click

__all__ = ["command"]


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> int:
    """Report what this machine has for training, and which Megatron patches are on and why.

    Lists cores, memory, disk, GPUs with their driver, libraries with their versions, Slurm's commands, and every
    Megatron patch with its reason. The exit code is 0 if training can run here, on a GPU or on the CPU, and 1 if not.
    """
    from emma.tools.doctor import examine, format_report

    report = examine()
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else format_report(report))
    return 0 if report.trains_on else 1
