"""`emma mix`: token store and recipe → training and validation datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.command_group import SuggestingGroup
from emma.base.errors import CheckFailedError, UserError
from emma.commands.mix_optimise import optimise

if TYPE_CHECKING:
    from emma.recipes.schema import Recipe
    from emma.tools.mix.fertility import Fertility
    from emma.tools.mix.plan import MixPlan

__all__ = ["group"]


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Token store and recipe → training and validation datasets.

    \b
    A mix, <paths.mix>/<data.name>/, holds
      mix.json            samples, fingerprint, groups
      plan.parquet        every source: epochs, tokens, documents, samples
      train/              rows and samples in the order of training; plain Megatron indices beside links to the store
      validation/GROUP/   the same for every validation group

    No token is copied: changing shares writes new rows. data.mix of the recipe sets shares, categories, caps,
    packing, seed and validation groups; the budget is schedule.steps × batch.global × batch.sequence_length.
    """


def _recipe(run: str, overrides: tuple[str, ...]) -> Recipe:
    from emma.base.arrow import keep_pandas_out
    from emma.recipes.load import load_recipe

    keep_pandas_out()
    return load_recipe(run, overrides)


def _echo_json(value: Any) -> None:
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


run_argument = click.argument("run")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
statistics_option = click.option(
    "--stats",
    "statistics",
    multiple=True,
    metavar="CSV...",
    help="Published counts (lang_code, num_texts, num_tokens; or lang_pair, src_num_tokens, ...) in words. They decide "
    "the resource categories and, where nothing is packed yet, the sizes. More files may follow.",
)


