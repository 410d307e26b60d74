"""`emma doctor`."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["command"]


@click.command(name="doctor")
@click.argument("folders", nargs=-1, metavar="[FOLDER]...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(folders: tuple[Path, ...], as_json: bool) -> int:
    """Report what this machine has for training, and which Megatron patches are on and why.

    Lists cores, memory, disk, limits of a process, GPUs with their driver, libraries with their versions, Slurm's commands, and
    every Megatron patch with its reason. In the current folder, the cache, and each FOLDER it tries what all stages
    rely on: names given in one step, locks, links, durable writes. The exit code is 0 if training can run here, on a GPU or on the CPU,
    and 1 if not.
    """
    from emma.tools.doctor import examine, format_report
    from emma.tools.pack.certificate import cache_folder

    here, *others = folders or (Path.cwd(),)
    report = examine(here, [*others, cache_folder()])
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else format_report(report))
    return 0 if report.trains_on else 1
