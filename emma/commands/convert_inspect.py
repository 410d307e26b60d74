"""`emma convert inspect`: what a checkpoint or a model's folder holds, without executing any of it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from emma.base.errors import CheckFailedError

__all__ = ["inspect"]


@click.command("inspect")
@click.argument("checkpoint", metavar="CHECKPOINT", type=click.Path(path_type=Path))
@click.option("--step", type=int, help="Which of several checkpoints. Default: the last, complete or not.")
@click.option("--tensors", "every_tensor", is_flag=True, help="List every tensor with its type and sizes.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON, with every tensor.")
def inspect(checkpoint: Path, step: int | None, every_tensor: bool, as_json: bool) -> None:
    """Say what CHECKPOINT holds, without executing or loading any of it.

    CHECKPOINT is a run folder, a folder of checkpoints, a checkpoint of Megatron (torch_dist, or torch with a
    pickle per rank), a Hugging Face folder (safetensors or pytorch_model.bin), or a tokenizer's folder. Prints its
    format, step, tensors and sizes, what is missing, every name that its pickles refer to, and custom code that it
    brings. Needs no torch.

    Exits with code 1 if a pickle refers to anything but plain values and tensors, if the folder asks for custom
    code, or if parts are missing.
    """
    from emma.tools.inspection.folders import inspect_folder
    from emma.tools.runs.checkpoints import COMPLETE_MARK

    found = inspect_folder(checkpoint, step)
    # Stock Megatron leaves no marks; where some checkpoints beside it have one, this one was not finished.
    mark, beside = found.folder / COMPLETE_MARK, found.folder.absolute().parent
    if not mark.is_file() and (
        any(beside.glob(f"iter_*/{COMPLETE_MARK}")) or (beside.parent / "launches").is_dir()
    ):
        found.missing.append(f"{COMPLETE_MARK}: the save did not finish")
    click.echo(
        json.dumps(found.as_dict(), indent=2, ensure_ascii=False)
        if as_json
        else found.as_text(every_tensor=every_tensor)
    )
    faults = [
        *([f"{len(found.refused)} pickles are refused"] if found.refused else []),
        *([f"it asks for custom code or brings it ({len(found.code)})"] if found.code else []),
        *([f"{len(found.missing)} parts are missing"] if found.missing else []),
    ]
    if faults:
        raise CheckFailedError(f"{found.folder}: " + "; ".join(faults))
