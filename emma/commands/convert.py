"""`emma convert`: Hugging Face ⇄ Megatron, and proof of parity."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emma.base.errors import CheckFailedError, UserError
from emma.commands.amount import Amount
from emma.commands.convert_inspect import inspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from emma.base.manifest import Manifest
    from emma.checkpoints_conversion.parity import Report
    from emma.checkpoints_conversion.weights import Weights

__all__ = ["group"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_PATH = click.Path(path_type=Path)


class _Size(click.ParamType[int]):
    """`5GB`, `500MB`, or a number of bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([\d.]+)\s*([KMGT]?B?)", str(value).strip().upper())
        if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
            self.fail(f"{value!r} is not a size; write 5GB, 500MB, or a number of bytes", param, ctx)
        return int(float(match[1]) * _UNITS[match[2]])


class _Steps(click.ParamType[tuple[int, ...]]):
    """`1000,2000,3000`."""

    name = "steps"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).replace(",", " ").split()
        if not parts or not all(part.isdigit() for part in parts):
            self.fail(f"{value!r} is not a list of steps; write 1000,2000,3000", param, ctx)
        return tuple(int(part) for part in parts)


_DTYPE = click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Cast the weights; by default every weight keeps its type.",
)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace DST if it exists.")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Check the input and show what would be written.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_TEXT = click.option(
    "--text",
    type=_PATH,
    help="Text for the logits: JSON lines or parquet with `text` and `language`, or plain text, one per line. "
    "By default a built-in sample of 19 languages.",
)
_WEIGHTS = click.option(
    "--weights",
    type=click.Choice(["auto", "model", "optimizer"]),
    default="auto",
    show_default=True,
    help="Of a Megatron checkpoint: the weights of the forward pass (model), or the optimizer's FP32 main weights. "
    "auto: the latter if the run kept the former in FP8 (precision.fp8_params), which rounds them.",
)
_TOLERANCE = click.option(
    "--tolerance",
    type=Amount(at_least=0),
    default=1e-4,
    show_default=True,
    help="Largest allowed difference between two logits.",
)


@click.group()
def group() -> None:
    """Hugging Face ⇄ Megatron checkpoints, and proof of parity.

    Both directions stream: they need no GPU, no model in memory, and no process group, and a round trip
    restores the same bits. A failed conversion leaves nothing behind.
    """


group.add_command(inspect)


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
            _say_released(released)


