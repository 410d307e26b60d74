"""`emma slurm`: submit runs, chains and sweeps; show their state."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from slurm.submit import Chain

__all__ = ["group"]

STAGES = click.Choice(["pack", "mix", "train", "convert", "evaluate", "release"])


@click.group()
def group() -> None:
    """Submit runs, chains and sweeps to Slurm; show their state."""


@group.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--from", "first", type=STAGES, default="pack", show_default=True, help="First stage.")
@click.option("--to", "last", type=STAGES, default="release", show_default=True, help="Last stage.")
@click.option("--only", type=STAGES, help="This stage alone.")
@click.option(
    "--links", type=click.IntRange(min=1), help="Training jobs in a row; default as many as the time needs."
)
@click.option(
    "--dry-run", is_flag=True, help="Print the scripts that would be submitted, and what waits for what."
)
@click.option("--yes", is_flag=True, help="Do not ask, whatever the GPU-hours.")
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
) -> None:
    """Submit what is left of RUN as a chain of jobs: pack → mix → train → convert → evaluate → release.

    Stages that are done or in the queue are not submitted again. The resolved recipe is written into the run folder;
    the jobs read it there. Training saves ahead of its time limit and goes on in the next job, or requeues itself.

    \b
    Examples:
      emma slurm submit emma_llama3_8b_bi --dry-run
      emma slurm submit emma_llama3_8b_bi --from train cluster.slurm.account=project_1
      emma slurm submit runs/emma_llama3_8b_bi --only evaluate
    """
    from recipes.load import load_recipe
    from slurm.submit import plan_chain, submit

    begin, end = (only, only) if only else (first, last)
    chain = plan_chain(load_recipe(run, overrides), begin, end, links)  # type: ignore[arg-type]
    if dry_run:
        _print_dry_run(chain, as_json)
        return
    if not as_json:
        click.echo(_summary(chain), err=True)
    _confirm(chain, yes)
    done = submit(chain)
    if as_json:
        _print_json({"settled": chain.settled, "submitted": [vars(job) for job in done]})
        return
    for job in done:
        click.echo(f"submitted {job.key:<12} job {job.job}, after {job.dependency}")
    if done:
        click.echo("`emma slurm jobs --watch` shows them")


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
            f"training  {cluster.nodes} nodes × {cluster.gpus_per_node} {cluster.device}, {slurm.time_limit} a job"
        )
    time = chain.plan.time if chain.plan else None
    expected = f"; training should take {time.gpu_hours:,.0f} ({time.days:.1f} days)" if time else ""
    lines.append(f"GPU-hours at most {chain.gpu_hours:,.0f}{expected}")
    return "\n".join(lines)


def _confirm(chain: Chain, yes: bool) -> None:
    from recipes.errors import UserError

    limit = chain.recipe.cluster.slurm.confirm_gpu_hours
    if yes or chain.gpu_hours <= limit:
        return
    if not sys.stdin.isatty():
        raise UserError(
            f"these jobs can use {chain.gpu_hours:,.0f} GPU-hours, above the {limit:,.0f} that need no confirmation "
            "(cluster.slurm.confirm_gpu_hours). Fix: add --yes"
        )
    click.confirm(f"Above {limit:,.0f} GPU-hours. Submit?", abort=True, err=True)


def _print_dry_run(chain: Chain, as_json: bool) -> None:
    if as_json:
        _print_json(chain.to_dict())
        return
    click.echo(_summary(chain), err=True)
    for script in {link.script.stage: link.script for link in chain.links}.values():
        of_script = [link for link in chain.links if link.script.stage == script.stage]
        click.echo(f"# ---- {script.stage}: {chain.recipe.run_folder.absolute()}/slurm/{script.stage}.sbatch")
        for link in of_script:
            waits = [f"success of {key}" for key in link.after_ok] + [
                f"end of {key}" for key in link.after_any
            ]
            waits += [f"success of job {job}" for job in link.waits_for]
            click.echo(
                f"# {link.key} starts {'after the ' + ' and the '.join(waits) if waits else 'at once'}"
            )
        click.echo(script.text)


def _print_json(value: object) -> None:
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
