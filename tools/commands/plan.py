"""`emma plan`."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="List every alternative layout and every reason.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TOKENS",
    help="Measured tokens a second and GPU, instead of the estimate.",
)
@click.option(
    "--pue", type=click.FloatRange(min=1), help="Power of the site over power of its nodes. [default: 1.2]"
)
@click.option(
    "--grid", type=click.FloatRange(min=0), metavar="G", help="CO2 of electricity, g/kWh. [default: 450]"
)
@click.option(
    "--storage",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Speed of saving, GB/s over all ranks. [default: 5]",
)
def command(
    run: str,
    overrides: tuple[str, ...],
    as_json: bool,
    everything: bool,
    speed: float | None,
    pue: float | None,
    grid: float | None,
    storage: float | None,
) -> None:
    """Say what RUN takes before it runs: memory, time, GPU-hours, energy, checkpoints, and which layouts would do.

    Needs no GPU. A run that does not fit into its devices' memory is refused (exit code 2) with one that does. What
    cannot be known from the recipe is assumed, and said.

    \b
    Examples:
      emma plan emma_llama3_8b_bi
      emma plan emma_llama3_8b_bi layout=h100_512_fp8 --json
      emma plan emma_llama3_8b_bi parallelism.tensor=1 parallelism.sequence=false
    """
    from recipes.load import load_with_origins
    from tools.plan.cost import Assumptions
    from tools.plan.plan import make_plan
    from tools.plan.text import plan_text

    recipe, composed = load_with_origins(run, overrides)
    given = {"pue": pue, "grid_g_per_kwh": grid, "storage_gb_per_s": storage}
    assumptions = Assumptions(**{name: value for name, value in given.items() if value is not None})
    plan = make_plan(recipe, assumptions, speed, composed.origin(("parallelism",)))
    if as_json:
        import orjson

        click.echo(orjson.dumps(plan.to_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(plan_text(plan, all_alternatives=everything))
