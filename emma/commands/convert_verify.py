"""`emma convert verify`: proof that two models are the same, or that a checkpoint's files are what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emma.base.errors import CheckFailedError, UserError
from emma.commands.convert_options import JSON, PATH, TEXT, TEXT_ONLY, TOLERANCE, WEIGHTS, say_released

if TYPE_CHECKING:
    from emma.checkpoints_conversion.parity import Report

__all__ = ["verify"]


@click.command("verify")
@click.argument("a", metavar="A", type=PATH)
@click.argument("b", metavar="[B]", type=PATH, required=False)
@TEXT
@click.option("--tokenizer", type=PATH, help="Folder with tokenizer.json. Default: that of A or B.")
@click.option(
    "--step", type=int, help="Step in a folder with several checkpoints. Default: the latest complete one."
)
@WEIGHTS
@TEXT_ONLY
@TOLERANCE
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
@click.option("--output", type=PATH, help="Folder for parity.json and parity.html. Default: B.")
@JSON
def verify(
    a: Path,
    b: Path | None,
    text: Path | None,
    tokenizer: Path | None,
    step: int | None,
    weights: str,
    text_only: bool,
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
    (a run, a folder of checkpoints or a single one), that is all. A folder that `emma convert merge` wrote, alone, is
    computed once more from its parents. Exits with code 1 if anything differs.
    """
    from emma.checkpoints_conversion.merging import is_merge
    from emma.commands.checkpoint_files import checkpoints_of
    from emma.commands.checkpoint_files import report as report_files

    if b is None and not is_merge(a):
        ledger = a / "checkpoints.jsonl"
        report_files(checkpoints_of(a), ledger if ledger.is_file() else None, as_json)
        return
    from emma.checkpoints_conversion.checkpoint import check_written
    from emma.checkpoints_conversion.parity import compare, read_texts

    if not tensors and not logits:
        raise UserError("--no-tensors and --no-logits leave nothing to compare")
    if b is None:
        from emma.checkpoints_conversion.merging.again import prove

        report = prove(
            a,
            None if text is None else read_texts(text),
            tolerance=tolerance,
            logits=logits,
            length=length,
            mixed_length=mixed_length,
        )
        _finish(report, a if output is None else output, as_json, f"{a} is not the merge of its parents")
        return
    for side in (a, b):
        check_written(side, step)
    report = compare(
        a,
        b,
        None if text is None else read_texts(text),
        step=step,
        weights=weights,
        text_only=text_only,
        tokenizer=tokenizer,
        tolerance=tolerance,
        tensors=tensors,
        logits=logits,
        length=length,
        mixed_length=mixed_length,
    )
    _finish(report, b if output is None else output, as_json, f"{a} and {b} are not the same model")


def _finish(report: Report, folder: Path, as_json: bool, verdict: str) -> None:
    """Writes and prints a report; fails if it does."""
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
        raise CheckFailedError(f"{verdict}: " + "; ".join(report.faults()))


def _summarise(report: Report, folder: Path) -> None:
    if report.tensors is not None:
        click.echo(
            f"parameters: {len(report.tensors) - len(report.different)} of {len(report.tensors)} equal"
        )
    if report.released is not None:
        say_released(report.released)
    if report.logits is not None:
        totals = report.logits
        click.echo(
            f"logits: max |Δ| {totals.max_abs_delta:.3g} (allowed {totals.tolerance:.0e}), mean KL {totals.mean_kl:.3g}, "
            f"same top token {totals.top1_agreement:.2%}, {totals.tokens} positions in "
            f"{len(totals.languages)} groups; tokenizer {totals.tokenizer}"
        )
    click.echo(f"report: {folder / 'parity.html'}")
