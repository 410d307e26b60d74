"""Whether the files of checkpoints are what was written: `emma train RUN --verify-checkpoints`, `emma convert verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emma.base.errors import CheckFailedError, UserError
from emma.base.progress import progress

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["checkpoints_of", "report"]


def checkpoints_of(source: Path) -> list[Path]:
    """The checkpoint folders of a run folder, of a folder of checkpoints, or of itself, in the order of steps.

    Raises:
        UserError: there is none.
    """
    from emma.tools.runs.checkpoints import checkpoint_folder, checkpoint_steps

    root = source / "checkpoints" if (source / "checkpoints").is_dir() else source
    found = [checkpoint_folder(root, step) for step in checkpoint_steps(root)]
    if not found and ((source / "complete.json").is_file() or (source / ".metadata").is_file()):
        found = [source]
    if not found:
        raise UserError(f"{source}: no Megatron checkpoint (iter_NNNNNNN) in it")
    return found


def report(folders: Sequence[Path], ledger: Path | None, as_json: bool) -> None:
    """Reads every file of the checkpoints and prints a row for each.

    Args:
        folders: the checkpoints.
        ledger: the run's `checkpoints.jsonl`, which tells a checkpoint whose mark is gone from an unfinished save.
        as_json: print JSON.

    Raises:
        CheckFailedError: one is damaged, or could not be read.
    """
    import orjson

    from emma.tools.runs.integrity import verify
    from emma.tools.runs.set_aside import events, set_asides

    saved = {event["step"] for event in (events(ledger) if ledger else []) if event["event"] == "saved"}
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    verdicts = []
    bar: tqdm[None] = progress(total=size, desc="verify", unit="B", unit_scale=True)
    with bar:
        for folder in folders:
            verdict = verify(folder, bar.update)
            digits = folder.name.removeprefix("iter_")
            if verdict.state == "incomplete" and digits.isdigit() and int(digits) in saved:
                verdict = verdict.as_damaged()
            verdicts.append(verdict)
    aside = set_asides(folders[0].parent)
    if as_json:
        rows = [
            {
                "folder": str(v.folder),
                "state": v.state,
                "files": v.files,
                "bytes": v.bytes,
                "faults": v.faults,
            }
            for v in verdicts
        ]
        gone = [{"folder": str(path), "step": r.step, "reason": r.reason} for path, r in aside.items()]
        click.echo(
            orjson.dumps({"checkpoints": rows, "set_aside": gone}, option=orjson.OPT_INDENT_2).decode()
        )
    else:
        for v in verdicts:
            click.echo(
                f"{v.folder.name:16} {v.state:10} {v.files:6,} files {v.bytes / 2**30:10.3f} GiB  {'; '.join(v.faults)}".rstrip()
            )
        for path, record in aside.items():
            click.echo(f"{path.name}: set aside: {record.reason}")
    bad = [v for v in verdicts if v.state in ("damaged", "unreadable")]
    if bad:
        raise CheckFailedError(
            "; ".join(f"{v.folder} is {v.state}: {', '.join(v.faults)}" for v in bad)
            + ". Fix: training resumes from the checkpoint before a damaged one by itself; to keep this one, restore its files"
        )
