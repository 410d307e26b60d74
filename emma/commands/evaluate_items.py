"""`emma evaluate items`: abilities on a benchmark's parallel items, and how few of them would do."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["items"]


@click.command()
@click.argument("run_or_folder", metavar="RUN")
@click.option("--benchmark", required=True, help="Benchmark that asks the same items in every language.")
@click.option("--metric", help="Metric of the items; default the benchmark's main one.")
@click.option(
    "--threshold",
    type=float,
    help="Items at or above it count as right; needed where scores are not right or wrong (chrF++, spBLEU).",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Share of the items in the subset.",
)
@click.option(
    "--subset", type=click.Path(dir_okay=False, path_type=Path), help="Write the subset's item ids here, one per line."
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def items(
    run_or_folder: str,
    benchmark: str,
    metric: str | None,
    threshold: float | None,
    share: float,
    subset: Path | None,
    as_json: bool,
) -> None:
    """Fit item response theory to a benchmark's parallel items: ability in every language, and a subset of items.

    RUN is a run, or its evaluation folder, with finished benchmarks. The base and the latest trained model are put on one
    scale, on which languages' abilities have mean 0 and standard deviation 1. The subset is chosen by information; its
    predictions are compared with the full run in languages left out of the fit.

    \b
    emma evaluate items demo --benchmark belebele
    emma evaluate items demo --benchmark flores200_eng_x --threshold 40 --subset items.txt
    """
    import orjson

    from emma.base.files import write_text
    from emma.tools.evaluation.item_tables import item_report, items_table

    report = item_report(run_or_folder, benchmark, metric=metric, threshold=threshold, share=share)
    if subset is not None:
        write_text(subset, "".join(f"{name}\n" for name in report.subset))
    click.echo(orjson.dumps(report.to_dict()).decode() if as_json else items_table(report))
