"""`emma train`."""

from __future__ import annotations

import shlex

import click

__all__ = ["command"]


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option(
    "--print-command", is_flag=True, help="Print the launch line and Megatron's arguments; start nothing."
)
@click.option(
    "--dry-run", is_flag=True, help="Check recipe, mix and start, and say what would happen; start nothing."
)
@click.option(
    "--prepare",
    is_flag=True,
    help="Only write the run folder and launch.json; a job script starts the ranks.",
)
@click.option("--take-over", is_flag=True, help="Claim the run even if writer.json names another process.")
@click.option(
    "--verify-checkpoints",
    is_flag=True,
    help="Compare the files of all its checkpoints with what was written; start nothing. Exit code 1: damage.",
)
@click.option("--json", "as_json", is_flag=True, help="With --verify-checkpoints: print the result as JSON.")
def command(
    run: str,
    overrides: tuple[str, ...],
    print_command: bool,
    dry_run: bool,
    prepare: bool,
    take_over: bool,
    verify_checkpoints: bool,
    as_json: bool,
) -> int:
    """Train RUN on this machine, or resume it.

    An interrupted run resumes from its latest complete checkpoint; for a finished one there is nothing to do. A
    checkpoint whose files are not what was written is set aside, and the one before is used.
    SIGTERM or Ctrl-C saves after the current step and exits with 0. The ranks' output is in RUN/logs/.

    \b
    Example:
      emma train demo schedule.steps=100 parallelism.tensor=2
    """
    from emma.base.extras import need
    from emma.checkpoints_conversion.checkpoint import check_start
    from emma.recipes.load import load_recipe
    from emma.tools.plan.alternatives import check_fits
    from emma.tools.runs.run_folder import RunFolder
    from emma.tools.training.launch import compute_reference, launch_command, rank_environment, train_here
    from emma.tools.training.plan_start import check_mix, describe

    recipe = load_recipe(run, overrides)
    folder = RunFolder(recipe.run_folder)
    if verify_checkpoints:
        from emma.commands.checkpoint_files import checkpoints_of, report

        report(checkpoints_of(folder.path), folder.checkpoints_log, as_json)
        return 0
    if print_command:
        from emma.tools.training.plan_start import preview_arguments

        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in rank_environment(recipe).items())
        logs = str(folder.logs / "launch-NNNN")
        click.echo(f"# launch line\n{variables} {shlex.join(launch_command(recipe, folder, logs))}")
        click.echo("\n# arguments of megatron.training that each rank gets from the recipe")
        click.echo(" \\\n  ".join(preview_arguments(recipe, folder)))
        return 0
    if not dry_run:
        need("train", "emma train", "torch", "megatron", "transformers")
    check_fits(recipe)
    mix = check_mix(recipe)
    if folder.finished(recipe):
        click.echo(f"{folder.path}: step {recipe.schedule.steps} is reached; nothing to do")
        return 0
    if not folder.latest_step():
        check_start(recipe)
    if dry_run:
        folder.check_load(recipe)
        click.echo(describe(recipe, folder, mix))
        return 0
    launch = folder.prepare(recipe, take_over=take_over)
    click.echo(describe(recipe, folder, mix))
    if prepare:
        compute_reference(recipe, folder, launch)
        return 0
    train_here(recipe, folder, launch)
    reached = folder.latest_step()
    if reached >= recipe.schedule.steps:
        click.echo(f"finished at step {reached}: {folder.checkpoints}")
    else:
        click.echo(
            f"stopped at step {reached} of {recipe.schedule.steps}; `emma train {run}` resumes from there"
        )
    return 0
