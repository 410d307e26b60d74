"""Benchmark commands for data and prompts, and the benchmark options of `emma evaluate run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from emma.tools.evaluation.benchmarks.command import Request

__all__ = ["benchmark_options", "check", "fetch", "list_benchmarks", "make_request", "prompts"]

_MIRROR = click.option(
    "--mirror",
    type=click.Path(path_type=Path),
    envvar="EMMA_MIRROR",
    help="Folder with the benchmarks' data; default $EMMA_MIRROR, else the Hugging Face hub.",
)


def _parse_shard(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    index, _, count = value.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise click.BadParameter(f"{value!r} is not of the form i/n with 0 <= i < n, e.g. 0/64")
    return int(index), int(count)


def _parse_batch(ctx: click.Context, parameter: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if not (value.isdigit() and int(value)):
        raise click.BadParameter(f"{value!r} is neither a number of requests nor auto")
    return int(value)


_OPTIONS = (
    click.option("--tier", type=click.Choice(["smoke", "core", "full"]), help="How much of the benchmarks to run."),
    click.option("--benchmarks", help="Comma-separated benchmarks (see `emma evaluate list`), lm_eval:NAME for a task or group of lm-eval, or the lists authors (the papers' variants), robust, modern, retention, multipl_e; default the tier's. humaneval and multipl_e run the programs that the model writes, in a sandbox."),
    _MIRROR,
    click.option("--backend", type=click.Choice(["hf", "vllm"]), default="hf", show_default=True, help="What runs the model."),
    click.option("--batch-size", callback=_parse_batch, default="auto", show_default=True, help="Requests per batch (hf), or auto: as many as fit a budget of tokens, by length."),
    click.option("--tensor-parallel", type=click.IntRange(min=1), default=1, show_default=True, help="GPUs that share the model (vllm)."),
    click.option("--max-length", type=click.IntRange(min=16), help="Tokens of context; default what the model takes, at most 8192."),
    click.option("--shots", multiple=True, metavar="NAME=N", help="Number of worked examples for a benchmark; may be repeated."),
    click.option("--seed", type=int, default=42, show_default=True, help="Seed of sampled answers."),
    click.option("--skip-missing", is_flag=True, help="Leave out languages without data, and programs that this machine cannot run or isolate, instead of refusing to start."),
    click.option("--shard", callback=_parse_shard, metavar="I/N", help="For array tasks: run only the I-th of N shares of about equal cost (counting from 0); a run without --shard joins the results."),
    click.option("--spbleu-model", type=click.Path(path_type=Path), help="The FLORES-200 sentencepiece model; default the mirror's."),
    click.option("--spbleu-other", is_flag=True, help="Accept another sentencepiece model; its scores are named by its hash."),
    click.option("--bertscore", type=click.Path(path_type=Path), help="Folder of bert-base-multilingual-cased; without it, BERTScore is left out."),
)  # fmt: skip


def benchmark_options[F: Callable[..., Any]](function: F) -> F:
    """Adds the benchmark options to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def make_request(
    languages: set[str] | None, limit: int | None, device: str | None, dtype: str | None, **options: Any
) -> Request | None:
    """The user's request; None if it names neither a tier nor benchmarks."""
    if options["tier"] is None and options["benchmarks"] is None:
        return None
    from emma.tools.evaluation.benchmarks.backends import ModelSettings
    from emma.tools.evaluation.benchmarks.command import Request

    return Request(
        tier=options["tier"],
        benchmarks=_split(options["benchmarks"]),
        languages=frozenset(languages) if languages else None,
        mirror=options["mirror"],
        limit=limit,
        shots=options["shots"],
        skip_missing=options["skip_missing"],
        shard=options["shard"],
        spbleu_path=options["spbleu_model"],
        spbleu_other=options["spbleu_other"],
        bertscore=options["bertscore"],
        model=ModelSettings(
            backend=options["backend"],
            device=device,
            dtype=dtype,
            batch_size=options["batch_size"],
            tensor_parallel=options["tensor_parallel"],
            max_length=options["max_length"],
            seed=options["seed"],
        ),
    )


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def list_benchmarks(as_json: bool) -> None:
    """List the benchmarks with their languages, examples, metrics and sources of data."""
    from emma.tools.evaluation.benchmarks.definitions import benchmark_names, get_benchmark

    rows: list[dict[str, Any]] = []
    for name in benchmark_names(on_demand=True):
        benchmark = get_benchmark(name)
        rows.append(
            {
                "benchmark": name,
                "title": benchmark.title,
                "kind": benchmark.kind,
                "languages": len(benchmark.languages),
                "shots": benchmark.shots,
                "metrics": list(benchmark.metrics),
                "data": benchmark.data.root,
            }
        )
    if as_json:
        click.echo(_json(rows))
        return
    click.echo(f"{'benchmark':<24}{'languages':>10}{'shots':>6}  {'data':<36}metrics")
    for row in rows:
        click.echo(
            f"{row['benchmark']:<24}{row['languages']:>10,}{row['shots']:>6}  {row['data']:<36}{', '.join(row['metrics'])}"
        )


