"""`emma plan`."""

from __future__ import annotations

import click

from emma.commands.amount import Amount

__all__ = ["command"]


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "everything", is_flag=True, help="List every alternative layout and every reason.")
@click.option(
    "--speed",
    type=Amount(above=0),
    metavar="TOKENS",
    help="Measured tokens per second per GPU, instead of the estimate.",
)
@click.option(
    "--simulate",
    "with_simulation",
    is_flag=True,
    help="Also build every pipeline stage with Megatron, on the CPU, at the full number of ranks.",
)
@click.option(
    "--pue",
    type=Amount(at_least=1),
    help="Power of the site divided by power of its nodes. [default: 1.2]",
)
@click.option(
    "--grid",
    type=Amount(at_least=0),
    metavar="G",
    help="CO2 per kWh of electricity, in grams. [default: 450]",
)
@click.option(
    "--storage",
    type=Amount(above=0),
    metavar="GB",
    help="Speed of saving, GB/s by all ranks together. [default: 5]",
)
def command(
    run: str,
    overrides: tuple[str, ...],
    as_json: bool,
    everything: bool,
    speed: float | None,
    with_simulation: bool,
    pue: float | None,
    grid: float | None,
    storage: float | None,
) -> int:
    """Say what RUN takes before it runs: memory, time, GPU-hours, energy, checkpoints, and which other
    layouts fit.

    Needs no GPU. A run that does not fit into its devices' memory is refused (exit code 2), and a layout that
    fits is named. What the recipe does not say is assumed, and listed as such.

    --simulate takes about a minute and, where the machine has it, 8 bytes of memory per parameter of a rank.
    If Megatron builds something other than what was planned, the exit code is 1.

    \b
    Examples:
      emma plan emma_llama3_8b_bi
      emma plan emma_llama3_8b_bi layout=h100_512_fp8 --json
      emma plan emma_llama3_8b_bi layout=h100_512_bf16 parallelism.pipeline=2 batch.micro=1 --simulate
    """
    from emma.recipes.load import load_with_origins
    from emma.tools.arithmetic.cost import Assumptions
    from emma.tools.plan.plan import make_plan
    from emma.tools.plan.text import plan_text, simulation_text

    recipe, composed = load_with_origins(run, overrides)
    given = {"pue": pue, "grid_g_per_kwh": grid, "storage_gb_per_s": storage}
    assumptions = Assumptions(**{name: value for name, value in given.items() if value is not None})
    plan = make_plan(recipe, assumptions, speed, composed.origin(("parallelism",)))
    simulation = None
    if with_simulation:
        from emma.tools.plan.simulate import simulate

        simulation = simulate(recipe)
    if as_json:
        import orjson

        value = plan.to_dict() | ({"simulation": simulation.to_dict()} if simulation else {})
        click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo(plan_text(plan, all_alternatives=everything))
        if simulation:
            click.echo("\n" + simulation_text(simulation))
    return 1 if simulation and simulation.faults else 0
