"""Verifies a packed component: every file against the manifest, every document and every token against the
rules."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.base.manifest import MANIFEST_NAME
from emma.base.processes import available_cores, process_pool, result_of
from emma.base.progress import progress
from emma.tools.pack.bad_lines import QUARANTINE
from emma.tools.pack.documents import SPLITS
from emma.tools.pack.store import (
    COUNTED_SCHEMA,
    DOCUMENT_SCHEMA,
    Component,
    Shard,
    bin_name,
    documents_name,
    open_component,
    token_dtype,
)

__all__ = ["verify_component"]

_CHUNK_TOKENS = 1 << 24


@dataclass
class _ShardReport:
    """What one shard holds and what is wrong with it; `sources` are documents, tokens, bytes by language and
    split. `whole`: all of its documents were read and counted."""

    faults: list[str] = field(default_factory=list)
    whole: bool = False
    sources: dict[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)


def verify_component(
    folder: Path, *, checksums: bool = True, workers: int | None = None
) -> tuple[list[str], dict[str, int]]:
    """Reads a whole component; returns its faults and what was checked.

    Checked: manifest, sizes and checksums of every file, files that don't belong; for every shard its
    documents' columns, rows, lengths and offsets (from 0, without gaps, to the end of the `.bin`); every token
    id below the vocabulary; begin and end of text where promised and nowhere else; counts of every language
    and split against `sources.parquet`. What only follows from another fault (the checksum of a file that was cut, its
    documents' counts) is not a fault of its own; such counts are numbered in one line, after the causes.

    Args:
        folder: `store/<component>`.
        checksums: also hash every file (reads everything twice).
        workers: processes; by default one per core that this process may use.

    Raises:
        UserError: there is no finished component.
    """
    component = open_component(folder)
    workers = workers or available_cores()
    faults = _manifest_faults(component)
    totals: dict[tuple[str, str], np.ndarray] = {}
    broken = 0
    with process_pool(workers, preload=["emma.tools.pack.run", "emma.tools.pack.verify"]) as pool:
        if checksums:
            faults += _checksum_faults(component, pool)
        reports = [pool.submit(_verify_shard, component, shard) for shard in component.shards]
        for task in progress(reports, unit="shard", desc=f"verify {component.name}"):
            report = result_of(task)
            faults += report.faults
            broken += not report.whole
            for key, counts in report.sources.items():
                totals[key] = totals.get(key, 0) + np.array(counts, np.int64)
    follow = _count_faults(component, totals)
    if broken and follow:
        follow = [
            f"{folder}: {len(follow)} counts of sources.parquet and {MANIFEST_NAME} cannot hold while {broken} of "
            f"{len(component.shards)} shards are not whole. Fix: copy their files again from where they are, or remove "
            f"{folder} and pack it again"
        ]
    faults += follow
    seen = {
        "shards": len(component.shards),
        "documents": int(sum(counts[0] for counts in totals.values())),
        "tokens": int(sum(counts[1] for counts in totals.values())),
    }
    return faults, seen


def _manifest_faults(component: Component) -> list[str]:
    manifest, folder = component.manifest, component.folder
    path = folder / MANIFEST_NAME
    faults = manifest.check_outputs(folder)
    expected = {bin_name(n) for n in range(len(component.shards))}
    expected |= {documents_name(n) for n in range(len(component.shards))} | {"sources.parquet"}
    if manifest.counts.get("bad_lines"):
        expected.add(QUARANTINE)
    listed = {record.path: record for record in manifest.outputs}
    if set(listed) != expected:
        odd = sorted(set(listed) ^ expected)[0]
        faults.append(f"{path}: its outputs and its shards disagree about {odd}; the manifest is stale")
    present = {p.name for p in folder.iterdir() if not p.name.startswith(".")} - {MANIFEST_NAME}
    faults += [
        f"{folder / name}: not in the manifest: an addition from elsewhere, or the manifest is stale"
        for name in sorted(present - set(listed))
    ]
    for shard in component.shards:
        record = listed.get(bin_name(shard.number))
        if record is not None and record.bytes != shard.bytes:
            faults.append(f"{path}: gives {record.path} two sizes, {record.bytes} and {shard.bytes}")
    checksums: dict[str, str] = {}
    for record in manifest.outputs:
        if record.bytes and record.path.endswith(".bin") and record.checksum in checksums:
            faults.append(f"{folder / record.path}: has the same content as {checksums[record.checksum]}")
        checksums[record.checksum] = record.path
    fingerprint = hashlib.sha256(orjson.dumps([record.checksum for record in manifest.outputs])).hexdigest()
    if fingerprint != component.fingerprint:
        faults.append(
            f"{path}: its fingerprint isn't that of its outputs: the manifest was edited or is stale"
        )
    if component.dtype != token_dtype(component.vocab_size):
        faults.append(
            f"{path}: tokens are {component.dtype}, but a vocabulary of {component.vocab_size} is stored as "
            f"{token_dtype(component.vocab_size)}"
        )
    return faults


def _checksum_faults(component: Component, pool: Executor) -> Iterator[str]:
    tasks = [
        (record, pool.submit(_checksum, component.folder / record.path))
        for record in component.manifest.outputs
        if _is_as_long_as(component.folder / record.path, record.bytes)
    ]
    for record, task in progress(tasks, unit="file", desc=f"checksums {component.name}"):
        if result_of(task) != record.checksum:
            yield f"{component.folder / record.path}: its SHA-256 differs from the manifest's: the content changed"


def _is_as_long_as(path: Path, size: int) -> bool:
    """Whether the check of the manifest has found the file; anything else it has named."""
    return path.is_file() and path.stat().st_size == size


def _checksum(path: Path) -> str:
    return f"sha256:{sha256_file(path)}"


def _verify_shard(component: Component, shard: Shard) -> _ShardReport:
    """Runs in a worker: one shard's documents and tokens."""
    report = _ShardReport()
    sizes = {record.path: record.bytes for record in component.manifest.outputs}
    # What is missing or cut was named by the check of the manifest.
    if not _is_as_long_as(shard.bin_path, shard.bytes) or not shard.documents_path.is_file():
        return report
    try:
        schema = pq.read_schema(shard.documents_path)
        if schema.remove_metadata() not in (DOCUMENT_SCHEMA, COUNTED_SCHEMA):
            report.faults.append(f"{shard.documents_path}: has other columns than a token store's documents")
            return report
        if "copies" in schema.names and any(
            pc.any(pc.less(batch["copies"], 1)).as_py() for batch in shard.documents(["copies"])
        ):
            report.faults.append(f"{shard.documents_path}: a document has fewer than one copy, itself")
        _verify_documents(component, shard, report)
    except (UserError, pa.ArrowInvalid, OSError) as error:
        if _is_as_long_as(shard.documents_path, sizes.get(shard.documents_path.name, -1)):
            report.faults.append(f"{shard.documents_path}: cannot be read ({error})")
    return report


def _verify_documents(component: Component, shard: Shard, report: _ShardReport) -> None:
    path, width = shard.documents_path, component.dtype.itemsize
    size = shard.bin_path.stat().st_size
    tokens = (
        np.memmap(shard.bin_path, component.dtype, "r", shape=(size // width,))
        if size
        else np.zeros(0, component.dtype)
    )
    row, position = 0, 0
    for batch in shard.documents(DOCUMENT_SCHEMA.names):
        where = f"{path}: rows {row} to {row + len(batch) - 1}"
        if any(column.null_count for column in batch.columns):
            report.faults.append(f"{where}: hold nulls")
            return
        rows, offsets, lengths = (batch[name].to_numpy() for name in ("row", "offset", "tokens"))
        if not np.array_equal(rows, np.arange(row, row + len(batch))):
            report.faults.append(f"{where}: `row` doesn't count from 0 without gaps")
        if set(batch["component"].unique().to_pylist()) - {component.name}:
            report.faults.append(f"{where}: belong to another component")
        if odd := sorted(set(batch["split"].unique().to_pylist()) - set(SPLITS)):
            report.faults.append(f"{where}: have the split {odd[0]!r}")
        least = 2 + (component.begin_of_text_id is not None)
        if (lengths < least).any():
            report.faults.append(
                f"{path}: row {row + int(np.argmax(lengths < least))} has {int(lengths.min())} tokens, but a "
                f"document has at least {least}"
            )
            return
        ends = position + np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        if not np.array_equal(offsets, starts * width):
            wrong = int(np.argmax(offsets != starts * width))
            report.faults.append(
                f"{path}: row {row + wrong} begins at byte {int(offsets[wrong])}, but the documents before it "
                f"end at {int(starts[wrong]) * width}"
            )
            return
        if int(ends[-1]) > len(tokens):
            report.faults.append(
                f"{shard.bin_path}: {len(tokens)} tokens, but the documents hold {int(ends[-1])} or more"
            )
            return
        _verify_tokens(component, shard, tokens, starts, ends, row, report)
        _count(batch, report)
        row, position = row + len(batch), int(ends[-1])
    report.whole = True
    if row != shard.rows:
        report.faults.append(f"{path}: {row} documents, but the manifest says {shard.rows}")
    if position * width != size:
        report.faults.append(f"{shard.bin_path}: {size} bytes, but its documents hold {position * width}")


def _verify_tokens(
    component: Component,
    shard: Shard,
    tokens: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    first_row: int,
    report: _ShardReport,
) -> None:
    """Ids below the vocabulary; begin and end of text at the edges of documents and nowhere else."""
    name = shard.bin_path
    edges = [("end of text", ends - 1, component.end_of_text_id)]
    if component.begin_of_text_id is not None:
        edges.append(("begin of text", starts, component.begin_of_text_id))
    for what, places, id_ in edges:
        wrong = tokens[places] != id_
        if wrong.any():
            row = first_row + int(np.argmax(wrong))
            report.faults.append(
                f"{name}: document {row} has {int(tokens[places[row - first_row]])} for {what} ({id_})"
            )
    found = {id_: 0 for _, _, id_ in edges}
    for start in range(int(starts[0]), int(ends[-1]), _CHUNK_TOKENS):
        chunk = tokens[start : min(start + _CHUNK_TOKENS, int(ends[-1]))]
        lowest, highest = int(chunk.min()), int(chunk.max())
        if lowest < 0 or highest >= component.vocab_size:
            at = start + int(np.argmax((chunk < 0) | (chunk >= component.vocab_size)))
            row = first_row + int(np.searchsorted(ends, at, side="right"))
            report.faults.append(
                f"{name}: document {row} holds the id {int(tokens[at])}, but the vocabulary has "
                f"{component.vocab_size}"
            )
            return
        for id_ in found:
            found[id_] += int(np.count_nonzero(chunk == id_))
    for what, _, id_ in edges:
        if found[id_] != len(starts):
            report.faults.append(
                f"{name}: rows {first_row} to {first_row + len(starts) - 1} hold {found[id_]} tokens for "
                f"{what}, but one per document would be {len(starts)}"
            )


def _count(batch: pa.RecordBatch, report: _ShardReport) -> None:
    table = pa.Table.from_batches([batch]).group_by(["language", "split"])
    sums = table.aggregate([("row", "count"), ("tokens", "sum"), ("bytes", "sum")])
    for row in sums.to_pylist():
        key = (row["language"], row["split"])
        counts = (row["row_count"], row["tokens_sum"], row["bytes_sum"])
        before = report.sources.get(key, (0, 0, 0))
        report.sources[key] = tuple(a + b for a, b in zip(before, counts, strict=True))


def _count_faults(component: Component, totals: dict[tuple[str, str], np.ndarray]) -> list[str]:
    faults = []
    path = component.folder / "sources.parquet"
    try:
        table = component.sources.to_pylist()
    except UserError as error:
        return [str(error)]
    said = {(row["language"], row["split"]): (row["documents"], row["tokens"], row["bytes"]) for row in table}
    for key in sorted(set(said) | set(totals)):
        found = tuple(int(count) for count in totals.get(key, np.zeros(3, np.int64)))
        if said.get(key) != found:
            faults.append(
                f"{path}: {key[0]}/{key[1]} has {said.get(key, 'no')} (documents, tokens, bytes), but the shards "
                f"hold {found}"
            )
    documents, tokens = (sum(int(counts[i]) for counts in totals.values()) for i in (0, 1))
    counts = component.manifest.counts
    if (counts["kept"], counts["tokens"]) != (documents, tokens):
        faults.append(
            f"{component.folder / MANIFEST_NAME}: counts {counts['kept']} documents and {counts['tokens']} "
            f"tokens, but the shards hold {documents} and {tokens}"
        )
    return faults
