"""`emma report`: one HTML page per run, one that compares runs, and the published scores."""

from __future__ import annotations

from pathlib import Path

import click

from emma.base.command_group import SuggestingGroup

__all__ = ["group"]


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Write an HTML page about a run or a comparison of runs; show published scores."""


@group.command()
@click.argument("run_name", metavar="RUN")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write. Default: RUN/report/index.html."
)
@click.option("--json", "as_json", is_flag=True, help="Print the page's path and contents as JSON.")
def run(run_name: str, output: Path | None, as_json: bool) -> None:
    """Write one self-contained page about a run: loss, validation, mix, gains per language, parity,
    environment.

    Beside it, atlas.html has every language in a table, in a tree of families and on a map, to search, filter and open;
    languages.json holds the same: name, script, family, bits per byte, every benchmark with interval and verdict,
    tokenizer, mix.

    The page can be written at any time; what the run does not have yet is shown as missing. It loads nothing
    from the network, reads well on a phone, and its main tables need no script.
    """
    from emma.base.files import write_json, write_text
    from emma.tools.report.atlas import atlas
    from emma.tools.report.atlas_page import atlas_page
    from emma.tools.report.page import run_page
    from emma.tools.report.records import read_run
    from emma.tools.report.verdicts import judge_page

    record = read_run(run_name)
    judged = judge_page([record])
    output = output or record.folder / "report" / "index.html"
    languages, map_ = _beside(output, "languages.json"), _beside(output, "atlas.html")
    write_text(output, run_page(record, judged, map_.name))
    write_text(map_, atlas_page(judged, output.name))
    write_json(languages, atlas(judged.runs[0], judged))
    holds = {
        "page": str(output),
        "atlas": str(map_),
        "languages_file": str(languages),
        "steps": len(record.steps),
        "validations": len(record.validations),
        "mix_sources": len(record.mix),
        "languages": len(record.gains["languages"]) if record.gains else 0,
        "parity": bool(record.parity["passed"]) if record.parity else None,
    }
    _say(output, holds, as_json)


@group.command()
@click.argument("runs", metavar="RUN_A RUN_B...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("compare.html"),
    show_default=True,
    help="File to write.",
)
@click.option(
    "--export",
    "export_folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for every figure as SVG and PNG, and every table as LaTeX.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the page's path as JSON.")
def compare(runs: tuple[str, ...], output: Path, export_folder: Path | None, as_json: bool) -> None:
    """Write one self-contained page that compares runs: every other run against RUN_A. RUN@STEP is the run as
    of one of its evaluated checkpoints.

    Shows what each run gained and forgot on held-out text and benchmarks, by resource category, script, and
    family, with paired tests per language; curves over checkpoints; the published scores of the EMMA-500
    models and their bases. Beside it, a page named *.atlas.html has every language, as that of a single run.

    \b
    emma report compare demo/runs/demo_mono demo/runs/demo_bi --output demo/mono-bi.html
    emma report compare runs/mono runs/bi --output mono-bi.html --export mono-bi-figures
    emma report compare demo@150 demo@300
    """
    from emma.base.files import write_text
    from emma.tools.report.atlas_page import atlas_page
    from emma.tools.report.checkpoints import read_checkpoint
    from emma.tools.report.compare import compare_page, comparison

    records = [read_checkpoint(name) for name in runs]
    compared = comparison(records)
    map_ = _beside(output, "atlas.html")
    write_text(output, compare_page(records, compared, map_.name))
    write_text(map_, atlas_page(compared.judged, output.name))
    facts: dict[str, object] = {
        "page": str(output),
        "atlas": str(map_),
        "runs": [record.name for record in records],
        "benchmarks": [view.key for view in compared.views],
    }
    if export_folder is not None:
        from emma.tools.report.export import export

        names = [record.name for record in records]
        written = export(
            export_folder, names, compared.views, compared.forgetting, compared.figures, compared.reference
        )
        facts["exported"] = [str(path) for path in written]
        if not as_json:
            click.echo(f"wrote {len(written)} files into {export_folder}")
    _say(output, facts, as_json)


@group.command()
@click.argument("merge", metavar="MERGE")
@click.argument("parents", metavar="PARENT...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("merge.html"),
    show_default=True,
    help="File to write.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the page's path and counts as JSON.")
def merge(merge: str, parents: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Write one self-contained page about a MERGE and its PARENTs: what was restored, what was lost.

    Each is the folder that `emma evaluate run MODEL --base BASE` has written, or a RUN, all with the same base. Of every
    test (a language of held-out text or of a benchmark) in which a parent differs from the base beyond chance, the page
    says whether the merge takes that back.

    \b
    emma report merge evaluation/restored runs/emma_llama3.1_8b_bi evaluation/Llama-3.1-8B-Instruct
    """
    from emma.base.files import write_text
    from emma.tools.report.merge import merge_page, merge_view, read_evaluated

    view = merge_view(read_evaluated(merge), [read_evaluated(parent) for parent in parents])
    write_text(output, merge_page(view))
    counts = {
        parent.name: {fate: parent.count(fate) for fate in ("restored", "still lost", "kept", "lost")}
        for parent in view.parents
    }
    _say(output, {"page": str(output), "merge": view.child, "base": view.base, "parents": counts}, as_json)


@group.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the compact table of averages in the format in which it ships.",
)
@click.option(
    "--published-codes",
    is_flag=True,
    help="Assign categories by the published list's codes alone, without mapping benchmark codes to them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every average as JSON.")
def reference(folder: Path | None, output: Path | None, published_codes: bool, as_json: bool) -> None:
    """Show averages of the EMMA-500 models and their peers, over languages and by resource category.

    FOLDER holds the published result tables (evaluation_results of the EMMA-500 release), one row per model
    and one column per language. Without it, the shipped table is shown.

    \b
    emma report reference
    emma report reference evaluation_results --output recipes/evaluation/reference.csv
    """
    from dataclasses import asdict

    import orjson

    from emma.base.errors import UserError
    from emma.tools.evaluation.averages import category_of, published_category
    from emma.tools.evaluation.reference import (
        read_reference,
        read_tables,
        reference_averages,
        shipped_models,
        source,
        write_reference,
    )
    from emma.tools.report.reference import gains_text, reference_text

    if folder is None:
        if output is not None or published_codes:
            raise UserError("--output and --published-codes need FOLDER with the published result tables")
        rows = read_reference()
    else:
        category = published_category if published_codes else category_of
        rows = reference_averages(read_tables(folder), category=category)
    if output is not None:
        write_reference(output, rows)
    if as_json:
        click.echo(orjson.dumps([asdict(row) for row in rows]).decode())
        return
    click.echo(source() + "\n")
    click.echo(reference_text(rows, shipped_models()) + "\n")
    click.echo(gains_text(rows, "flores200_eng_x", "chrf++"))
    if output is not None:
        click.echo(f"\nwrote {output}")


def _beside(page: Path, name: str) -> Path:
    """A file beside a page; it has the page's name too, since several pages may stand in one folder."""
    return page.with_name(name if page.name == "index.html" else f"{page.stem}.{name}")


def _say(output: Path, facts: dict[str, object], as_json: bool) -> None:
    import orjson

    click.echo(orjson.dumps(facts).decode() if as_json else f"wrote {output}")
