"""`emma convert extend-vocabulary`: rows for the new tokens of an extended tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import click

from emma.commands.convert_options import DRY_RUN, JSON, OVERWRITE, PATH, Size

__all__ = ["extend_vocabulary"]


@click.command("extend-vocabulary")
@click.argument("base", metavar="BASE", type=PATH)
@click.argument("destination", metavar="DST", type=PATH)
@click.option(
    "--tokenizer", required=True, type=PATH, help="What `emma tokenizer extend` wrote, of BASE's tokenizer."
)
@click.option(
    "--initialise",
    type=click.Choice(["subword", "mean", "auxiliary", "random"]),
    default="subword",
    show_default=True,
    help="New rows: the mean of a token's pieces; the mean of all rows; rows of old tokens in like company; noise.",
)
@click.option(
    "--corpus", type=PATH, help="For auxiliary: the corpus. [default: the one that gave the new tokens]"
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=1234, show_default=True, help="For mean and random."
)
@click.option(
    "--shard-size", type=Size(), default="5GB", show_default=True, help="Maximum size of a safetensors file."
)
@OVERWRITE
@DRY_RUN
@JSON
def extend_vocabulary(
    base: Path,
    destination: Path,
    tokenizer: Path,
    initialise: str,
    corpus: Path | None,
    seed: int,
    shard_size: int,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give the Hugging Face model in BASE rows for the new tokens of an extended tokenizer, and write it to DST.

    Input and output embedding get one row a new id (one matrix where they are tied); every other tensor, and every old
    row, is copied byte for byte. It streams: memory stays below one GiB. config.json gets the new vocab_size.
    """
    from emma.checkpoints_conversion import extend_vocabulary as surgery

    if dry_run:
        click.echo(json.dumps(surgery.plan(base, tokenizer, initialise), indent=2))  # type: ignore[arg-type]
        return
    manifest = surgery.extend_vocabulary(
        base,
        destination,
        tokenizer,
        initialise=initialise,  # type: ignore[arg-type]
        corpus=corpus,
        seed=seed,
        shard_bytes=shard_size,
        overwrite=overwrite,
    )
    extra, size = manifest.extra, sum(record.bytes for record in manifest.outputs)
    if as_json:
        click.echo(json.dumps({"destination": str(destination), "bytes": size, **extra}, indent=2))
        return
    sizes = extra["vocab_size"]
    click.echo(
        f"{destination}: {size / 1e9:.3f} GB, vocabulary {sizes['before']:,} → {sizes['after']:,} "
        f"({extra['new_rows']:,} new rows, {initialise}{', tied' if extra['tied'] else ''})"
    )
    if extra["replaced_rows"]:
        click.echo(
            f"{extra['replaced_rows']:,} rows of the base, behind its last token, were padding and have been replaced"
        )