def _say_released(record: dict[str, Any]) -> None:
    from emma.checkpoints_conversion.main_weights import release_sentence

    click.echo(f"weights: {release_sentence(record)}")


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
@click.argument("source", metavar="SRC", type=_PATH)
@click.argument("destination", metavar="DST", type=_PATH)
@click.option(
    "--model",
    metavar="NAME",
    help="Model recipe (name or YAML file) that SRC must match; its padding is used.",
)
@_DTYPE
@click.option(
    "--parity/--no-parity", default=False, show_default=True, help="Prove parity before DST appears."
)
@click.option(
    "--allow-nonfinite",
    metavar="NAME[,NAME…]",
    multiple=True,
    help="Parameters that may hold NaN or infinite values, which are otherwise refused; manifest.json records them.",
)
@_TEXT
@_TOLERANCE
@_OVERWRITE
@_DRY_RUN
@_JSON
def hf_to_megatron(
    source: Path,
    destination: Path,
    model: str | None,
    dtype: str | None,
    parity: bool,
    allow_nonfinite: tuple[str, ...],
    text: Path | None,
    tolerance: float,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Import the Hugging Face model in SRC as a Megatron checkpoint in DST.

    SRC holds config.json and safetensors files of a Llama (2, 3, 3.1, 3.2). DST gets `iter_0000000/` with the
    weights, a description of the model, and its tokenizer. It can be a run's `start.checkpoint` at any
    tensor- and pipeline-parallel size: Megatron loads it with `--load DST --finetune`.
    """
    from emma.checkpoints_conversion import hf_to_megatron as conversion
    from emma.recipes.load import load_section

    section = None if model is None else load_section("model", model)
    if dry_run:
        _print(conversion.plan(source, model=section, dtype=dtype), as_json)
        return
    check = _proof(source, destination, text, tolerance) if parity else None
    manifest = conversion.convert(
        source,
        destination,
        model=section,
        dtype=dtype,
        overwrite=overwrite,
        allow_nonfinite=[name for names in allow_nonfinite for name in names.split(",")],
        check=check,
    )
    for warning in manifest.extra["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    _written(destination, manifest, as_json)


@group.command("megatron-to-hf")
@click.argument("source", metavar="SRC", type=_PATH)
@click.argument("destination", metavar="DST", type=_PATH)
@click.option("--step", type=int, help="Checkpoint to export. Default: the latest complete one.")
@_WEIGHTS
@click.option(
    "--average", type=_Steps(), default=(), help="Export the mean of these steps, e.g. 1000,2000,3000."
)
@_DTYPE
@click.option(
    "--shard-size", type=_Size(), default="5GB", show_default=True, help="Maximum size of a safetensors file."
)
@click.option("--tokenizer", type=_PATH, help="Folder with the tokenizer's files, instead of the recipe's.")
@click.option(
    "--parity/--no-parity", default=True, show_default=True, help="Prove parity before DST appears."
)
@_TEXT
@_TOLERANCE
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
@_OVERWRITE
@_DRY_RUN
@_JSON
def megatron_to_hf(
    source: Path,
    destination: Path,
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

    SRC is a run folder, a folder of checkpoints, or a single checkpoint, written with any layout of ranks.
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


@group.command("verify")
@click.argument("a", metavar="A", type=_PATH)
@click.argument("b", metavar="[B]", type=_PATH, required=False)
@_TEXT
@click.option("--tokenizer", type=_PATH, help="Folder with tokenizer.json. Default: that of A or B.")
@click.option(
    "--step", type=int, help="Step in a folder with several checkpoints. Default: the latest complete one."
)
@_WEIGHTS
@_TOLERANCE
@click.option(
    "--length", type=click.IntRange(2), default=64, show_default=True, help="Maximum tokens per text."
)
@click.option(
    "--mixed-length",
    type=click.IntRange(0),
    default=512,
    show_default=True,
    help="Maximum tokens of the sequence that spans all languages.",
)
@click.option("--tensors/--no-tensors", default=True, help="Compare parameters bit for bit.")
@click.option("--logits/--no-logits", default=True, help="Compare logits in FP32.")
@click.option("--output", type=_PATH, help="Folder for parity.json and parity.html. Default: B.")
@_JSON
def verify(
    a: Path,
    b: Path | None,
    text: Path | None,
    tokenizer: Path | None,
    step: int | None,
    weights: str,
    tolerance: float,
    length: int,
    mixed_length: int,
    tensors: bool,
    logits: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Prove that A and B, each a Hugging Face model or a Megatron checkpoint, are the same model.

    Compares every parameter bit for bit, and the logits of transformers and Megatron in FP32, with one layer
    in memory at a time. The files of a Megatron checkpoint are compared with what was written first; with A alone
    (a run, a folder of checkpoints or a single one), that is all. Exits with code 1 if anything differs.
    """
    from emma.commands.checkpoint_files import checkpoints_of
    from emma.commands.checkpoint_files import report as report_files

    if b is None:
        ledger = a / "checkpoints.jsonl"
        report_files(checkpoints_of(a), ledger if ledger.is_file() else None, as_json)
        return
    from emma.checkpoints_conversion.checkpoint import check_written
    from emma.checkpoints_conversion.parity import compare, read_texts

    if not tensors and not logits:
        raise UserError("--no-tensors and --no-logits leave nothing to compare")
    for side in (a, b):
        check_written(side, step)
    report = compare(
        a,
        b,
        None if text is None else read_texts(text),
        step=step,
        weights=weights,
        tokenizer=tokenizer,
        tolerance=tolerance,
        tensors=tensors,
        logits=logits,
        length=length,
        mixed_length=mixed_length,
    )
    folder = b if output is None else output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.write(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write the report there ({error}); name a folder with --output"
        ) from None
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        _summarise(report, folder)
    if not report.passed:
        raise CheckFailedError(f"{a} and {b} are not the same model: " + "; ".join(report.faults()))


def _summarise(report: Report, folder: Path) -> None:
    if report.tensors is not None:
        click.echo(
            f"parameters: {len(report.tensors) - len(report.different)} of {len(report.tensors)} equal"
        )
    if report.released is not None:
        _say_released(report.released)
    if report.logits is not None:
        totals = report.logits
        click.echo(
            f"logits: max |Δ| {totals.max_abs_delta:.3g} (allowed {totals.tolerance:.0e}), mean KL {totals.mean_kl:.3g}, "
            f"same top token {totals.top1_agreement:.2%}, {totals.tokens} positions in "
            f"{len(totals.languages)} groups; tokenizer {totals.tokenizer}"
        )
    click.echo(f"report: {folder / 'parity.html'}")
