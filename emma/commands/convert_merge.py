"""`emma convert merge`: several models become one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from emma.commands.convert_options import DRY_RUN, JSON, OVERWRITE, PATH, Size

__all__ = ["merge"]


@click.command("merge")
@click.argument("recipe", metavar="RECIPE", type=PATH)
@click.argument("destination", metavar="DST", type=PATH)
@click.option(
    "--shard-size", type=Size(), default="5GB", show_default=True, help="Maximum size of a safetensors file."
)
@OVERWRITE
@DRY_RUN
@JSON
def merge(
    recipe: Path, destination: Path, shard_size: int, overwrite: bool, dry_run: bool, as_json: bool
) -> None:
    """Merge the models that RECIPE names, and write the result to DST.

    RECIPE is a YAML file with the keys of recipes/schema/merge.py; docs/merging.md has one of each kind. The models are
    Hugging Face folders, runs and Megatron checkpoints, in any combination, of one configuration, base and vocabulary
    (or of one and its extension); others are refused. It streams, in FP32, rounded once to the type of the models or
    the recipe's. DST becomes a Hugging Face folder or, if all models are Megatron checkpoints, one that a run can start
    from. `emma convert verify DST` computes it once more.

    \b
    method: task_vector
    base: {path: models/base}
    models:
      - {path: runs/cpt, step: 25000}
      - {path: models/instruct, weight: 0.7}
    """
    import torch

    from emma.checkpoints_conversion.merging import write
    from emma.recipes.load import load_merge

    loaded = load_merge(recipe)
    if dry_run:
        _say(write.plan(loaded), as_json)
        return
    # Blocks are too small to be shared among cores; several are worked on at once.
    torch.set_num_threads(1)
    manifest = write.merge(loaded, destination, shard_bytes=shard_size, overwrite=overwrite)
    size, facts = sum(record.bytes for record in manifest.outputs), dict(manifest.extra)
    for parent in facts["parents"]:
        parent.pop("tensors")
    if as_json:
        _say({"destination": str(destination), "bytes": size, **facts}, True)
        return
    _say(facts, False)
    click.echo(f"{destination}: {size / 1e9:.3f} GB")


def _say(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for warning in facts["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    for parent in facts["parents"]:
        factor = "" if parent.get("weight") is None else f", weight {parent['weight']:.6g}"
        away = (
            ""
            if parent.get("distance") is None
            else f", {parent['distance']:.2%} from {facts['parents'][0]['name']}"
        )
        click.echo(f"{parent['role']} {parent['name']}: {parent['path']}{factor}{away}")
    vocabulary = facts["vocabulary"]
    new = ""
    if vocabulary["new_rows"]:
        new = f" ({vocabulary['new_rows']:,} of them only in {', '.join(vocabulary['new_rows_from'])})"
    click.echo(
        f"{facts['method']} in FP32, written in {facts['dtype']} as {facts['format']}; {vocabulary['rows']:,} rows of the "
        f"embedding{new}; tokenizer of {facts['tokenizer']}"
    )
