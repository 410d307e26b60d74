"""`make demo`: every stage on this machine, on real text, in minutes, through the commands that a user would type."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import click

from emma.recipes.load import load_recipe
from emma.tools.demo.commands import run_command
from emma.tools.demo.driver import Record, exclusive, run_steps
from emma.tools.demo.steps import compare_steps, demo_steps


def overrides_for(folder: Path) -> list[str]:
    """Overrides that put everything below `folder`; none for `demo`, which the recipes name themselves."""
    if folder == Path("demo"):
        return []
    paths = [f"paths.{name}={folder / name}" for name in ("corpus", "store", "mix", "runs")]
    return [*paths, f"model.tokenizer.path={folder}/tokenizer", f"start.checkpoint={folder}/base-megatron"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option(
    "--compare",
    is_flag=True,
    help="Then also train without and with translations and with optimised shares, and compare.",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for everything that is written.",
)
@click.option("--base-steps", type=click.IntRange(min=1), help="Training steps of the base model.")
@click.option("--list", "only_list", is_flag=True, help="Print the commands without running them.")
def command(
    overrides: tuple[str, ...], compare: bool, folder: Path, base_steps: int | None, only_list: bool
) -> None:
    """Run every stage of the project on this machine: no GPU, no download, about ten minutes on two cores.

    Run again, the demo continues where it stopped or says that it is done. SECTION.KEY=VALUE overrides the recipe
    `demo`, e.g. schedule.steps=30 for a quick look.
    """
    changes = [*overrides_for(folder), *overrides]
    recipe = load_recipe("demo", changes)
    base = folder / "base"
    steps = demo_steps(recipe, base, changes, ("--steps", str(base_steps)) if base_steps else ())
    if compare:
        pair = [load_recipe(name, changes) for name in ("demo_mono", "demo_bi")]
        steps += compare_steps(pair[0], pair[1], base, changes)
    if only_list:
        for step in steps:
            click.echo(f"# {step.title}\n{shlex.join(step.command)}")
        return
    started = time.monotonic()
    with exclusive(folder) as lock:
        ran = run_steps(steps, Record(folder), lock)
    run = recipe.run_folder
    click.secho("\nThe demo is done" + (f" ({time.monotonic() - started:.0f} s)." if ran else "."), bold=True)
    report = run / "report"
    click.echo(
        f"  page     {report / 'index.html'}\n  atlas    {report / 'atlas.html'}\n  release  {run / 'release'}"
    )


if __name__ == "__main__":
    run_command(command)
