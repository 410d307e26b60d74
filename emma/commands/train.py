"""`emma train`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from emma.commands.amount import Amount

if TYPE_CHECKING:
    from emma.recipes.schema import Recipe
    from emma.tools.runs.run_folder import RunFolder

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
    help="Only write the run folder and print the variable that tells ranks their launch; a job script starts them.",
)
@click.option("--take-over", is_flag=True, help="Claim the run even if its last launch may be alive.")
@click.option(
    "--verify-checkpoints",
    is_flag=True,
    help="Compare the files of all its checkpoints with what was written; start nothing. Exit code 1: damage.",
)
@click.option(
    "--prove",
    type=click.IntRange(min=1),
    metavar="N",
    help="Compare N steps, as logged, with an independent loop in FP32; changes nothing in the run.",
)
@click.option(
    "--layers", type=click.IntRange(min=1), metavar="K", help="With --prove: the model's first K layers only."
)
@click.option(
    "--from-step",
    type=click.IntRange(min=1),
    metavar="S",
    help="With --prove: the steps after the run's checkpoint S, with its moments.",
)
@click.option(
    "--tolerance",
    type=Amount(above=0),
    metavar="NATS",
    help="With --prove: largest difference of a loss; a gradient norm may differ by 30 times that, relative, up to 0.2.  "
    "[default: 1e-5 in FP32, 2e-2 in BF16, 1e-1 in FP8]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="With --prove: where the independent loop runs.  [default: a GPU if there is one]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: where the run stands, or what was asked for."
)
def command(
    run: str,
    overrides: tuple[str, ...],
    print_command: bool,
    dry_run: bool,
    prepare: bool,
    take_over: bool,
    verify_checkpoints: bool,
    prove: int | None,
    layers: int | None,
    from_step: int | None,
    tolerance: float | None,
    device: str | None,
    as_json: bool,
) -> int:
    """Train RUN on this machine, or resume it.

    An interrupted run resumes from its latest complete checkpoint; for a finished one there is nothing to do. A
    checkpoint whose files are not what was written is set aside, and the one before is used.
    SIGTERM or Ctrl-C saves after the current step and exits with 0. The ranks' output is in RUN/logs/.

    A guard that stops the run ends the command with exit code 1 and the reason. One that replays ends the launch, writes
    the phase RUN-replay1, and the command goes on in it; so does the same command when it is called again.

    --prove N trains N steps of the run's samples with transformers' model and torch's AdamW and compares loss,
    gradient norm and learning rate of each with what Megatron logged; Megatron first trains them, in a folder of
    their own, if the run has not begun. The exit code is 1 if they differ.

    \b
    Examples:
      emma train demo schedule.steps=100 parallelism.tensor=2
      emma train demo --prove 20
    """
    from emma.base.errors import CheckFailedError
    from emma.base.extras import need
    from emma.base.sharing import shared
    from emma.checkpoints_conversion.checkpoint import check_start
    from emma.recipes.load import load_recipe
    from emma.tools.plan.alternatives import check_fits
    from emma.tools.runs.run_folder import IDENTITY, RunFolder
    from emma.tools.training.launch import (
        compute_reference,
        launch_command,
        rank_environment,
        train_here,
    )
    from emma.tools.training.plan_start import check_mix, describe
    from emma.tools.training.proven import refuse_unproven
    from emma.tools.training.replay import continued

    if prove is not None:
        if print_command or prepare or take_over:
            raise click.UsageError("--prove goes with none of --print-command, --prepare and --take-over")
        proof = {"layers": layers, "from_step": from_step, "tolerance": tolerance, "device": device}
        return _prove(run, overrides, prove, proof, dry_run=dry_run, as_json=as_json)
    if any(value is not None for value in (layers, from_step, tolerance, device)):
        raise click.UsageError("--layers, --from-step, --tolerance and --device go with --prove")
    if as_json and (print_command or prepare):
        raise click.UsageError("--print-command and --prepare have no JSON")
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
    refuse_unproven(recipe)
    if not dry_run:
        need("train", "emma train", "torch", "megatron", "transformers")
    check_fits(recipe)
    while True:
        # A guard may have ended the run and begun a phase, or do so now.
        recipe, path = continued(recipe, folder.path, write=not dry_run)
        if path != folder.path:
            click.echo(f"{folder.path}: ended by its guard; training goes on in {path}", err=True)
            folder = RunFolder(path)
        mix = check_mix(recipe)
        if folder.finished(recipe):
            said = f"{folder.path}: step {recipe.schedule.steps} is reached; nothing to do"
            _say(said, recipe, folder, as_json)
            return 0
        if not folder.latest_step():
            check_start(recipe)
        if dry_run:
            folder.check_load(recipe)
            _say(describe(recipe, folder, mix), recipe, folder, as_json)
            return 0
        with shared(folder.path):
            launch = folder.prepare(recipe, take_over=take_over)
            click.echo(describe(recipe, folder, mix), err=as_json)
            if prepare:
                compute_reference(recipe, folder, launch)
                click.echo(f"export {IDENTITY}={launch.identity}")
                return 0
            train_here(recipe, folder, launch)
        decision = folder.standing_decision(recipe)
        if decision is None:
            break
        if decision.action == "stop":
            raise CheckFailedError(decision.refusal(folder.path))
    reached = folder.latest_step()
    if reached >= recipe.schedule.steps:
        said = f"finished at step {reached}: {folder.checkpoints}"
    else:
        said = f"stopped at step {reached} of {recipe.schedule.steps}; `emma train {run}` resumes from there"
    _say(said, recipe, folder, as_json)
    return 0


def _say(text: str, recipe: Recipe, folder: RunFolder, as_json: bool) -> None:
    """The text, or as JSON where the run stands: `step` is that of its latest complete checkpoint, 0 for none."""
    import json

    facts = {"run": str(folder.path), "step": folder.latest_step(), "steps": recipe.schedule.steps}
    click.echo(json.dumps(facts | {"checkpoints": str(folder.checkpoints)}) if as_json else text)


def _prove(
    run: str, overrides: tuple[str, ...], steps: int, options: dict[str, Any], *, dry_run: bool, as_json: bool
) -> int:
    from emma.base.errors import CheckFailedError
    from emma.base.extras import need
    from emma.recipes.load import load_recipe
    from emma.tools.plan.alternatives import check_fits
    from emma.tools.training.plan_start import check_mix

    need("train", "emma train --prove", "torch", "megatron", "transformers")
    recipe = load_recipe(run, overrides)
    check_mix(recipe)
    from emma.tools.prove.command import Proof

    proof = Proof(run, overrides, steps, **options)
    if not proof.trained:
        check_fits(proof.recipe)
    click.echo(proof.describe(), err=as_json)
    if dry_run:
        return 0
    verdict = proof.prove()
    if as_json:
        import orjson

        click.echo(orjson.dumps(verdict.to_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(verdict.text())
    if not verdict.passed:
        raise CheckFailedError(f"{recipe.run_folder}: not proven; they differ first at {verdict.first_fault}")
    click.echo(f"proven: steps {proof.first + 1} to {proof.last} of {recipe.run_folder}", err=as_json)
    return 0