@group.command()
@click.argument("arguments", nargs=-1, metavar="[RUN] [SECTION.KEY=VALUE]...")
@click.option(
    "--data",
    "data_name",
    metavar="NAME",
    help="Plan a data recipe without a run; its budget is data.mix.tokens.",
)
@click.option("--tokens", type=click.IntRange(min=1), help="Budget in tokens, instead of the recipe's.")
@statistics_option
@click.option(
    "--fertility",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PARQUET",
    help="Tokens per word that `emma corpus stats RUN --tokens` measured, for --stats before anything is packed.  "
    "[default: Llama 3's, by script]",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for plan.parquet, plan.json and plan.svg.  [default: <mix folder>.plan for a RUN, none for --data]",
)
@json_option
def plan(
    arguments: tuple[str, ...],
    data_name: str | None,
    tokens: int | None,
    statistics: tuple[str, ...],
    fertility: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Plan the mix of RUN: epochs and tokens of every language and pair, by component and resource category.

    Uses the store's true counts or, with --stats and before anything is packed, published ones. Exits with 1
    if a gate fails: a component short of its share, the budget out of reach, a validation group too small.

    \b
    Examples:
      emma mix plan emma_llama3_8b_bi
      emma mix plan --data mala_bilingual --stats monolingual_tokens.csv bilingual_tokens.csv
    """
    from emma.base.files import write_json, write_text
    from emma.tools.mix.report import plan_lines, plan_summary, plan_svg

    files = [Path(name) for name in (*statistics, *(a for a in arguments if a.endswith(".csv")))]
    others = [argument for argument in arguments if not argument.endswith(".csv")]
    if data_name is not None:
        solved = _plan_data(data_name, others, tokens, files, fertility)
    else:
        if not others or "=" in others[0]:
            raise click.UsageError("name a RUN, or a data recipe with --data")
        recipe = _recipe(others[0], tuple(others[1:]))
        solved = _plan_run(recipe, tokens, files, fertility)
        output = output or recipe.mix_folder.with_name(recipe.mix_folder.name + ".plan")
    if output is not None:
        import pyarrow.parquet as pq

        output.mkdir(parents=True, exist_ok=True)
        pq.write_table(solved.table(), output / "plan.parquet", compression="zstd")
        write_json(output / "plan.json", plan_summary(solved))
        write_text(output / "plan.svg", plan_svg(solved))
    if as_json:
        _echo_json(plan_summary(solved))
    else:
        for line in plan_lines(solved):
            click.echo(line)
        if output is not None:
            click.echo(f"every source: {output / 'plan.parquet'}, {output / 'plan.svg'}")
    solved.check()


def _plan_data(
    name: str, overrides: list[str], tokens: int | None, files: list[Path], fertility: Path | None
) -> MixPlan:
    from emma.recipes.load import load_section
    from emma.tools.mix.fertility import read_fertility, shipped_fertility
    from emma.tools.mix.plan import make_plan
    from emma.tools.mix.sources import sources_of_statistics

    if overrides:
        raise click.UsageError(
            f"{overrides[0]}: --data plans the data recipe as it is; overrides go with a RUN"
        )
    data = load_section("data", name)
    if not files:
        raise click.UsageError(
            "--data plans from published counts: give --stats CSV; with a RUN the store's are used"
        )
    budget = tokens or data.mix.tokens
    if budget is None:
        raise UserError(f"data recipe {name}: has no data.mix.tokens; give --tokens")
    table = shipped_fertility() if fertility is None else read_fertility(fertility)
    plan = make_plan(data.mix, sources_of_statistics(data, files, table), budget)
    plan.notes.append(_whose(table))
    return plan


def _whose(table: Fertility) -> str:
    return f"published words became tokens by the fertility of {table.tokenizer} ({table.source})"


def _plan_run(recipe: Recipe, tokens: int | None, files: list[Path], fertility: Path | None) -> MixPlan:
    from dataclasses import replace

    from emma.tools.mix.fertility import read_fertility, shipped_fertility
    from emma.tools.mix.plan import make_plan
    from emma.tools.mix.prepare import MixSettings, plan_mix
    from emma.tools.mix.sources import sources_of_statistics

    settings = MixSettings.of_recipe(recipe)
    if tokens is not None:
        settings = replace(settings, samples=-(-tokens // settings.sequence_length))
    if files and not settings.store.is_dir():
        table = shipped_fertility() if fertility is None else read_fertility(fertility)
        counted_in = recipe.data.mix.counted_in
        foreign = table.foreign(counted_in, recipe.model.vocab_size, settings.tokenizer_sha256)
        sources = sources_of_statistics(recipe.data, files, table, foreign)
        plan = make_plan(recipe.data.mix, sources, settings.tokens, settings.sequence_length)
        plan.notes.append(_whose(table))
        return plan
    if fertility is not None:
        raise UserError(
            f"{settings.store}: the store's own counts are used; --fertility plans before anything is packed"
        )
    return plan_mix(settings, files)


@group.command()
@run_argument
@overrides_argument
@statistics_option
@click.option(
    "--replace", is_flag=True, help="Replace another mix in the folder; runs begun with it cannot continue."
)
@click.option("--dry-run", is_flag=True, help="Plan, and say what building takes; write nothing.")
@json_option
def build(
    run: str,
    overrides: tuple[str, ...],
    statistics: tuple[str, ...],
    replace: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the mix of RUN from its token store; reads no .bin, copies no token.

    The same recipe and store give the same bytes; if the same mix is already there, it is left alone. The folder
    appears when it is complete; a second command waits for the first. A machine with too little memory or disk is
    refused; --dry-run says what is needed.
    """
    from emma.tools.mix.build import build_mix, sources_of_nothing
    from emma.tools.mix.needs import needs_of
    from emma.tools.mix.prepare import MixSettings, prepare
    from emma.tools.mix.report import plan_lines, plan_summary

    files = [Path(name) for name in (*statistics, *(a for a in overrides if a.endswith(".csv")))]
    recipe = _recipe(run, tuple(a for a in overrides if not a.endswith(".csv")))
    settings = MixSettings.of_recipe(recipe)
    if dry_run:
        prepared = prepare(settings, files)
        solved, needs = prepared.plan, needs_of(settings, prepared)
        shortages = needs.shortages(settings.folder)
        if as_json:
            _echo_json({**plan_summary(solved), "needs": {**needs.to_dict(), "shortages": shortages}})
        else:
            for line in (
                *plan_lines(solved),
                *needs.lines(),
                *(f"this machine: {each}" for each in shortages),
            ):
                click.echo(line)
        solved.check()
        return
    info = build_mix(settings, replace=replace, statistics=files)
    nothing = sources_of_nothing(info)
    if as_json:
        _echo_json({**info.to_dict(), "folder": str(info.folder), "sources_of_nothing": nothing})
        return
    from emma.tools.mix.layout import read_dataset_info

    train = read_dataset_info(info.train)
    click.echo(
        f"{info.folder}: {info.samples:,} samples of {info.sequence_length:,} tokens ({info.tokens:,}), "
        f"{train.rows:,} rows of {sum(1 for source in train.sources if source.documents):,} sources, packing "
        f"{info.packing}, padding {100 * train.padding:.3f} %, fingerprint {info.fingerprint[:12]}"
    )
    click.echo(
        f"documents cut: {train.cut_documents:,} ({100 * train.cut_documents / max(train.documents, 1):.2f} "
        "%)"
    )
    if nothing:
        click.echo(
            f"{len(nothing)} sources give nothing, because each of their documents is more than twice what was planned: "
            f"{', '.join(nothing[:12])}{', …' if len(nothing) > 12 else ''}"
        )
    for group_name, entry in info.groups.items():
        click.echo(f"validation {group_name}: {entry['tokens']:,} tokens, {entry['samples']:,} samples")


@group.command()
@run_argument
@overrides_argument
@statistics_option
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for index.html and verified.json.  [default: <mix folder>.verified]",
)
@json_option
def verify(
    run: str, overrides: tuple[str, ...], statistics: tuple[str, ...], output: Path | None, as_json: bool
) -> None:
    """Check the mix of RUN: every row, sample and index against the store, the plan and the recipe.

    Also proves that every source gives what was planned, to the document, and that each part of the run is like the
    whole (a uniform order fails at most once in a million times), and draws it: index.html.

    Exits with 1 on any fault, naming file, row and values.
    """
    from emma.base.files import write_json, write_text
    from emma.tools.mix.layout import read_mix
    from emma.tools.mix.prepare import MixSettings, expected_fingerprints
    from emma.tools.mix.report import verified_page
    from emma.tools.mix.verify import verify_mix

    settings = MixSettings.of_recipe(_recipe(run, overrides))
    faults, fingerprint, earlier = [], None, None
    try:
        fingerprint, earlier = expected_fingerprints(settings, [Path(name) for name in statistics])
    except UserError as error:
        faults.append(str(error))
    found = verify_mix(settings.folder, fingerprint=fingerprint, earlier=earlier)
    found.faults[:0] = faults
    target = output or settings.folder.with_name(settings.folder.name + ".verified")
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / "verified.json", found.to_dict())
        write_text(target / "index.html", verified_page(read_mix(settings.folder), found))
    except OSError as error:
        # A mix may be verified where nothing may be written.
        if output is not None:
            raise UserError(f"{target}: cannot be written ({error.strerror})") from None
        found.notes.append(f"{target}: not written ({error.strerror})")
    if as_json:
        _echo_json(found.to_dict())
    else:
        click.echo(
            f"{settings.folder}: {found.samples:,} samples, {found.rows:,} rows, {found.groups:,} validation groups: "
            + (f"{len(found.faults)} faults" if found.faults else "no faults")
        )
        if found.order is not None:
            click.echo(found.order.summary())
        if found.furthest is not None:
            click.echo(f"furthest from its plan: {found.furthest}")
        for note in found.notes:
            click.echo(f"note: {note}")
        click.echo(f"page: {target / 'index.html'}")
    if found.faults:
        raise CheckFailedError("\n".join(["the mix has faults:", *found.faults]))


