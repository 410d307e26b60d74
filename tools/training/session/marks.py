"""Completion marks and retention: a finished checkpoint gets its `complete.json` with the checksums of its files and is
put in its place among the run's checkpoints, then old checkpoints are deleted.

Answers `save_checkpoint_and_time` (after a blocking save) and `maybe_finalize_async_save` (after a save in the
background has ended). The mark itself is in `tools/runs/checkpoints.py`.

Each rank reads the files that it has written, right after it has written them. On the node that wrote it, a file comes
from the page cache: its checksum is that of the bytes handed to the file system, not of what the disk made of them, so
damage on the way to the disk is found too, when another launch reads the file. It also costs no traffic, and is as
balanced as the writing was. After a save in the background the reading is done in the background too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from megatron.training import async_utils

from emma.base.errors import UserError
from emma.base.files import fsync_path, write_text
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import (
    TRACKER,
    checkpoint_files,
    checkpoint_folder,
    mark_complete,
    prune,
    tracked_step,
)
from emma.tools.runs.checksums import Advance, ListedFile, checksums
from emma.tools.runs.fence import Fence, at
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.set_aside import record_event
from emma.tools.training.dataset import MixInfo
from emma.tools.training.session.shares import Work, all_ended, gather, read_together, say

__all__ = ["Marks"]

_WRITER = re.compile(r"__(\d+)_\d+\.distcp")

type Read = dict[str, ListedFile] | str
"""The files of a rank, or why it could not read them."""


class Marks:
    """Marks each checkpoint once: all ranks read, rank 0 writes."""

    def __init__(self, recipe: Recipe, run: RunFolder, fence: Fence, mix: MixInfo) -> None:
        self.recipe, self.run, self.fence, self.mix = recipe, run, fence, mix
        self._marked: int | None = None
        self._pending: tuple[int, float, Work[Read]] | None = None

    def save_checkpoint_and_time(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Saves, and marks what was saved unless it is still being written."""
        result = original(*values, **named)
        if not self.recipe.checkpoint.asynchronous and (step := self._newly_saved()) is not None:
            begun = time.perf_counter()
            self._mark(step, begun, read_together(lambda advance: self._read(step, advance), 0, ""))
        return result

    def maybe_finalize_async_save(
        self, original: Callable[..., Any], blocking: bool = False, *rest: Any, **named: Any
    ) -> Any:
        """Marks the checkpoint whose writing and reading have ended, if there is one."""
        if not self.recipe.checkpoint.asynchronous:
            return original(blocking, *rest, **named)
        # The same on all ranks, so that all take part in what follows; without a save under way nothing is asked.
        writing = not async_utils.is_empty_async_queue()
        result = original(blocking, *rest, **named)
        if writing and (step := self._newly_saved()) is not None:
            self._finish(wait=True)
            self._pending = (step, time.perf_counter(), Work(lambda advance: self._read(step, advance)))
        self._finish(wait=blocking)
        return result

    def _newly_saved(self) -> int | None:
        """The step in Megatron's tracker file, which is written when all ranks are done, if it has no mark yet; as
        rank 0 sees it."""
        found = torch.full((1,), -1, dtype=torch.int64, device="cuda")
        if torch.distributed.get_rank() == 0:
            step = tracked_step(self.fence.saves)
            found.fill_(-1 if step is None else step)
        torch.distributed.broadcast(found, 0)
        step = int(found.item())
        if step < 0 or step == self._marked:
            return None
        self._marked = step
        return step

    def _finish(self, *, wait: bool) -> None:
        """Marks the checkpoint that is being read, once all ranks have read theirs."""
        if self._pending is None:
            return
        step, begun, work = self._pending
        if wait:
            work.ended(None)
        if all_ended(work)[0]:
            self._pending = None
            self._mark(step, begun, work.result())

    def _read(self, step: int, advance: Advance) -> Read:
        """Checksums of the files that this rank wrote; on rank 0 also of those that no rank of this launch did."""
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        folder = checkpoint_folder(self.fence.saves, step)
        if rank:
            # By name, without a look at the files of all other ranks.
            names = [path.name for path in folder.glob(f"__{rank}_*.distcp")]
        else:
            others = {str(number) for number in range(1, ranks)}
            names = [name for name in checkpoint_files(folder) if _WRITER.sub(r"\1", name) not in others]
        try:
            return checksums(folder, names, advance)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    def _mark(self, step: int, begun: float, read: Read) -> None:
        """Marks the checkpoint on rank 0; a collective.

        Raises:
            UserError: a rank cannot read what it wrote (on all ranks).
        """
        shares = list[dict[str, ListedFile]]()
        for share in gather(read):
            if isinstance(share, str):
                raise UserError(
                    f"the checkpoint of step {step} was written and cannot be read: {share}. It is not marked complete, "
                    "and the run stops. Fix: look at the file system, and start again"
                )
            shares.append(share)
        if torch.distributed.get_rank() != 0:
            return
        files = {name: file for share in shares for name, file in share.items()}
        samples, checkpoint = step * self.recipe.batch.global_, self.recipe.checkpoint
        checkpoints, saved = self.run.checkpoints, checkpoint_folder(self.fence.saves, step)
        at("saved")
        # A resumed run does not repeat these steps, so their rows must not be lost with the power either.
        if self.run.metrics_file.is_file():
            fsync_path(self.run.metrics_file)
            fsync_path(self.run.path)
        with self.fence.or_displaced():
            mark_complete(
                saved,
                files,
                step=step,
                consumed_samples=samples,
                consumed_tokens=samples * self.recipe.batch.sequence_length,
                mix=self.mix.fingerprint,
                recipe_sha256=self.recipe.sha256,
            )
        at("marked")
        self.fence.give(saved, checkpoint_folder(checkpoints, step))
        at("in place")
        with self.fence.writing(checkpoints / TRACKER) as tracker:
            write_text(tracker, str(step))
        size = sum(file.bytes for file in files.values())
        seconds = round(time.perf_counter() - begun, 3)
        say(f"checkpoint of step {step}: {size / 2**30:,.2f} GiB, checksums in {seconds:,.1f} s")
        record_event(
            self.run.checkpoints_log,
            self.fence,
            "saved",
            step=step,
            launch=self.fence.number,
            bytes=size,
            checksum_seconds=seconds,
        )
        prune(checkpoints, checkpoint.keep, checkpoint.keep_every, self.fence.delete)
