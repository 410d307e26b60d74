"""`emma slurm site`: describes this cluster, and keeps its faulty nodes."""

from __future__ import annotations

from pathlib import Path

import click

from emma.base.command_group import SuggestingGroup

__all__ = ["group"]


@click.group("site", cls=SuggestingGroup)
def group() -> None:
    """Describe this cluster in a file; show and forgive nodes that failed."""


@group.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("cluster.yaml"),
    show_default=True,
    help="The cluster file to write.",
)
@click.option("--partition", help="Partition of the training jobs. Default: the one with the most GPUs.")
@click.option("--device", help="Kind of device, where Slurm's name for the GPUs tells none.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@click.option("--dry-run", is_flag=True, help="Print the file; write nothing.")
def init(output: Path, partition: str | None, device: str | None, overwrite: bool, dry_run: bool) -> None:
    """Write a commented cluster file for the cluster that this machine belongs to.

    Reads Slurm's partitions, nodes and settings, your accounts, and this machine's network interfaces and
    container programs. Use it as `cluster=cluster.yaml`.

    \b
    Examples:
      emma slurm site init --output ours.yaml
      emma slurm submit emma_llama3_8b_bi cluster=ours.yaml --dry-run
    """
    from emma.slurm.site import describe, look_around, read_site, write_site

    text = describe(read_site(partition), look_around(), device)
    if dry_run:
        click.echo(text, nl=False)
        return
    write_site(text, output, overwrite=overwrite)
    click.echo(f"{output}: written; use it as `cluster={output}`")


@group.command()
@click.argument("runs", type=click.Path(file_okay=False, path_type=Path), default=Path("runs"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def nodes(runs: Path, as_json: bool) -> None:
    """Show the nodes that failed a preflight of any run in RUNS lately, and that new jobs leave out."""
    import orjson

    from emma.slurm.nodes import DAYS, bad_nodes
    from emma.slurm.query import SlurmError, configuration

    try:
        cluster = configuration().get("ClusterName")
    except SlurmError:
        cluster = None
    found = bad_nodes(runs, cluster)
    if as_json:
        click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return
    for node, why in found.items():
        click.echo(f"{node}  {why}")
    if not found:
        click.echo(f"{runs}: no node failed within {DAYS} days")


@group.command()
@click.argument("nodes", nargs=-1, required=True)
@click.option(
    "--runs",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of the runs.",
)
def forgive(nodes: tuple[str, ...], runs: Path) -> None:
    """Let new jobs use NODES again, e.g. after a repair."""
    from emma.slurm.nodes import forgive as note

    note(runs, nodes)
    click.echo(f"{', '.join(nodes)}: may be used again")
