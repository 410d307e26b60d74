"""`emma convert`: Hugging Face ⇄ Megatron, and proof of parity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.command_group import SuggestingGroup
from emma.base.errors import CheckFailedError, UserError
from emma.commands.amount import Amount
from emma.commands.convert_inspect import inspect
from emma.commands.convert_merge import merge
from emma.commands.convert_options import (
    DRY_RUN,
    DTYPE,
    JSON,
    OVERWRITE,
    PATH,
    TEXT,
    TEXT_ONLY,
    TOLERANCE,
    WEIGHTS,
    Size,
    Steps,
    say_released,
)
from emma.commands.convert_verify import verify
from emma.commands.convert_vocabulary import extend_vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from emma.base.manifest import Manifest
    from emma.checkpoints_conversion.weights import Weights

__all__ = ["group"]


@click.group(cls=SuggestingGroup)
def group() -> None:
    """Hugging Face ⇄ Megatron checkpoints, and proof of parity.

    Both directions stream: they need no GPU, no model in memory, and no process group, and a round trip
    restores the same bits. A failed conversion leaves nothing behind.
    """


group.add_command(inspect)
group.add_command(verify)
group.add_command(extend_vocabulary)
group.add_command(merge)


def _print(value: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    for name, item in value.items():
        click.echo(f"{name.replace('_', ' ')}: {json.dumps(item, ensure_ascii=False)}")


def _written(destination: Path, manifest: Manifest, as_json: bool) -> None:
    size = sum(record.bytes for record in manifest.outputs)
    if as_json:
        _print({"destination": str(destination), "bytes": size, **manifest.extra}, True)
    else:
        click.echo(
            f"{destination}: {len(manifest.outputs)} files, {size / 1e9:.3f} GB, {manifest.extra['dtype']}"
        )
        if released := manifest.extra.get("released"):
            say_released(released)


def _proof(
    source: Path, destination: Path, text: Path | None, tolerance: float, **options: Any
) -> Callable[..., str]:
    """The check of a fresh conversion, of parameters and logits; its report goes into the folder."""

    def check(weights: Weights, folder: Path, released: dict[str, Any] | None = None) -> str:
        from emma.checkpoints_conversion.parity import compare_weights, read_texts
        from emma.checkpoints_conversion.weights import open_weights

        report = compare_weights(
            weights,
            open_weights(folder),
            None if text is None else read_texts(text),
            names=(str(source), str(destination)),
            released=released,
            tolerance=tolerance,
            **options,
        )
        if not report.passed:
            raise CheckFailedError(
                f"{destination} was not written, because it would differ from the model in {source}: "
                + "; ".join(report.faults())
            )
        report.write(folder)
        return "passed"

    return check


@group.command("hf-to-megatron")
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("destination", metavar="DST", type=PATH)
@click.option(
    "--model",
    metavar="NAME",
    help="Model recipe (name or YAML file) that SRC must match; its padding is used.",
)
@DTYPE
@TEXT_ONLY
@click.option(
    "--parity/--no-parity", default=False, show_default=True, help="Prove parity before DST appears."
)
@click.option(
    "--allow-nonfinite",
    metavar="NAME[,NAME…]",
    multiple=True,
    help="Parameters that may hold NaN or infinite values, which are otherwise refused; manifest.json records them.",
)
@TEXT
@TOLERANCE
@OVERWRITE
@DRY_RUN
@JSON
def hf_to_megatron(
    source: Path,
    destination: Path,
    model: str | None,
    dtype: str | None,
    text_only: bool,
    parity: bool,
    allow_nonfinite: tuple[str, ...],
    text: Path | None,
    tolerance: float,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Import the Hugging Face model in SRC as a Megatron checkpoint in DST.

    SRC holds config.json and safetensors files of an architecture of recipes/architectures. DST gets `iter_0000000/` with the
    weights, a description of the model, and its tokenizer. It can be a run's `start.checkpoint` at any
    tensor- and pipeline-parallel size: Megatron loads it with `--load DST --finetune`.
    """
    from emma.checkpoints_conversion import hf_to_megatron as conversion
    from emma.recipes.load import load_section

    section = None if model is None else load_section("model", model)
    if dry_run:
        _print(conversion.plan(source, model=section, dtype=dtype, text_only=text_only), as_json)
        return
    check = _proof(source, destination, text, tolerance) if parity else None
    manifest = conversion.convert(
        source,
        destination,
        model=section,
        dtype=dtype,
        text_only=text_only,
        overwrite=overwrite,
        allow_nonfinite=[name for names in allow_nonfinite for name in names.split(",")],
        check=check,
    )
    if left := manifest.extra["left_behind"]:
        click.echo(
            f"left behind: {len(left)} parameters that are not the text model's ({left[0]}, …)", err=True
        )
    for warning in manifest.extra["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    _written(destination, manifest, as_json)


@group.command("megatron-to-hf")
@click.argument("source", metavar="SRC", type=PATH)
@click.argument("destination", metavar="[DST]", type=PATH, required=False)
@click.option("--step", type=int, help="Checkpoint to export. Default: the latest complete one.")
@WEIGHTS
@click.option(
    "--average", type=Steps(), default=(), help="Export the mean of these steps, e.g. 1000,2000,3000."
)
@DTYPE
@click.option(
    "--shard-size", type=Size(), default="5GB", show_default=True, help="Maximum size of a safetensors file."
)
@click.option("--tokenizer", type=PATH, help="Folder with the tokenizer's files, instead of the recipe's.")
@click.option(
    "--parity/--no-parity", default=True, show_default=True, help="Prove parity before DST appears."
)
@TEXT
@TOLERANCE
@click.option(
    "--watch", "watching", is_flag=True, help="Export each checkpoint of a running job to DST/step-N."
)
@click.option(
    "--interval",
    type=Amount(at_least=0.1),
    default=30.0,
    show_default=True,
    help="Seconds between checks with --watch.",
)
@OVERWRITE
@DRY_RUN
@JSON
def megatron_to_hf(
    source: Path,
    destination: Path | None,
    step: int | None,
    weights: str,
    average: tuple[int, ...],
    dtype: str | None,
    shard_size: int,
    tokenizer: Path | None,
    parity: bool,
    text: Path | None,
    tolerance: float,
    watching: bool,
    interval: float,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Export a Megatron checkpoint of SRC as a Hugging Face model in DST.

    SRC is a run folder, a folder of checkpoints, or a single checkpoint, written with any layout of ranks. DST is SRC/hf/step-N
    by default, if SRC is a run folder: where evaluation, report and release look.
    DST gets safetensors with an index, config.json, generation_config.json, the tokenizer, manifest.json, and
    the proof that it is the same model: parity.json and parity.html. A checkpoint whose files are not what was
    written is refused.
    """
    from emma.checkpoints_conversion import megatron_to_hf as conversion
    from emma.checkpoints_conversion.checkpoint import check_written

    options: dict[str, Any] = {
        "weights": weights,
        "dtype": dtype,
        "shard_bytes": shard_size,
        "tokenizer": tokenizer,
    }

    def export(number: int | None, target: Path) -> Manifest:
        for each in average or (number,):
            check_written(source, each)
        check = _proof(source, target, text, tolerance) if parity else None
        return conversion.convert(
            source, target, step=number, average=average, overwrite=overwrite, check=check, **options
        )

    if destination is None:
        if average or watching or not (source / "recipe.yaml").is_file():
            raise UserError(
                f"{source}: where to? Fix: name DST, which only the export of a step of a run folder can do without"
            )
        exported = conversion.plan(source, step=step, **options)["steps"][-1]
        destination = source / "hf" / f"step-{exported}"

    if watching:
        from emma.checkpoints_conversion.watch import last_step, watch

        if step is not None or average or dry_run or overwrite:
            raise UserError(
                "--watch exports every step and cannot be combined with --step, --average, --overwrite, or --dry-run"
            )
        steps = watch(
            source,
            destination,
            lambda number, target: _written(target, export(number, target), False),
            until=last_step(source),
            interval=interval,
            say=lambda message: click.echo(message, err=True),
        )
        if as_json:
            _print({"destination": str(destination), "steps": steps}, True)
        return
    if dry_run:
        _print(conversion.plan(source, step=step, average=average, **options), as_json)
        return
    _written(destination, export(step, destination), as_json)
