"""`emma mix optimise`: shares of a mix from small proxy runs."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["optimise"]


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option(
    "--settings",
    required=True,
    metavar="NAME",
    help="What may move and what is to fall: a name in recipes/optimisations, or a .yaml file "
    "(`emma recipe explain optimisation`).",
)
@click.option("--local", is_flag=True, help="Run the trials on this machine, now, instead of through Slurm.")
@click.option("--partial", is_flag=True, help="Fit without the trials that have no result.")
@click.option(
    "--dry-run", is_flag=True, help="Say what is free, what is at its caps and what it costs; write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def optimise(
    run: str,
    overrides: tuple[str, ...],
    settings: str,
    local: bool,
    partial: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Find shares for the mix of RUN from small runs of it: a front between what the objective's languages win and what
    the other groups lose, and one proposal on it, checked with new seeds.

    Called again after each step, it does what is next: writes the proxies as a sweep; fits a law to their results and
    writes proposal.yaml and index.html; writes a sweep that checks the proposal; judges it. With --local it runs both
    sweeps itself, and does everything in one call. What is done stays, also after a crash.

    Nothing is free: what a language gains is taken from others. --dry-run says before anything runs how much of the
    objective is at its caps, where no share helps.

    Exits with 1 if the check breaks a limit, and with --local if a trial failed.

    \b
    Examples:
      emma mix optimise emma_llama3_8b_bi --settings my_settings.yaml --dry-run
      emma mix optimise demo --settings demo --local
    """
    from emma.base.arrow import keep_pandas_out
    from emma.commands.asking import print_json
    from emma.recipes.load import load_optimisation
    from emma.tools.optimise.outline import outline, outline_text
    from emma.tools.optimise.steps import Waiting, advance
    from emma.tools.optimise.study import Study

    keep_pandas_out()
    study = Study(run, overrides, load_optimisation(settings))
    if dry_run:
        found = outline(study)
        print_json(found) if as_json else click.echo(outline_text(found))
        return 0
    result = advance(study, _run_here if local else None, partial=partial)
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo(result.text())
    # Nothing is left to wait for where the trials run in this call.
    return int(local if isinstance(result, Waiting) else bool(result.broken))


def _run_here(sweep: Path) -> None:
    """Runs the trials of a sweep file that have no result yet."""
    from emma.slurm.local_sweep import plan_local, run_local
    from emma.slurm.submit_sweep import open_sweep

    folder = open_sweep(str(sweep))
    # Twice: a trial that failed because a killed call's training was still ending runs the second time.
    for _ in range(2):
        numbers, at_once = plan_local(folder, retry_failed=True)
        if numbers:
            click.echo(f"{folder.path}: {len(numbers)} trials to run here, {at_once} at a time", err=True)
            run_local(folder, numbers, at_once)
