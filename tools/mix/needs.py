"""What building a mix takes: memory, disk and processor time, from the store's counts alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from emma.base.errors import UserError
from emma.base.processes import memory
from emma.base.sizes import size_text
from emma.base.threads import threads
from emma.tools.mix.fit import expected_rows
from emma.tools.mix.layout import ROW
from emma.tools.mix.prepare import MixSettings, Prepared, leaves_out, rehydrated

__all__ = ["Needs", "needs_of"]

_BASE_MEMORY, _MOST_MEMORY, _BUCKET_ROW = 160 << 20, 1 << 30, 120
"""Bytes of the process, of what is in work at most, and of a row that is in work."""
_INDEX_ROW = 20
_SAMPLE = 16
_PROCESSOR = {"concatenate": (0.15e-6, 0.38e-6), "best_fit": (0.25e-6, 0.9e-6)}
"""Processor seconds a document of the store and a row of the mix, measured with 40 million documents and 50 million rows
(docs/benchmarks/mix.md)."""


@dataclass(frozen=True)
class Needs:
    """What a build takes.

    Attributes:
        documents: of the store.
        rows: about, of the mix.
        memory: bytes at most, to build.
        memory_to_verify: bytes at most, to verify.
        disk: bytes at most, while it is built.
        mix: bytes of the finished mix, about.
        processor_seconds: about.
        threads: that share them.
    """

    documents: int
    rows: int
    memory: int
    memory_to_verify: int
    disk: int
    mix: int
    processor_seconds: float
    threads: int

    def lines(self) -> Iterator[str]:
        """As text."""
        yield (
            f"to build: {self.memory / 2**30:.1f} GiB of memory ({self.documents:,} documents in the store), "
            f"{self.disk / 1e9:.1f} GB of disk, of which {self.mix / 1e9:.1f} GB stay ({self.rows:,} rows), about "
            f"{self.processor_seconds:,.0f} processor seconds on {self.threads} threads; to verify: "
            f"{self.memory_to_verify / 2**30:.1f} GiB"
        )

    def to_dict(self) -> dict[str, float]:
        """As JSON-ready values."""
        return asdict(self)

    def shortages(self, folder: Path) -> list[str]:
        """What this machine has too little of, in words; `folder` is where the mix goes."""
        found = []
        available = memory()[1]
        if 0 < available < self.memory:
            found.append(
                f"building needs {self.memory / 2**30:.1f} GiB of memory, but {available / 2**30:.1f} GiB are available; "
                "build on a larger node"
            )
        existing = folder.absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        if free < self.disk:
            found.append(
                f"{folder}: building needs {size_text(self.disk)} of disk, but {size_text(free)} are free; free some "
                "space, or give another paths.mix"
            )
        return found

    def check(self, folder: Path) -> None:
        """Raises UserError if this machine has too little."""
        if found := self.shortages(folder):
            raise UserError("; ".join(found))


def needs_of(settings: MixSettings, prepared: Prepared) -> Needs:
    """What building takes of a machine."""
    documents = sum(shard.rows for component in prepared.components for shard in component.shards)
    rows = expected_rows(prepared.plan)
    samples = settings.samples * _SAMPLE
    # Language, tokens and split; places where single documents are looked up; those that earlier phases consumed;
    # how often repeated ones are read.
    looked_up = bool(prepared.plan.groups or settings.mix.exclude_consumed)
    a_document = (
        7
        + (8 if looked_up else 0)
        + (1 if leaves_out(settings.mix) else 0)
        + (1 if rehydrated(settings.mix) else 0)
    )
    mix = rows * (ROW.itemsize + _INDEX_ROW) + samples
    # Scratch files hold every row once, and packed ones (with the size of their samples) once more.
    scratch = rows * ROW.itemsize
    if settings.mix.packing == "best_fit":
        scratch += rows * ROW.itemsize + settings.samples * 4
    document_seconds, row_seconds = _PROCESSOR[settings.mix.packing]
    fixed = min(_MOST_MEMORY, _BASE_MEMORY + rows * _BUCKET_ROW)
    return Needs(
        documents,
        rows,
        fixed + documents * a_document,
        # The same, and how often each document is read.
        fixed + documents * (7 + 8 + 4 + (1 if rehydrated(settings.mix) else 0)),
        mix + scratch,
        mix,
        documents * document_seconds + rows * row_seconds,
        threads(),
    )
