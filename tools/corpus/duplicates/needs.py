"""What finding copies takes, from the counts of the stage before it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from emma.base.manifest import MANIFEST_NAME, Manifest
from emma.tools.corpus.duplicates.entries import KINDS, entries_at_once
from emma.tools.corpus.duplicates.equal import process_memory, working_memory
from emma.tools.corpus.duplicates.hashing import searched_kind
from emma.tools.corpus.stage import Build

__all__ = ["Needs", "needs_of"]

_RUN_BYTES = 64
"""Memory of a run's numbers, twice (docs/benchmarks/corpus.md)."""


@dataclass(frozen=True)
class Needs:
    """What the stage takes.

    Attributes:
        documents: that are compared.
        ranges: of hashes, so many tasks can run at once.
        memory: bytes of a process, at most.
        disk: bytes of hashes; the shingles of candidates for near copies, some 4 bytes a word of theirs, come on top.
    """

    documents: int
    ranges: int
    memory: int
    disk: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)


def needs_of(build: Build) -> Needs | None:
    """What finding the copies of a corpus takes; None if the stage `filtered` is not built."""
    folder = build.root / "filtered"
    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = Manifest.read(folder)
    corpus = build.corpus
    rows = {kind: 0 for kind in KINDS}
    for path, count in manifest.extra["rows"].items():
        kind = path.split("/")[0]
        rows["keys"] += count if corpus.deduplication.exact else 0
        rows["sides"] += 2 * count if kind == "parallel" else 0
        near = searched_kind(corpus, kind)
        rows["bands"] += count * near.bands if near is not None else 0
    at_once = entries_at_once(working_memory(corpus))
    runs = len(manifest.extra["rows"]) * max(1, len(corpus.sources))
    return Needs(
        documents=int(manifest.counts["kept"]),
        ranges=max(1, *(-(-count // at_once) for count in rows.values())),
        memory=max(int(corpus.memory_gib * (1 << 30)), process_memory() + _RUN_BYTES * runs),
        disk=sum(count * KINDS[kind].itemsize for kind, count in rows.items()),
    )
