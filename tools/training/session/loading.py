"""Before and while Megatron loads a checkpoint: nothing is loaded whose files are not what was written, and a rank that
cannot load does not leave the others waiting.

Answers `load_checkpoint`, around everything. What is checked before loading is in `_before_loading`, in one place.
What is done about a checkpoint that fails is in `tools/runs/set_aside.py` and `tools/runs/run_folder.py`.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from emma.base.errors import UserError
from emma.megatron_patches.inert_loading import refusal
from emma.tools.runs.checkpoints import checkpoint_folder, listed_files
from emma.tools.runs.checksums import PAUSES, TRANSIENT, Advance, ListedFile
from emma.tools.runs.integrity import Fault, check_files, deal, without_checksums
from emma.tools.runs.run_folder import Launch, RunFolder
from emma.tools.runs.set_aside import Damaged, LoadFailure
from emma.tools.training.session.shares import gather, read_together, say

__all__ = ["Loading", "verify_together"]

# gloo's words for a rank that is gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")

_STOP = "emma/a rank could not load the checkpoint"


class Loading:
    """Verifies the checkpoint of this launch, by all ranks together, and lets Megatron load it."""

    def __init__(self, run: RunFolder, launch: Launch) -> None:
        self.run, self.launch = run, launch
        self._verified = True

    def load_checkpoint(self, original: Callable[..., Any], *values: Any, **named: Any) -> Any:
        """Checks, then loads.

        Raises:
            Damaged: a checkpoint of this run is damaged (on all ranks).
            UserError: the checkpoint of another folder is damaged, or nodes disagree about what a file holds.
        """
        load = self.launch.load
        assert load.folder is not None
        self._before_loading(checkpoint_folder(Path(load.folder), load.step or 0))
        with self._all_or_none():
            return original(*values, **named)

    def _before_loading(self, checkpoint: Path) -> None:
        faults = verify_together(checkpoint)
        self._verified = bool(faults) or not without_checksums(listed_files(checkpoint))
        if not faults:
            return
        reason = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        if self.run.owns(self.launch.load) and self.launch.load.step is not None:
            raise Damaged(self.launch.load.step, reason)
        raise UserError(
            f"start.checkpoint: {checkpoint} is damaged: {reason}. Nothing was loaded, and nothing in that folder is "
            "changed. Fix: import or copy it again, or choose another step (start.step)"
        )

    @contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """Reports a failure of this rank among the launch's logs, and ends the ranks that wait for it."""
        with _leaving_together() as tell_others:
            try:
                yield
                torch.distributed.barrier()
            except (KeyboardInterrupt, UserError):
                # A part of the session has refused to go on, on all ranks and for a reason of its own.
                raise
            except BaseException as error:  # torch's CheckpointException is no Exception
                if (refused := refusal()) is not None and self._verified:
                    # A forged pickle, not damage: the files are what was written.
                    tell_others()
                    raise refused from error
                failure = LoadFailure(
                    self.launch.load.step,
                    torch.distributed.get_rank(),
                    socket.gethostname(),
                    _kind(error),
                    _words(error),
                )
                try:
                    failure.write(Path(self.launch.logs))
                finally:
                    tell_others()
                if isinstance(error, SystemExit):
                    # Megatron leaves by `sys.exit()` where it cannot read a file; that is not a clean end.
                    raise UserError(
                        f"{self.launch.load.folder}: {failure}; the lines above say why"
                    ) from error
                raise


