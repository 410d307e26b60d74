"""`emma recipe`: list, resolve and explain recipes."""

from __future__ import annotations

import click

from emma.base.command_group import SuggestingGroup

__all__ = ["group"]


@click.group(cls=SuggestingGroup)
def group() -> None:
    """List, show and explain recipes."""


@group.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@click.option("--origins", is_flag=True, help="Add to each value where it was set.")
def show(run: str, overrides: tuple[str, ...], as_json: bool, origins: bool) -> None:
    """Print the resolved recipe of RUN, with all defaults.

    RUN is a name in recipes/runs, the path of a YAML file, or a run folder.

    \b
    Examples:
      emma recipe show emma_llama3_8b_bi
      emma recipe show emma_llama3_8b_bi layout=h100_512_fp8 schedule.learning_rate=2e-5
    """
    from emma.recipes.annotate import annotated_yaml
    from emma.recipes.load import dump_yaml, load_with_origins

    if as_json and origins:
        raise click.UsageError(
            "--origins writes YAML comments, which JSON lacks; give either --json or --origins"
        )
    recipe, composed = load_with_origins(run, overrides)
    if as_json:
        import orjson

        click.echo(orjson.dumps(recipe.to_dict(), option=orjson.OPT_INDENT_2).decode())
    elif origins:
        click.echo(annotated_yaml(recipe, composed), nl=False)
    else:
        click.echo(f"# sha256 {recipe.sha256}\n{dump_yaml(recipe)}", nl=False)


@group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the shipped runs and the names that sections can take."""
    from emma.recipes.compose import FOLDERS, LAYOUTS, list_names
    from emma.recipes.load import load_recipe

    runs = {name: load_recipe(name) for name in list_names("runs")}
    names = {key: list_names(folder) for key, folder in {**FOLDERS, "layout": LAYOUTS}.items()}
    if as_json:
        import orjson

        rows = {
            name: {
                "description": recipe.description,
                "model": recipe.model.name,
                "data": recipe.data.name,
                "steps": recipe.schedule.steps,
                "tokens": recipe.total_tokens,
                "sha256": recipe.sha256,
            }
            for name, recipe in runs.items()
        }
        click.echo(orjson.dumps({"runs": rows, **names}, option=orjson.OPT_INDENT_2).decode())
        return
    width = max(map(len, runs))
    click.echo("runs")
    for name, recipe in runs.items():
        click.echo(f"  {name:{width}}  {recipe.description}")
    for key, values in names.items():
        click.echo(click.wrap_text(f"{key}: {', '.join(values)}", 100, "", "  "))


@group.command()
@click.argument("key", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(key: str, as_json: bool) -> None:
    """Explain KEY: type, default, meaning and unit. For a section, explain all its keys.

    \b
    Examples:
      emma recipe explain
      emma recipe explain parallelism
      emma recipe explain data.mix.components.code.max_epochs
    """
    from dataclasses import asdict

    from emma.recipes.explain import explain as documentation

    found = documentation(key)
    if as_json:
        import orjson

        click.echo(orjson.dumps([asdict(entry) for entry in found], option=orjson.OPT_INDENT_2).decode())
        return
    for entry in found:
        click.echo(f"{entry.key}: {entry.type} (default: {entry.default})")
        click.echo(click.wrap_text(entry.description, 110, "  ", "  "))
