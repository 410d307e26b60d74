"""`emma sweep`: one run with several values of some keys, as jobs or on this machine."""

from __future__ import annotations

import click

from emma.commands.asking import confirm, print_json, say_problems

__all__ = ["command"]


@click.command()
@click.argument("sweep")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option(
    "--results",
    is_flag=True,
    help="Print a table of the results so far and write results.parquet, .csv, and .html; submit nothing.",
)
@click.option(
    "--local", is_flag=True, help="Run the trials on this machine, now, instead of submitting them."
)
@click.option("--retry-failed", is_flag=True, help="Also repeat failed trials.")
@click.option("--concurrent", type=click.IntRange(min=1), help="Trials at a time. Default: the sweep's.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the trials, the script, and any problems; submit nothing.",
)
@click.option("--yes", is_flag=True, help="Skip the confirmation, however many GPU-hours.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    sweep: str,
    overrides: tuple[str, ...],
    results: bool,
    local: bool,
    retry_failed: bool,
    concurrent: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Try a run with several values of some keys: submit the trials of SWEEP to Slurm as a job array, or run
    them here (--local).

    SWEEP is a name in recipes/sweeps, the path of a YAML file, or a sweep's folder. Trials that have a result
    or are in the queue are not repeated; interrupted ones continue from their last checkpoint.
    Overrides apply to every trial.

    \b
    Examples:
      emma sweep learning_rate_and_bilingual_share --dry-run
      emma sweep learning_rate_and_bilingual_share cluster.slurm.account=project_1
      emma sweep runs/learning_rate_and_bilingual_share --results
      emma sweep small_search.yaml --local --concurrent 2
    """
    from emma.slurm.results import best, results_text
    from emma.slurm.results_page import write_results
    from emma.slurm.submit_sweep import open_sweep, plan_sweep, submit_sweep

    folder = open_sweep(sweep, overrides)
    if results:
        found = write_results(folder)
        winner = best(folder.sweep, found)
        if as_json:
            print_json({"best": winner.to_dict() if winner else None, "trials": [r.to_dict() for r in found]})
        else:
            click.echo(results_text(folder, found))
        return 0
    if local:
        from emma.slurm.local_sweep import plan_local, run_local

        numbers, at_once = plan_local(folder, retry_failed=retry_failed, concurrent=concurrent)
        click.echo(f"{folder.path}: {len(numbers)} trials to run here, {at_once} at a time", err=True)
        if dry_run:
            print_json({"trials": numbers, "concurrent": at_once}) if as_json else None
            return 0
        found = run_local(folder, numbers, at_once)
        winner = best(folder.sweep, found)
        if as_json:
            print_json({"best": winner.to_dict() if winner else None, "trials": [r.to_dict() for r in found]})
        else:
            click.echo(results_text(folder, found))
        return 1 if any(found[number].trial.state == "failed" for number in numbers) else 0
    plan = plan_sweep(folder, retry_failed=retry_failed, concurrent=concurrent, dry_run=dry_run)
    if dry_run:
        print_json(plan.to_dict()) if as_json else click.echo(plan.text())
        return say_problems(plan.problems)
    if not as_json:
        click.echo(plan.summary(), err=True)
    confirm(plan.gpu_hours, plan.limit, yes)
    done = submit_sweep(plan)
    if as_json:
        print_json({"trials": plan.numbers, "submitted": [vars(job) for job in done]})
        return 0
    for job in done:
        click.echo(f"submitted {job.key:<12} job {job.job}")
    return 0
