"""`emma pack`: clean text → token store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from emma.base.command_group import SuggestingGroup
from emma.base.errors import CheckFailedError, UserError
from emma.base.garbage import no_garbage_collection

if TYPE_CHECKING:
    from emma.tools.pack.plan import PackSettings

__all__ = ["group"]


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Clean text → token store.

    \b
    A component of the store, <paths.store>/<component>/, holds
      shard-NNNNN.bin            token ids of consecutive documents
      documents-NNNNN.parquet    one row per document: language, source, id, place, tokens
      sources.parquet            counts of every language and split
      manifest.json              inputs, outputs with checksums, counts, settings

    data.pack of the recipe sets the components, how documents are made and the size of shards;
    model.tokenizer sets begin and end of text.
    """


@no_garbage_collection()
def _settings(run: str, overrides: tuple[str, ...]) -> PackSettings:
    # NumPy's linear algebra, which nothing here uses, starts a thread a core that spins for a tenth of a second.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from emma.base.arrow import keep_pandas_out, use_jemalloc
    from emma.recipes.load import load_recipe
    from emma.tools.pack.plan import PackSettings

    keep_pandas_out()
    use_jemalloc()
    return PackSettings.of_recipe(load_recipe(run, overrides))


def _echo_json(value: Any) -> None:
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _parse_shard(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    if value is None:
        return None
    index, slash, count = value.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal() or int(index) >= int(count):
        raise click.BadParameter(
            f"{value!r}: expected i/n with 0 ≤ i < n, e.g. 0/64 for the first of 64 array tasks"
        )
    return int(index), int(count)


run_argument = click.argument("run")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
component_option = click.option(
    "--component", "components", multiple=True, help="Only this component; repeatable."
)
workers_option = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of processes; the result is the same. [default: one per core]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@group.command()
@run_argument
@overrides_argument
@component_option
@click.option(
    "--shard",
    callback=_parse_shard,
    metavar="I/N",
    help="Pack only every N-th work unit from the I-th (0 ≤ I < N), for array tasks; then join them with --finish.",
)
@click.option("--finish", is_flag=True, help="Only join what array tasks have packed.")
@workers_option
@click.option("--dry-run", is_flag=True, help="Show what would be read and packed; write nothing.")
@json_option
def run(
    run: str,
    overrides: tuple[str, ...],
    components: tuple[str, ...],
    shard: tuple[int, int] | None,
    finish: bool,
    workers: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Tokenise the corpus of RUN into its token store, on all cores.

    It can be killed at any moment: the same command continues and writes the same bytes, with any number of
    processes or array tasks, which may run at the same time. Finished components are left alone; changed
    inputs or settings are refused.

    \b
    Examples:
      emma pack run emma_llama3_8b_bi
      emma pack run emma_llama3_8b_bi --shard $SLURM_ARRAY_TASK_ID/64 && emma pack run emma_llama3_8b_bi --finish
    """
    if shard is not None and finish:
        raise click.UsageError("--shard packs a part, --finish joins all parts: give one of them")
    from emma.base.processes import available_cores

    workers = workers or available_cores()
    settings = _settings(run, overrides)
    if dry_run:
        _show_plan(settings, list(components), as_json)
        return
    with no_garbage_collection():
        from emma.tools.pack.run import pack_store

    report = pack_store(
        settings, list(components) or None, shard=shard, finish_only=finish, workers=workers, fork=True
    )
    if as_json:
        _echo_json(report)
        return
    from emma.recipes.vocabulary import growth_of

    if (grown := growth_of(settings.tokenizer.path)) is not None:
        click.echo(f"vocabulary: {grown.sentence}")
    for name, entry in report.items():
        if entry["status"] == "unfinished":
            click.echo(
                f"{name}: {entry['units_missing']} of {entry['units']} work units are left; then --finish"
            )
            continue
        _show_report(name, entry)


def _show_report(name: str, entry: dict[str, Any]) -> None:
    from emma.tools.pack.inputs import summary

    removed = ", ".join(f"{count:,} {reason}" for reason, count in entry["removed_by"].items()) or "none"
    click.echo(
        f"{name}: {entry['status']}: {entry['tokens']:,} tokens in {entry['kept']:,} documents of "
        f"{entry['in']:,} records (removed: {removed}; cut: {entry['documents_cut']:,})"
    )
    for reason in dict.fromkeys(entry["engines_passed_over"].values()):
        click.echo(f"{name}: {reason}; {entry['engine']} encoded it")
    if entry["languages_encoded_by_the_reference"]:
        click.echo(
            f"{name}: the fast tokenizer differed from the reference, which encoded: "
            + ", ".join(entry["languages_encoded_by_the_reference"])
        )
    if (twice := entry["encoded_twice"]) and twice["of"]:
        click.echo(
            f"{name}: {twice['documents']:,} of {twice['of']:,} documents were encoded by the reference too, with the same "
            f"ids; had {twice['fault_share']:.2%} of all others, that was found with a probability of "
            f"{twice['certainty']:.2%}"
        )
    if entry["unknown_tokens"]:
        count = sum(entry["unknown_tokens"].values())
        most = sorted(entry["unknown_tokens"].items(), key=lambda item: -item[1])[:8]
        click.echo(
            f"{name}: the tokenizer lacks some of the text: {count:,} of the tokens are the one for what is unknown "
            f"({', '.join(f'{language} {number:,}' for language, number in most)})"
        )
    if entry.get("bad_lines"):
        click.echo(f"{name}: {entry['bad_lines']:,} unusable records are in quarantine.jsonl")
    if entry["inputs_passed_over"]:
        click.echo(f"{name}: passed over: {summary(entry['inputs_passed_over'])}")


def _show_plan(settings: PackSettings, components: list[str], as_json: bool) -> None:
    from collections import Counter

    from emma.tools.pack.engine import usable_engine
    from emma.tools.pack.inputs import summary
    from emma.tools.pack.plan import plan_component
    from emma.tools.pack.run import engine_for

    settings.tokenizer.check()
    names = components or list(settings.pack.components)
    for name in names:
        if name not in settings.pack.components:
            raise UserError(f"no component {name!r} in data.pack.components")
    engine, _ = usable_engine(engine_for(settings, names)[0], settings.tokenizer)
    rows: list[dict[str, Any]] = []
    for name in names:
        plan = plan_component(settings, name)
        rows.append(
            {
                "component": name,
                "files": len(plan.inputs),
                "formats": dict(Counter(file.kind for file in plan.inputs)),
                "bytes": sum(file.bytes for file in plan.inputs),
                "units": len(plan.units),
                "engine": engine,
                "folder": str(settings.store / name),
                "passed_over": plan.inputs_passed_over,
            }
        )
    if as_json:
        _echo_json(rows)
        return
    for row in rows:
        formats = ", ".join(f"{count:,} {kind}" for kind, count in sorted(row["formats"].items()))
        click.echo(
            f"{row['component']}: {row['files']:,} files ({formats}), {row['bytes'] / 1e6:,.1f} MB on disk, "
            f"{row['units']:,} work units, engine {row['engine']} → {row['folder']}"
        )
        if row["passed_over"]:
            click.echo(f"{row['component']}: passed over: {summary(row['passed_over'])}")


@group.command()
@run_argument
@overrides_argument
@component_option
@workers_option
@click.option(
    "--no-checksums", is_flag=True, help="Skip the checksums; every document and token is still read."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Draws the documents that are encoded again. [default: a new one each time]",
)
@json_option
def verify(
    run: str,
    overrides: tuple[str, ...],
    components: tuple[str, ...],
    workers: int | None,
    no_checksums: bool,
    seed: int | None,
    as_json: bool,
) -> None:
    """Check the token store of RUN: every file, document and token against manifest and rules.

    Documents drawn at random are also made of their text once more, encoded by the reference and looked for in the
    store: so many that wrong ids in data.pack.fault_share of the documents are found with a probability above 99.9 %.

    Exits with 1 on any fault, naming file, document and values.
    """
    import secrets

    from emma.base.processes import available_cores
    from emma.tools.pack.recheck import recheck_component
    from emma.tools.pack.verify import verify_component

    settings = _settings(run, overrides)
    seed = secrets.randbelow(2**32) if seed is None else seed
    result: dict[str, dict[str, Any]] = {}
    for name in components or tuple(settings.pack.components):
        faults, seen = verify_component(settings.store / name, checksums=not no_checksums, workers=workers)
        again: dict[str, Any] = {"not_encoded_again": "the store has other faults"}
        if not faults:
            faults, again = recheck_component(settings, name, seed, workers or available_cores())
        result[name] = {"faults": faults, **seen, **again}
    if as_json:
        _echo_json(result)
    else:
        for name, entry in result.items():
            click.echo(
                f"{name}: {entry['tokens']:,} tokens, {entry['documents']:,} documents, {entry['shards']:,} "
                "shards: " + (f"{len(entry['faults'])} faults" if entry["faults"] else "no fault")
            )
            if reason := entry.get("not_encoded_again"):
                click.echo(f"{name}: no document was encoded again: {reason}")
            else:
                click.echo(
                    f"{name}: {entry['encoded_again']:,} documents were encoded again (seed {entry['seed']})"
                )
    faults = [fault for entry in result.values() for fault in entry["faults"]]
    if faults:
        raise CheckFailedError("\n".join(["the store has faults:", *faults]))


@group.command()
@run_argument
@overrides_argument
@component_option
@click.option("--language", help="Only this language or pair, e.g. swh_Latn or eng_Latn-fra_Latn.")
@click.option(
    "--count", type=click.IntRange(min=1), default=3, show_default=True, help="Documents per component."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed shows other documents.")
@json_option
def peek(
    run: str,
    overrides: tuple[str, ...],
    components: tuple[str, ...],
    language: str | None,
    count: int,
    seed: int,
    as_json: bool,
) -> None:
    """Show some packed documents of RUN as text, control tokens spelled out."""
    from emma.recipes.compose import nearest
    from emma.tools.pack.peek import Decoder, peek_documents
    from emma.tools.pack.store import open_component

    settings = _settings(run, overrides)
    decode = None
    found = []
    known: set[str] = set()
    for name in components or tuple(settings.pack.components):
        component = open_component(settings.store / name)
        known.update(component.sources["language"].to_pylist())
        if (
            language is not None
            and not components
            and language not in component.sources["language"].to_pylist()
        ):
            continue
        decode = decode or Decoder(settings.tokenizer.path, component.settings["tokenizer_sha256"])
        found += list(peek_documents(component, decode, language=language, count=count, seed=seed))
    if not found:
        raise UserError(
            f"{settings.store}: no document of {language or 'any language'} in it; {nearest(language or '', sorted(known)[:20])}"
        )
    if as_json:
        _echo_json([vars(document) for document in found])
        return
    for document in found:
        click.secho(
            f"── {document.component} {document.language} {document.split} · {document.document_id} "
            f"({document.source}) · shard {document.shard} row {document.row} · {document.tokens:,} tokens",
            bold=True,
        )
        click.echo(document.text)
