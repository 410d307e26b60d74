"""`make demo`: the whole road on this machine, with real text, in minutes, through the commands that a user types."""

from __future__ import annotations

import time
from pathlib import Path

import click

from recipes.load import load_recipe
from tools.demo.commands import run_command
from tools.demo.driver import Record, exclusive, run_steps
from tools.demo.steps import compare_steps, demo_steps

FOLDER = Path("demo")
"""Everything the demo writes lies below it."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--compare", is_flag=True, help="Afterwards also train with and without translations, and compare."
)
@click.option("--list", "only_list", is_flag=True, help="Print the commands and stop.")
def command(compare: bool, only_list: bool) -> None:
    """Run every stage of the project on this machine: no GPU, no download, about ten minutes on two cores.

    Everything is written below demo/. Called again, it goes on where it stopped, or says that it is done.
    """
    recipe = load_recipe("demo")
    base = FOLDER / "base"
    steps = demo_steps(recipe, base)
    if compare:
        steps += compare_steps(load_recipe("demo_mono"), load_recipe("demo_bi"), base)
    if only_list:
        for step in steps:
            click.echo(f"{' '.join(step.command)}    # {step.title}")
        return
    started = time.monotonic()
    with exclusive(FOLDER) as lock:
        ran = run_steps(steps, Record(FOLDER), lock)
    run = recipe.run_folder
    click.secho("\nThe demo is done" + (f" ({time.monotonic() - started:.0f} s)." if ran else "."), bold=True)
    click.echo(f"  page     {run / 'report' / 'index.html'}\n  release  {run / 'release'}")


if __name__ == "__main__":
    run_command(command)
