"""`emma slurm`: submits runs as chains of jobs, shows their state, and stops them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from emma.base.command_group import SuggestingGroup
from emma.commands.amount import Amount
from emma.commands.asking import confirm, print_json, say_problems
from emma.commands.slurm_site import group as site

if TYPE_CHECKING:
    from emma.slurm.submit import Chain

__all__ = ["group"]

STAGES = click.Choice(["pack", "mix", "train", "convert", "evaluate", "release"])


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Submit runs to Slurm as chains of jobs; show their state; stop them."""


group.add_command(site)


@group.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--from", "first", type=STAGES, default="pack", show_default=True, help="First stage.")
@click.option("--to", "last", type=STAGES, default="release", show_default=True, help="Last stage.")
@click.option("--only", type=STAGES, help="Only this stage.")
@click.option(
    "--links",
    type=click.IntRange(min=1),
    help="Training jobs queued at once; the last requeues itself. Default: as the time needs, at most 3.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the scripts, what each waits for, and any problems; submit nothing.",
)
@click.option("--yes", is_flag=True, help="Skip the confirmation, however many GPU-hours.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def submit(
    run: str,
    overrides: tuple[str, ...],
    first: str,
    last: str,
    only: str | None,
    links: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Submit what is left of RUN as a chain of jobs: pack → mix → train → convert → evaluate → release.

    Stages that are done or already in the queue are not submitted again. The resolved recipe is written to
    the run folder, where the jobs read it. Training saves before its time limit and continues in the next
    job, or requeues itself.

    \b
    Examples:
      emma slurm submit emma_llama3_8b_bi --dry-run
      emma slurm submit emma_llama3_8b_bi --from train cluster.slurm.account=project_1
      emma slurm submit runs/emma_llama3_8b_bi --only evaluate
    """
    from emma.slurm.own_template import load_run
    from emma.slurm.submit import SubmittedMeanwhileError, plan_chain, submit

    begin, end = (only, only) if only else (first, last)
    recipe = load_run(run, overrides)
    while True:
        chain = plan_chain(recipe, begin, end, links, dry_run=dry_run)  # type: ignore[arg-type]
        if dry_run:
            _print_dry_run(chain, as_json)
            return say_problems(chain.problems)
        if not as_json:
            click.echo(_summary(chain), err=True)
        confirm(chain.gpu_hours, recipe.cluster.slurm.confirm_gpu_hours, yes)
        try:
            done = submit(chain)
            break
        except SubmittedMeanwhileError as error:
            click.echo(f"note: {error}", err=True)
    if as_json:
        print_json({"settled": chain.settled, "submitted": [vars(job) for job in done]})
        return 0
    for job in done:
        click.echo(f"submitted {job.key:<12} job {job.job}, after {job.dependency}")
    if done:
        click.echo("`emma slurm jobs --watch` shows their state")
    return 0


@group.command()
@click.argument(
    "places", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN_FOLDER | FOLDER_OF_RUNS]..."
)
@click.option("--watch", is_flag=True, help="Refresh the table until Ctrl-C.")
@click.option(
    "--interval",
    type=Amount(at_least=0.5),
    default=5.0,
    show_default=True,
    help="Seconds between refreshes with --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def jobs(places: tuple[Path, ...], watch: bool, interval: float, as_json: bool) -> None:
    """Show your jobs and runs: state, step, tokens, loss, speed, time left, last checkpoint, what comes next.

    Lists all jobs in the queue, and runs without a job if they are in `runs/` or in the folders given. Works
    with and without Slurm accounting.
    """
    import time

    from emma.slurm.table import collect, find_runs, table_text

    if not places and Path("runs").is_dir():
        places = (Path("runs"),)
    while True:
        rows = collect(find_runs(places))
        if as_json:
            print_json([row.to_dict() for row in rows])
        else:
            if watch:
                click.clear()
                click.echo(time.strftime("%H:%M:%S"))
            click.echo(table_text(rows))
        if not watch:
            return
        try:
            time.sleep(interval)
        except KeyboardInterrupt:
            return


@group.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="RUN_FOLDER")
@click.option(
    "--wait",
    type=Amount(at_least=0),
    metavar="SECONDS",
    help="Cancel what runs if there is no checkpoint by then.  [default: what a step and a save may take in this run]",
)
@click.option(
    "--writer-is-gone",
    is_flag=True,
    help="Declare that the job or process which holds the run is gone, where Slurm cannot tell; stop nothing.",
)
def stop(run: Path, wait: float | None, writer_is_gone: bool) -> None:
    """Save and end the training of RUN_FOLDER: by a file that its ranks look for after each step, then by scancel.

    The ranks save a checkpoint, however long their step takes: `scancel` alone gives them KillWait, often 30 seconds.
    Waiting jobs of the run are cancelled. The run stays stopped until RUN_FOLDER/stop is removed.

    \b
    Examples:
      emma slurm stop runs/emma_llama3_8b_bi
      emma slurm stop runs/emma_llama3_8b_bi --wait 0        # cancel at once
      emma slurm stop runs/emma_llama3_8b_bi --writer-is-gone
    """
    from emma.base.errors import UserError
    from emma.slurm.stop import declare_gone, patience
    from emma.slurm.stop import stop as stop_run

    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: no recipe.yaml. Fix: name a run folder")
    if writer_is_gone:
        click.echo(
            f"{declare_gone(run)} counts as gone; should it still be there, it ends and writes nothing more"
        )
        return
    step = stop_run(run, patience(run) if wait is None else wait, lambda text: click.echo(text, err=True))
    click.echo(
        f"stopped; the latest checkpoint is that of step {step}" if step else "stopped; no checkpoint yet"
    )


def _summary(chain: Chain) -> str:
    recipe, slurm = chain.recipe, chain.recipe.cluster.slurm
    lines = [f"run       {recipe.run_folder.absolute()}"]
    lines += [f"{stage:<9} {why}" for stage, why in chain.settled.items()]
    if not chain.links:
        return "\n".join([*lines, "nothing to submit"])
    lines.append(f"submit    {', '.join(link.key for link in chain.links)}")
    if any(link.script.stage == "train" for link in chain.links):
        cluster = recipe.cluster
        lines.append(
            f"training  {cluster.nodes} nodes × {cluster.gpus_per_node} {cluster.device}, {slurm.time_limit} per job"
        )
    lines += [f"{'ended by' if not index else '':<9} {line}" for index, line in enumerate(chain.leaving)]
    lines += [f"without   {node}: {why}" for node, why in chain.without.items()]
    time = chain.plan.time if chain.plan else None
    expected = f"; training should take {time.gpu_hours:,.0f} ({time.days:.1f} days)" if time else ""
    lines.append(f"GPU-hours at most {chain.gpu_hours:,.0f}{expected}")
    return "\n".join(lines)


def _print_dry_run(chain: Chain, as_json: bool) -> None:
    if as_json:
        print_json(chain.to_dict())
        return
    click.echo(_summary(chain), err=True)
    for script in {link.script.stage: link.script for link in chain.links}.values():
        of_script = [link for link in chain.links if link.script.stage == script.stage]
        click.echo(f"# ---- {script.stage}: {chain.recipe.run_folder.absolute()}/slurm/{script.stage}.sbatch")
        for link in of_script:
            waits = [f"success of {key}" for key in link.after_ok] + [
                f"end of {key}" for key in link.after_any
            ]
            waits += [f"success of job {job}" for job in link.jobs_ok]
            waits += [f"end of job {job}" for job in link.jobs_any]
            click.echo(
                f"# {link.key} starts {'after the ' + ' and the '.join(waits) if waits else 'at once'}"
            )
        click.echo(script.text)