def verify_together(checkpoint: Path) -> list[str]:
    """Verifies a checkpoint, each file on one rank; a collective. Every rank gets the same answer.

    A file that one rank finds wrong is looked at by another, on another node where there is one, before it counts.

    Returns:
        What is wrong with it, empty if nothing is.

    Raises:
        UserError: ranks disagree, or cannot look at a file.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    files, damage = _mark(checkpoint)
    if damage is not None:
        return [damage]
    if without_checksums(files):
        say(
            f"warning: {checkpoint}: an older version wrote complete.json, with sizes only; the files have the right "
            "sizes, and their content cannot be verified"
        )
    shares = deal({name: file.bytes for name, file in files.items()}, ranks)
    size = 0 if without_checksums(files) else sum(file.bytes for file in files.values())

    def check(names: list[str]) -> Callable[[Advance], list[Fault]]:
        part = {name: files[name] for name in names}
        return lambda advance: check_files(checkpoint, part, advance, lambda text: print(text, flush=True))

    first = read_together(check(shares[rank]), size, f"{checkpoint.name}: compared with what was written:")
    found = {fault.file: fault for faults in gather(first) for fault in faults}
    if not found:
        return []
    # The other rank is half the ranks away, so on another node where there is more than one.
    other = {
        name: (owner + ranks // 2) % ranks
        for owner, names in enumerate(shares)
        for name in names
        if name in found
    }
    again = read_together(check([name for name, looks in other.items() if looks == rank]), 0, "")
    confirmed = {fault.file: fault for faults in gather(again) for fault in faults}
    for name, fault in found.items():
        if name not in confirmed:
            raise UserError(
                f"{checkpoint}: one rank says that {fault}, and rank {other[name]} reads it right. Nothing was loaded, "
                "and the checkpoint is kept. Fix: exclude the node with the wrong memory or file system (the ranks' "
                "logs name it)"
            )
        if not fault.damage or not confirmed[name].damage:
            raise UserError(
                f"{checkpoint}: {fault}. Nothing was loaded. Fix: let this user and node read the file"
            )
    return [str(fault) for fault in found.values()]


def _mark(checkpoint: Path) -> tuple[dict[str, ListedFile], str | None]:
    """The completion mark as rank 0 reads it, and what is wrong with it."""
    read: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        read = [_read_mark(checkpoint)]
        if isinstance(read[0], str):
            time.sleep(PAUSES[0])
            read = [_read_mark(checkpoint)]
    torch.distributed.broadcast_object_list(read, 0)
    if isinstance(read[0], OSError):
        raise UserError(
            f"{checkpoint}: {read[0]}. Nothing was loaded. Fix: let this user and node read the file"
        )
    return ({}, read[0]) if isinstance(read[0], str) else (read[0], None)


def _read_mark(checkpoint: Path) -> dict[str, ListedFile] | str | OSError:
    try:
        return listed_files(checkpoint)
    except UserError as error:
        return str(error)
    except OSError as error:
        return error


@contextmanager
def _leaving_together() -> Iterator[Callable[[], None]]:
    """While the block runs, this rank ends as soon as another one has called what is lent here.

    A rank that waits in a collective for one that is gone hears nothing, with NCCL for minutes; a signal only sets
    Megatron's flag. So a thread looks into the ranks' common store. Nothing is lost: nothing has been trained yet.
    """
    store: Any = torch.distributed.distributed_c10d._get_default_store()
    store = store.clone()  # a connection of its own: the other one may be waiting
    over = threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            try:
                stop = store.check([_STOP])
            except RuntimeError:
                # torch's store errors are RuntimeErrors; the store ends with the rank or launcher that holds it.
                stop = not over.is_set()
            if stop:
                print(
                    "another rank could not load the checkpoint; this one stops", file=sys.stderr, flush=True
                )
                os._exit(1)

    watch = threading.Thread(target=look, daemon=True)
    watch.start()

    def tell_others() -> None:
        over.set()
        watch.join()
        with suppress(RuntimeError):  # the store went with the rank that held it, so the others know
            store.set(_STOP, b"1")

    try:
        yield tell_others
    finally:
        over.set()


def _words(error: BaseException) -> str:
    text = " ".join(str(_root(error)).split())
    return f"{type(_root(error)).__name__}: {text[:600]}"


def _root(error: BaseException) -> BaseException:
    """The exception that torch's checkpoint code wrapped with those of other ranks."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def _kind(error: BaseException) -> str:
    """See `LoadFailure`."""
    chain, current = list[BaseException](), _root(error)
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    numbers = {e.errno for e in chain if isinstance(e, OSError) and e.errno is not None}
    words = " ".join(map(str, chain))
    # torch quotes some read errors in its own; the system's words for them stay.
    if numbers & TRANSIENT or any(os.strerror(number) in words for number in TRANSIENT):
        return "read"
    memory = any(isinstance(e, MemoryError | torch.OutOfMemoryError) for e in chain)
    peer = any(isinstance(e, torch.distributed.DistError | ConnectionError) for e in chain)
    if not memory and (peer or any(text in words for text in _LOST)):
        return "peer"
    if memory or "CUDA" in words or "NCCL" in words or numbers - {errno.ENOENT}:
        return "machine"
    return "content"
