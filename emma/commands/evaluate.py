"""`emma evaluate`: scores a model per language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.command_group import SuggestingGroup
from emma.commands.evaluate_benchmarks import benchmark_options, check, fetch, list_benchmarks, prompts
from emma.commands.evaluate_items import items
from emma.commands.evaluate_quality import quality

if TYPE_CHECKING:
    from emma.tools.evaluation.benchmarks.command import Request
    from emma.tools.evaluation.gains import Gains
    from emma.tools.evaluation.results import Result
    from emma.tools.evaluation.targets import Target

__all__ = ["group"]


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Evaluate a model per language."""


for _command in (fetch, check, list_benchmarks, prompts, items, quality):
    group.add_command(_command)


@group.command()
@click.argument("run_or_folder")
@click.option(
    "--step",
    type=click.IntRange(min=0),
    help="Export of the run to evaluate (`hf/step-N`); default the latest.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Corpus folder or its split stage, with <kind>/<language>/*.parquet; default the run's corpus.",
)
@click.option(
    "--base", type=click.Path(path_type=Path), help="Model folder to compare with, scored on the same text."
)
@click.option(
    "--seen",
    type=click.Path(path_type=Path),
    help="Languages that the base was pre-trained on, one code per line; default `languages.json` in its folder.",
)
@click.option("--kinds", help="Comma-separated kinds of text, e.g. monolingual,parallel; default all.")
@click.option("--languages", help="Comma-separated languages or pairs; default all, or the tier's.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Maximum documents or items per language; default all."
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Tokens of context; default what the models take, at most 4096.",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens from one window to the next; default half the window.",
)
@click.option("--end-of-text", is_flag=True, help="Also score the end-of-text token after each document.")
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), default=8192, show_default=True, help="Tokens per batch."
)
@click.option("--device", help="Torch device; default the GPU if there is one, else the CPU.")
@click.option("--dtype", help="float32, bfloat16, ...; default the checkpoint's on a GPU, float32 on a CPU.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the results; default RUN/evaluation or, for a model folder, evaluation/<name> here.",
)
@benchmark_options
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Maximum languages in the table; 0: all.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be evaluated, and stop.")
@click.option(
    "--pilot",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Before the estimate, let the model answer N items of each benchmark that generates text.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def run(
    run_or_folder: str,
    step: int | None,
    text: Path | None,
    base: Path | None,
    seen: Path | None,
    kinds: str | None,
    languages: str | None,
    limit: int | None,
    window: int | None,
    stride: int | None,
    end_of_text: bool,
    batch_tokens: int,
    device: str | None,
    dtype: str | None,
    output: Path | None,
    rows: int,
    dry_run: bool,
    pilot: int,
    as_json: bool,
    **benchmark: Any,
) -> None:
    """Score a model per language: bits per byte on held-out text, or benchmarks.

    RUN_OR_FOLDER is a run with an export in `hf/`, or a folder with a Hugging Face model. Finished languages
    are kept, so an interrupted evaluation resumes where it stopped. Writes results.parquet and results.csv
    (long format) and, with --base, gains.json; prints a table.

    --tier or --benchmarks runs benchmarks instead of the held-out text; list `heldout` among the benchmarks
    to run both. Their data comes from --mirror (see `emma evaluate fetch`), else from the hub.

    \b
    emma evaluate run demo --base demo/base
    emma evaluate run exports/llama --text corpus --languages swh_Latn,yor_Latn
    emma evaluate run exports/llama --tier core --mirror benchmarks --base models/llama3
    emma evaluate run exports/llama --benchmarks belebele,flores200_eng_x --mirror benchmarks --shard 3/64
    """
    from emma.commands.evaluate_benchmarks import make_request
    from emma.tools.evaluation.targets import resolve_target

    target = resolve_target(run_or_folder, step)
    base_target = resolve_target(str(base)) if base else None
    if output is None:
        output = target.run / "evaluation" if target.run else Path("evaluation") / target.model
    request = make_request(_names(languages), limit, device, dtype, **benchmark)
    if request is not None and (request.tier or set(request.benchmarks) != {"heldout"}):
        _run_benchmarks(request, target, base_target, output, rows, dry_run, pilot, as_json)
        # Held-out text is not sharded: the run that joins the shards scores it.
        if "heldout" not in request.benchmarks or request.shard is not None:
            return
    _run_heldout(
        target,
        base_target,
        output,
        text=text,
        seen=seen,
        kinds=_names(kinds),
        languages=_names(languages),
        window=window,
        rows=rows,
        dry_run=dry_run,
        as_json=as_json,
        stride=stride,
        score_end_of_text=end_of_text,
        batch_tokens=batch_tokens,
        device=device,
        dtype=dtype,
        limit=limit,
    )


def _run_benchmarks(
    request: Request,
    target: Target,
    base: Target | None,
    output: Path,
    rows: int,
    dry_run: bool,
    pilot: int,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from emma.tools.evaluation.benchmarks import cost
    from emma.tools.evaluation.benchmarks.command import notes, prepare, run_models
    from emma.tools.evaluation.benchmarks.tables import averages_table

    prepared = prepare(request)
    for note in notes(prepared):
        click.echo(f"note: {note}", err=True)
    targets = [(target, "trained"), *([(base, "base")] if base else [])]
    costs = cost.estimate(
        prepared.runner(target, output), [*prepared.plan.units, *prepared.plan.harness], pilot
    )
    if dry_run:
        click.echo(
            _json([asdict(row) for row in costs]) if as_json else cost.table(costs, request.model.backend)
        )
        return
    hours = sum(row.hours for row in costs) * len(targets)
    click.echo(
        f"{sum(row.languages for row in costs):,} languages of {len(costs)} benchmarks, "
        f"{sum(row.requests for row in costs):,} requests per model; about {hours:.2f} hours on one H100 if nothing "
        f"is finished yet (--dry-run shows details)",
        err=True,
    )
    shares = {row.benchmark: row.assumed_hours / row.languages for row in costs}
    outcome = run_models(prepared, targets, output, shares)
    if as_json:
        click.echo(_json([asdict(row) for row in outcome.rows]))
    elif outcome.rows:
        names = [model.model for model, _ in targets]
        click.echo(averages_table(outcome.rows, names, rows))
    else:
        click.echo(
            f"{len(outcome.finished)} languages of this shard are finished; "
            "run the same command without --shard to join the shards"
        )


def _run_heldout(
    target: Target,
    base_target: Target | None,
    output: Path,
    *,
    text: Path | None,
    seen: Path | None,
    kinds: set[str] | None,
    languages: set[str] | None,
    window: int | None,
    rows: int,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    from emma.base.errors import UserError
    from emma.tools.evaluation.heldout import find_heldout
    from emma.tools.evaluation.targets import default_window

    if text is None:
        if target.recipe is None:
            raise UserError("--text is required: a model folder does not name a corpus")
        text = Path(target.recipe.paths.corpus)
    heldout = find_heldout(text, kinds, languages)
    if dry_run:
        plan = {
            "model": target.model,
            "folder": str(target.folder),
            "base": str(base_target.folder) if base_target else None,
            "text": str(text),
            "languages": len(heldout),
            "output": str(output),
        }
        click.echo(_json(plan) if as_json else "\n".join(f"{key:<10}{value}" for key, value in plan.items()))
        return
    from emma.base.writers import sole_writer
    from emma.tools.evaluation.intrinsic import Settings, evaluate_model, publish

    folders = [target.folder, *([base_target.folder] if base_target else [])]
    scoring = Settings(
        window or default_window(folders),
        pack=target.recipe.data.pack if target.recipe else None,
        **settings,
    )
    # Two that append to one journal would score each language twice.
    with sole_writer(output):
        models = [(target, "trained", evaluate_model(target, heldout, output, scoring))]
        if base_target is None:
            table = publish(output, models)
            _print_scores(target, [row for row in table if row.model == target.model], rows, as_json)
            return
        models.append((base_target, "base", evaluate_model(base_target, heldout, output, scoring)))
        publish(output, models)
        gains = _gains(models, target, base_target, text, seen, output)
        _print_gains(gains, rows, as_json)


def _gains(
    models: list[Any], target: Target, base: Target, text: Path, seen: Path | None, output: Path
) -> Gains:
    from emma.base.files import write_json
    from emma.tools.evaluation.gains import compare
    from emma.tools.evaluation.groups import SEEN_FILE, language_facts, read_seen

    if seen is None and (base.folder / SEEN_FILE).is_file():
        seen = base.folder / SEEN_FILE
    corpus = text if (text / "statistics").is_dir() else text.parent
    mix = target.recipe.mix_folder if target.recipe else None
    settings = target.recipe.data.mix if target.recipe else None
    facts = language_facts(mix, corpus, read_seen(seen) if seen else None, settings)
    gains = compare(base.model, target.model, models[1][2], models[0][2], facts)
    write_json(output / "gains.json", gains.to_dict())
    return gains


def _print_scores(target: Target, table: list[Result], rows: int, as_json: bool) -> None:
    from dataclasses import asdict

    from emma.tools.evaluation.tables import scores_table

    click.echo(_json([asdict(row) for row in table]) if as_json else scores_table(target.model, table, rows))


def _print_gains(gains: Gains, rows: int, as_json: bool) -> None:
    from emma.tools.evaluation.tables import gains_table

    click.echo(_json(gains.to_dict()) if as_json else gains_table(gains, rows))


def _names(text: str | None) -> set[str] | None:
    return {name.strip() for name in text.split(",") if name.strip()} if text else None


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