@group.command()
@run_argument
@overrides_argument
@click.option("--language", help="Only this language or pair, e.g. swh_Latn or eng_Latn-fra_Latn.")
@click.option("--group", "group_name", help="A validation group instead of the training data.")
@click.option("--sample", type=click.IntRange(min=0), help="All of this sample instead of single documents.")
@click.option("--count", type=click.IntRange(min=1), default=3, show_default=True, help="Documents.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed shows other documents.")
@json_option
def peek(
    run: str,
    overrides: tuple[str, ...],
    language: str | None,
    group_name: str | None,
    sample: int | None,
    count: int,
    seed: int,
    as_json: bool,
) -> None:
    """Show documents of the mix of RUN as training reads them, control tokens spelled out."""
    from emma.tools.mix.layout import read_dataset_info, read_mix
    from emma.tools.mix.peek import peek_rows, peek_sample
    from emma.tools.pack.peek import Decoder
    from emma.tools.pack.tokenizer_file import TokenizerFile

    recipe = _recipe(run, overrides)
    mix = read_mix(recipe.mix_folder)
    info = read_dataset_info(mix.train if group_name is None else mix.validation(group_name))
    decode = Decoder(
        TokenizerFile(recipe.model.tokenizer, recipe.model.vocab_size).path, mix.tokenizer_sha256
    )
    rows = (
        peek_rows(info, decode, language=language, count=count, seed=seed)
        if sample is None
        else peek_sample(info, decode, sample)
    )
    if as_json:
        _echo_json([vars(row) for row in rows])
        return
    for row in rows:
        click.secho(
            f"── sample {row.sample} row {row.row} · {row.component} {row.language}"
            + (f" ({row.category})" if row.category else "")
            + f" · {row.shard} byte {row.offset} · {row.tokens:,} tokens",
            bold=True,
        )
        click.echo(row.text)


group.add_command(optimise)
