"""`emma report`: one HTML page of a run, and one that compares runs."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["group"]


@click.group()
def group() -> None:
    """Plots, tables and one HTML page of runs."""


@group.command()
@click.argument("run_name", metavar="RUN")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write; default RUN/report/index.html."
)
@click.option("--json", "as_json", is_flag=True, help="Print the page's place and what it holds as JSON.")
def run(run_name: str, output: Path | None, as_json: bool) -> None:
    """One self-contained page of a run: loss, validation, mix, gains per language, parity, environment.

    What the run does not have yet is shown as absent; the page can be written at any time. It loads nothing from the
    network, reads well on a phone, and its main tables need no script.
    """
    from recipes.files import write_text
    from tools.report.page import run_page
    from tools.report.records import read_run

    record = read_run(run_name)
    output = output or record.folder / "report" / "index.html"
    write_text(output, run_page(record))
    holds = {
        "page": str(output),
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
@click.option("--json", "as_json", is_flag=True, help="Print the page's place as JSON.")
def compare(runs: tuple[str, ...], output: Path, as_json: bool) -> None:
    """One self-contained page that compares runs; the others are set against RUN_A.

    \b
    emma report compare demo/runs/demo_mono demo/runs/demo_bi --output demo/mono-bi.html
    """
    from recipes.files import write_text
    from tools.report.compare import compare_page
    from tools.report.records import read_run

    records = [read_run(name) for name in runs]
    write_text(output, compare_page(records))
    _say(output, {"page": str(output), "runs": [record.name for record in records]}, as_json)


def _say(output: Path, facts: dict[str, object], as_json: bool) -> None:
    import orjson

    click.echo(orjson.dumps(facts).decode() if as_json else f"wrote {output}")
