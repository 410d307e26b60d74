"""`emma corpus`: turns raw text into clean, deduplicated, split text with statistics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.command_group import SuggestingGroup
from emma.commands.corpus_fetch import fetch
from emma.commands.corpus_languages import languages

if TYPE_CHECKING:
    from emma.tools.corpus.stage import Build

__all__ = ["group"]

_STAGES = click.Choice(["integrated", "filtered", "deduplicated", "split"])
_KINDS = click.Choice(["monolingual", "parallel", "code", "papers", "books", "instruction"])


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Turn raw text into clean, deduplicated, split text with statistics.

    \b
    The run's data recipe (data.corpus) sets the sources, filters and limits. Each stage writes
    <paths.corpus>/<stage>/<kind>/<language or pair>/part-NNNNN.parquet:
      integrated     all documents of the sources: normalised text, ISO codes, provenance
      filtered       without documents that a rule removes
      deduplicated   without exact and near copies
      split          with a column that assigns documents to training or validation
    """


def _echo_json(value: Any) -> None:
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode())


def _build(run: str, overrides: tuple[str, ...], workers: int | None = None) -> Build:
    from emma.recipes.load import load_recipe
    from emma.tools.corpus.build import build_of

    return build_of(load_recipe(run, overrides), workers)


run_argument = click.argument("run")
overrides_argument = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@group.command()
@run_argument
@overrides_argument
@click.option("--until", type=_STAGES, default="split", show_default=True, help="Last stage to build.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes; any number gives the same result. [default: one per core]",
)
@click.option("--slurm", is_flag=True, help="Build in consecutive Slurm job arrays; the result is the same.")
@click.option(
    "--tasks",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="With --slurm: tasks per array.",
)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    help="With --slurm: most tasks that run at once. [default: all]",
)
@click.option(
    "--time", "time_limit", default="24:00:00", show_default=True, help="With --slurm: time limit per task."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show which files would be read and which stages are built; write nothing.",
)
@json_option
def build(
    run: str,
    overrides: tuple[str, ...],
    until: str,
    workers: int | None,
    slurm: bool,
    tasks: int,
    concurrent: int | None,
    time_limit: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the corpus of RUN's data recipe.

    An interrupted build resumes where it stopped, and finished stages are skipped. A stage is rebuilt when
    its settings, the previous stage or the source files have changed.

    \b
    Examples:
      emma corpus build demo
      emma corpus build demo --until filtered --workers 4
      emma corpus build demo data.corpus.split.share=0.05
      emma corpus build emma_llama3_8b_bi --slurm --tasks 500 --concurrent 100
    """
    from emma.tools.corpus.build import build_corpus, plan_build, totals

    work = _build(run, overrides, workers)
    if dry_run:
        plan = plan_build(work)
        if as_json:
            _echo_json(plan)
            return
        for source in plan["sources"]:
            click.echo(
                f"{source['source']:24} {source['kind']:12} {source['files']:6} files {source['bytes']:16,} bytes"
            )
        for stage, state in plan["stages"].items():
            click.echo(f"{stage:24} {state}")
        if needs := plan.get("deduplication"):
            click.echo(
                f"to find copies of {needs['documents']:,} documents: {needs['memory'] / 2**30:.1f} GiB of memory a process, "
                f"{needs['disk'] / 1e9:.1f} GB of disk for hashes, up to {needs['ranges']:,} tasks at once"
            )
        return
    if slurm:
        from emma.recipes.load import load_recipe
        from emma.tools.corpus.slurm import SlurmBuild, submit

        cluster = load_recipe(run, overrides).cluster.slurm
        jobs = submit(work, SlurmBuild(tasks, concurrent, time_limit, cluster), until)
        if as_json:
            _echo_json(jobs)
            return
        for job in jobs:
            click.echo(f"{job['job']:>10}  {job['stage']:13} {job['phase']:8} {job['tasks']:6} tasks")
        click.echo(f"logs: {work.root}/logs" if jobs else "all stages are built")
        return
    build_corpus(work, until)
    found = totals(work)
    if as_json:
        _echo_json(found)
        return
    for stage, counts in found.items():
        removed = ", ".join(f"{rule} {count:,}" for rule, count in counts["removed_by"].items()) or "nothing"
        click.echo(f"{stage:13} {counts['in']:12,} in {counts['kept']:12,} kept   removed: {removed}")


@group.command()
@run_argument
@overrides_argument
@click.option("--stage", type=_STAGES, help="Only this stage. [default: the last one built]")
@click.option("--languages", is_flag=True, help="One row per language or pair, not per resource category.")
@click.option("--kind", type=_KINDS, help="Only this kind.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="Published statistics: columns lang_code num_tokens num_texts, or lang_pair tot_num_tokens src_num_texts.",
)
@click.option(
    "--tokens", is_flag=True, help="Also count tokens of the run's tokenizer (reads the whole stage once)."
)
@click.option("--plots", is_flag=True, help="Draw plots into <paths.corpus>/statistics (needs matplotlib).")
@json_option
def stats(
    run: str,
    overrides: tuple[str, ...],
    stage: str | None,
    languages: bool,
    kind: str | None,
    against: Path | None,
    tokens: bool,
    plots: bool,
    as_json: bool,
) -> None:
    """Show what the corpus holds: documents, characters, bytes, whitespace tokens, resource categories.

    The tables are also in <paths.corpus>/statistics, as parquet and CSV.

    \b
    Examples:
      emma corpus stats demo
      emma corpus stats demo --languages --kind monolingual
      emma corpus stats demo --against monolingual_tokens.csv
    """
    from emma.tools.corpus.report import category_lines, comparison_lines, language_lines
    from emma.tools.corpus.statistics import compare, published, statistics, summary

    work = _build(run, overrides)
    table = statistics(work.root)
    last = stage or table.column("stage")[-1].as_py()
    rows = [r for r in table.to_pylist() if r["stage"] == last and kind in (None, r["kind"])]
    if tokens:
        from emma.recipes.load import load_recipe
        from emma.tools.pack.fertility import add_tokens

        rows = add_tokens(work, load_recipe(run, overrides), last, rows)
    if plots:
        from emma.tools.corpus.plots import draw

        for path in draw(work, last):
            click.echo(f"wrote {path}", err=as_json)
    if against is not None:
        other = published(against)
        compared = compare([r for r in rows if r["kind"] == other.kind], other)
        if as_json:
            _echo_json({"kind": other.kind, "published": other.by_category(), "languages": compared})
        else:
            click.echo(comparison_lines(other, compared))
        return
    if languages or tokens:
        if as_json:
            _echo_json(rows)
        else:
            click.echo(language_lines(rows))
        return
    categories = [r for r in summary(table) if r["stage"] == last and kind in (None, r["kind"])]
    if as_json:
        _echo_json(categories)
    else:
        click.echo(category_lines(categories))


@group.command()
@run_argument
@overrides_argument
@click.option("--stage", type=_STAGES, help="Stage to show. [default: the last one built]")
@click.option("--kind", type=_KINDS, help="Only this kind.")
@click.option("--language", help="Only this language (xxx_Ssss) or pair.")
@click.option("--rejected-by", metavar="RULE", help="Show documents that this rule (or `all` rules) removed.")
@click.option("--quarantine", is_flag=True, help="Show unusable lines with file, line and reason.")
@click.option(
    "-n", "--number", type=click.IntRange(min=1), default=5, show_default=True, help="Documents to show."
)
@json_option
def peek(
    run: str,
    overrides: tuple[str, ...],
    stage: str | None,
    kind: str | None,
    language: str | None,
    rejected_by: str | None,
    quarantine: bool,
    number: int,
    as_json: bool,
) -> None:
    """Show documents of a stage, documents that a rule removed, or lines that no reader could use.

    \b
    Examples:
      emma corpus peek demo --language yor_Latn
      emma corpus peek demo --rejected-by wrong_script -n 20
      emma corpus peek demo --quarantine
    """
    from emma.tools.corpus.peek import documents, quarantined, rejected

    work = _build(run, overrides)
    if quarantine:
        found = quarantined(work.root, number)
    elif rejected_by is not None:
        found = rejected(work.root, rejected_by, stage, kind, language, number)
    else:
        found = documents(work.root, stage, kind, language, number)
    if as_json:
        _echo_json(found)
        return
    for row in found:
        texts = [
            f"  {name}: {row.pop(name)}"
            for name in ("text", "target", "src_text", "tgt_text")
            if row.get(name)
        ]
        click.secho("  ".join(f"{name}={value}" for name, value in row.items() if value != ""), bold=True)
        click.echo("\n".join(texts) + "\n")


@group.command()
@run_argument
@overrides_argument
@click.option(
    "--benchmarks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of evaluation texts. [default: data.corpus.decontamination.benchmarks]",
)
@click.option(
    "--stage",
    type=click.Choice([*_STAGES.choices, "store"]),
    default="split",
    show_default=True,
    help="Stage to search; `store`: the packed token store, decoded.",
)
@json_option
def decontaminate(
    run: str, overrides: tuple[str, ...], benchmarks: Path | None, stage: str, as_json: bool
) -> None:
    """Report documents of a stage that share n-grams with evaluation texts, and which benchmark items they
    contain, by language. Changes nothing.

    `emma corpus build` removes such documents if the recipe has a section data.corpus.decontamination. The
    exit code is 1 if any are found, so that a script can stop.

    \b
    Examples:
      emma corpus decontaminate demo --benchmarks benchmarks/flores
    """
    from emma.tools.corpus.overlap import report_overlap

    batches = None
    if stage == "store":
        from emma.recipes.load import load_recipe
        from emma.tools.pack.plan import PackSettings
        from emma.tools.pack.texts import store_batches

        packed = PackSettings.of_recipe(load_recipe(run, overrides))
        batches = store_batches(packed.store, list(packed.pack.components), packed.tokenizer.path)
    found = report_overlap(_build(run, overrides), benchmarks, stage, batches)
    if as_json:
        _echo_json(found)
    else:
        for row in found["languages"]:
            click.echo(
                f"{row['kind']:12} {row['language']:24} {row['contaminated']:10,} of {row['documents']:12,} documents"
            )
        for row in found["benchmarks"]:
            if row["found"]:
                name = " ".join(part for part in (row["benchmark"], row["split"]) if part)
                click.echo(
                    f"{name:36} {row['language']:24} {row['found']:8,} of {row['searched']:8,} items "
                    f"({row['found'] / row['searched']:.1%})"
                )
        click.echo(
            f"{found['contaminated']:,} of {found['documents']:,} documents overlap; examples are in "
            f"{found['examples']}, all benchmarks and languages in {found['items']}"
        )
    raise SystemExit(1 if found["contaminated"] else 0)


@group.command()
@run_argument
@overrides_argument
@click.option("--contents", is_flag=True, help="Read every part and check its SHA-256, rows and columns.")
@json_option
def verify(run: str, overrides: tuple[str, ...], contents: bool, as_json: bool) -> None:
    """Check that the corpus is complete: files, sizes, and counts that add up from stage to stage.

    The exit code is 1 if there are faults; each is reported with its file.

    \b
    Examples:
      emma corpus verify demo --contents
    """
    from emma.tools.corpus.verify import verify_corpus

    faults = verify_corpus(_build(run, overrides), contents=contents)
    if as_json:
        _echo_json({"faults": faults})
    else:
        click.echo("\n".join(faults) if faults else "complete: files, sizes and counts match the manifests")
    raise SystemExit(1 if faults else 0)


group.add_command(fetch)
group.add_command(languages)