@click.command()
@click.argument("benchmark")
@click.option("--languages", help="Comma-separated languages or pairs; default the first that has data.")
@click.option("--items", type=click.IntRange(min=1), default=1, show_default=True, help="Items per language.")
@click.option(
    "--shots", type=click.IntRange(min=0), help="Number of worked examples; default the benchmark's."
)
@_MIRROR
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, with choices and references.")
def prompts(
    benchmark: str, languages: str | None, items: int, shots: int | None, mirror: Path | None, as_json: bool
) -> None:
    """Show the prompts of BENCHMARK exactly as a model reads them.

    \b
    emma evaluate prompts flores200_eng_x_emma --languages swh_Latn --mirror benchmarks
    """
    from emma.tools.evaluation.benchmarks.definitions import Tier, resolve_names
    from emma.tools.evaluation.benchmarks.items import build_items
    from emma.tools.evaluation.benchmarks.stores import open_store
    from emma.tools.evaluation.benchmarks.units import plan_units

    store = open_store(mirror)
    tier = Tier(name="prompts", languages=1, missing="skip")
    plan = plan_units(resolve_names([benchmark]), store, tier, set(_split(languages)) or None)
    rows: list[dict[str, Any]] = []
    for unit in plan.units:
        for item in build_items(unit.benchmark, unit.language, store, limit=items, shots=shots):
            row: dict[str, Any] = {
                "benchmark": unit.benchmark.name,
                "language": unit.language,
                "index": item.index,
                "prompt": item.prompt,
            }
            if item.choices:
                row |= {
                    "choices": [unit.benchmark.delimiter + choice for choice in item.choices],
                    "gold": item.gold,
                }
            if item.reference is not None:
                row["reference"] = item.reference
            rows.append(row)
    if as_json:
        click.echo(_json(rows))
        return
    for row in rows:
        click.echo(f"--- {row['benchmark']}/{row['language']} item {row['index']}", err=True)
        click.echo(row["prompt"])
        for number, choice in enumerate(row.get("choices", ())):
            click.echo(f"{'*' if number == row['gold'] else ' '} {choice}", err=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--benchmarks", help="Comma-separated benchmarks; default all.")
@click.option("--languages", help="Comma-separated languages; default all.")
@click.option("--dry-run", is_flag=True, help="Show what would be fetched, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print what was fetched as JSON.")
def fetch(folder: Path, benchmarks: str | None, languages: str | None, dry_run: bool, as_json: bool) -> None:
    """Fill FOLDER with the benchmarks' data, on a machine with network access.

    Files that are there as the hub has them are kept; each that arrives is held to the hub's checksum. Data that is not on
    a hub is listed, with where to put it. Writes manifest.json with repositories, commits and checksums. The exit code is 1
    if something could not be fetched; the same command continues from there.

    \b
    emma evaluate fetch benchmarks
    emma evaluate fetch benchmarks --benchmarks belebele,flores200_eng_x --languages swh_Latn,yor_Latn
    """
    from emma.tools.evaluation.benchmarks.definitions import benchmark_names, resolve_names
    from emma.tools.evaluation.benchmarks.harness import expand
    from emma.tools.evaluation.benchmarks.mirror import fetch_sources

    names = resolve_names(expand(_split(benchmarks))) if benchmarks else benchmark_names()
    report = fetch_sources(folder, names, set(_split(languages)) or None, dry_run=dry_run)
    click.echo(_json(report.to_dict()) if as_json else report.text())
    if report.failed:
        raise SystemExit(1)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--benchmarks", help="Comma-separated benchmarks; default all.")
@click.option("--languages", help="Comma-separated languages; default all.")
@click.option("--checksums", is_flag=True, help="Compare every file with the manifest's checksum.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def check(
    folder: Path, benchmarks: str | None, languages: str | None, checksums: bool, as_json: bool
) -> None:
    """Check FOLDER for benchmark data that is missing or has an unexpected schema.

    Builds each language's items as a run would. The exit code is 1 if anything is wrong.
    """
    from emma.tools.evaluation.benchmarks.definitions import benchmark_names, resolve_names
    from emma.tools.evaluation.benchmarks.harness import expand
    from emma.tools.evaluation.benchmarks.mirror import check_mirror

    names = resolve_names(expand(_split(benchmarks))) if benchmarks else benchmark_names()
    report = check_mirror(folder, names, set(_split(languages)) or None, checksums=checksums)
    click.echo(_json(report.to_dict()) if as_json else report.text())
    if report.faults:
        raise SystemExit(1)


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
