"""`emma evaluate`: scores of a model per language."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tools.evaluation.gains import Gains
    from tools.evaluation.results import Result
    from tools.evaluation.targets import Target

__all__ = ["group"]


@click.group()
def group() -> None:
    """Evaluate a model per language."""


@group.command()
@click.argument("run_or_folder")
@click.option(
    "--step", type=click.IntRange(min=0), help="Export of the run to take, `hf/step-N`; default the latest."
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
    help="Languages that the base was pre-trained on, one code a line; default `languages.json` in its folder.",
)
@click.option("--kinds", help="Kinds of text, comma separated, e.g. monolingual,parallel; default all.")
@click.option("--languages", help="Languages or pairs, comma separated; default all.")
@click.option("--limit", type=click.IntRange(min=1), help="Documents a language, at most; default all.")
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Tokens of context; default what the models take, at most 4096.",
)
@click.option("--stride", type=click.IntRange(min=1), help="Tokens between windows; default half the window.")
@click.option("--end-of-text", is_flag=True, help="Score the end-of-text token after each document too.")
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), default=8192, show_default=True, help="Tokens of a batch."
)
@click.option("--device", help="Torch device; default the GPU if there is one, else the CPU.")
@click.option("--dtype", help="float32, bfloat16, ...; default the checkpoint's on a GPU, float32 on a CPU.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder of the results; default RUN/evaluation, or evaluation/<name> here for a model folder.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Languages in the table; 0: all.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be evaluated, and stop.")
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
    as_json: bool,
) -> None:
    """Bits per byte on held-out text, per language.

    RUN_OR_FOLDER is a run with an export in `hf/`, or a folder with a Hugging Face model. Finished languages are kept:
    a run that died goes on where it stopped. Writes results.parquet and results.csv (long format), and with --base
    gains.json; prints a table.

    \b
    emma evaluate run demo --base demo/base
    emma evaluate run exports/llama --text corpus --languages swh_Latn,yor_Latn
    """
    from recipes.errors import UserError
    from tools.evaluation.heldout import find_heldout
    from tools.evaluation.targets import default_window, resolve_target

    target = resolve_target(run_or_folder, step)
    if text is None:
        if target.recipe is None:
            raise UserError("--text is needed: a model folder does not name a corpus")
        text = Path(target.recipe.paths.corpus)
    heldout = find_heldout(text, _names(kinds), _names(languages))
    if output is None:
        output = target.run / "evaluation" if target.run else Path("evaluation") / target.model
    if dry_run:
        plan = {
            "model": target.model,
            "folder": str(target.folder),
            "base": str(base) if base else None,
            "text": str(text),
            "languages": len(heldout),
            "output": str(output),
        }
        click.echo(_json(plan) if as_json else "\n".join(f"{key:<10}{value}" for key, value in plan.items()))
        return
    from tools.evaluation.intrinsic import Settings, evaluate_model, publish

    base_target = resolve_target(str(base)) if base else None
    folders = [target.folder, *([base_target.folder] if base_target else [])]
    settings = Settings(
        window or default_window(folders),
        stride,
        end_of_text,
        batch_tokens,
        device,
        dtype,
        limit,
        target.recipe.data.pack if target.recipe else None,
    )
    models = [(target, "trained", evaluate_model(target, heldout, output, settings))]
    if base_target is None:
        table = publish(output, models)
        _print_scores(target, [row for row in table if row.model == target.model], rows, as_json)
        return
    models.append((base_target, "base", evaluate_model(base_target, heldout, output, settings)))
    publish(output, models)
    gains = _gains(models, target, base_target, text, seen, output)
    _print_gains(gains, rows, as_json)


def _gains(
    models: list[Any], target: Target, base: Target, text: Path, seen: Path | None, output: Path
) -> Gains:
    from recipes.files import write_json
    from tools.evaluation.gains import compare
    from tools.evaluation.groups import SEEN_FILE, language_facts, read_seen

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

    from tools.evaluation.tables import scores_table

    click.echo(_json([asdict(row) for row in table]) if as_json else scores_table(target.model, table, rows))


def _print_gains(gains: Gains, rows: int, as_json: bool) -> None:
    from tools.evaluation.tables import gains_table

    click.echo(_json(gains.to_dict()) if as_json else gains_table(gains, rows))


def _names(text: str | None) -> set[str] | None:
    return {name.strip() for name in text.split(",") if name.strip()} if text else None


def _json(value: Any) -> str:
    import orjson

    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
