"""`emma corpus fetch`: brings a data recipe's sources from the Hub."""

from __future__ import annotations

import click

from emma.base.errors import CheckFailedError

__all__ = ["fetch"]


@click.command()
@click.argument("run")
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option(
    "--languages",
    metavar="CODE,CODE,...",
    help="Only files of these languages (as the files' names spell them), and of pairs of two of them.",
)
@click.option("--sources", metavar="NAME,NAME,...", help="Only these sources of the recipe.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Files that are fetched at once.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would be fetched, and whether it fits; write nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fetch(
    run: str,
    overrides: tuple[str, ...],
    languages: str | None,
    sources: str | None,
    workers: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Fetch the sources of RUN's data recipe from the Hub to where the recipe reads them.

    \b
    A source whose `url` is an address of a data set on the Hub is fetched:
      https://huggingface.co/datasets/OWNER/NAME[/tree/REVISION[/FOLDER]]
    Files that the source's `path` matches go below the fixed part of it, under their names in the data set (or FOLDER).
    Each is checked against the checksum that the Hub states. What arrived is kept: the same command continues after an
    interruption and fetches only what is missing or has changed. <fixed part of path>/.fetched/manifest.json names the
    commit and all checksums.

    Data sets whose terms must be accepted first, and sources that are not on the Hub, are named. A token is taken from
    HF_TOKEN or `hf auth login`, another server from HF_ENDPOINT. The exit code is 1 if something that was asked for could
    not be fetched.

    \b
    Examples:
      emma corpus fetch emma_llama3_8b_bi --dry-run
      emma corpus fetch emma_llama3_8b_bi --languages eng_Latn,yor_Latn,swh_Latn
    """
    from emma.recipes.load import load_recipe
    from emma.tools.corpus.build import build_of
    from emma.tools.corpus.fetch import fetch_sources, plan_fetch

    chosen = None if languages is None else {each.strip() for each in languages.split(",")}
    named = None if sources is None else {each.strip() for each in sources.split(",")}
    plan = plan_fetch(build_of(load_recipe(run, overrides)).corpus, chosen, named)
    if not dry_run:
        fetch_sources(plan, workers)
    if as_json:
        import orjson

        click.echo(orjson.dumps(plan.to_dict(), option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo("\n".join(plan.lines(fetched=not dry_run)))
    if plan.faults:
        raise CheckFailedError("not fetched: " + "; ".join(plan.faults))
