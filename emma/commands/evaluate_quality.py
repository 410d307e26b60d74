"""`emma evaluate quality`: scores saved outputs by learned metrics and by the language that they are in."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["quality"]

_PATH = click.Path(path_type=Path)


def _pairs(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not (name and separator and path):
            raise click.BadParameter(
                f"{value!r} is not of the form NAME=PATH, e.g. comet=models/wmt22-comet-da"
            )
        if name in found:
            raise click.BadParameter(f"{name} is given twice")
        found[name] = Path(path)
    return found


@click.command()
@click.argument("run_or_folder", metavar="RUN")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    callback=_pairs,
    metavar="NAME=FOLDER",
    help="Learned metric and its model's folder: comet, xcomet, africomet, ssa_comet, cometkiwi, metricx, metricx_qe, metricx23; may be repeated.",
)
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    callback=_pairs,
    metavar="NAME=FOLDER",
    help="Config and tokenizer of a metric's encoder; default the hub's cache (COMET) or the model's folder (MetricX).",
)
@click.option(
    "--seen",
    multiple=True,
    callback=_pairs,
    metavar="NAME=FILE",
    help="Languages that a metric's encoder has seen, one code per line; default this project's lists.",
)
@click.option(
    "--comet-python",
    type=_PATH,
    envvar="EMMA_COMET_PYTHON",
    help="Interpreter of an environment with unbabel-comet; default $EMMA_COMET_PYTHON.",
)
@click.option(
    "--trust-checkpoints",
    is_flag=True,
    help="Let COMET execute the pickles in its checkpoints; without it, torch reads only tensors and plain values.",
)
@click.option(
    "--glotlid", type=_PATH, help="fastText model that identifies languages, such as GlotLID's model.bin."
)
@click.option(
    "--english-words",
    type=_PATH,
    help="List of English words, one per line, such as Debian's wamerican; for --glotlid's word-level pass rate.",
)
@click.option("--benchmarks", help="Comma-separated benchmarks; default all whose answers are texts.")
@click.option("--languages", help="Comma-separated languages or directions; default all.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Translations per batch."
)
@click.option("--device", help="Torch device; default the GPU if there is one, else the CPU.")
@click.option("--dry-run", is_flag=True, help="Show what would be scored, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def quality(
    run_or_folder: str,
    metrics: dict[str, Path],
    encoders: dict[str, Path],
    seen: dict[str, Path],
    comet_python: Path | None,
    trust_checkpoints: bool,
    glotlid: Path | None,
    english_words: Path | None,
    benchmarks: str | None,
    languages: str | None,
    batch_size: int,
    device: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Score the answers that `emma evaluate run` saved: translations by learned metrics, all texts by their language.

    RUN is a run, or its evaluation folder, with finished benchmarks. Scores join the others in results.parquet, per item
    too; languages that have them are left as they are, so an interrupted command resumes.

    A learned metric says nothing about a language that its encoder was not trained on, or not in that script: there its
    name ends in `_unseen`, and no average holds it. COMET and its relatives run in an environment of their own:

    \b
    python -m venv .venv-comet && .venv-comet/bin/pip install unbabel-comet==2.2.7 'setuptools<81'

    \b
    emma evaluate quality demo --glotlid models/glotlid.bin
    emma evaluate quality demo --metric comet=models/wmt22-comet-da --encoder comet=models/xlm-roberta-large \\
        --comet-python .venv-comet/bin/python
    emma evaluate quality demo --metric metricx=models/metricx-24-hybrid-large --encoder metricx=models/mt5-xl
    """
    from emma.base.writers import sole_writer
    from emma.tools.evaluation.benchmarks.definitions import resolve_names
    from emma.tools.evaluation.quality import command
    from emma.tools.evaluation.stored import evaluation_folder

    def names(text: str | None) -> list[str]:
        return [name.strip() for name in (text or "").split(",") if name.strip()]

    request = command.Request(
        metrics=metrics,
        encoders=encoders,
        seen=seen,
        glotlid=glotlid,
        english_words=english_words,
        comet_python=comet_python,
        benchmarks=frozenset(resolve_names(names(benchmarks))) or None,
        languages=frozenset(names(languages)) or None,
        batch=batch_size,
        device=device,
        trusted=trust_checkpoints,
    )
    planned = command.plan(evaluation_folder(run_or_folder), request)
    facts = planned.facts()
    if not dry_run:
        with sole_writer(planned.folder):
            for note in command.run(planned):
                click.echo(f"note: {note}", err=True)
    if as_json:
        import orjson

        click.echo(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode())
        return
    for row in facts:
        click.echo(
            f"{row['model']}: {row['metric']} of {row['languages']} languages, {row['valid']} of them known to {row['by']}"
        )
