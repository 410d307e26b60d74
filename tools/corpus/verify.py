"""Checks that a corpus is complete: files, sizes, checksums, counts."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.manifest import MANIFEST_NAME, Manifest
from emma.tools.corpus.layout import STAGES, parts_of, schema_of
from emma.tools.corpus.peek import last_stage
from emma.tools.corpus.stage import Build

__all__ = ["verify_corpus"]


def verify_corpus(build: Build, *, contents: bool = False) -> list[str]:
    """Faults of the stages on disk, up to the last finished one; empty if there are none.

    Args:
        build: the corpus.
        contents: also compare each part's SHA-256, rows and columns.
    """
    faults: list[str] = []
    before: Manifest | None = None
    for stage in STAGES[: STAGES.index(last_stage(build.root)) + 1]:
        folder = build.root / stage
        if not (folder / MANIFEST_NAME).is_file():
            faults.append(f"{folder}: not finished, although a later stage is; build the corpus again")
            continue
        manifest = Manifest.read(folder)
        faults += manifest.check_outputs(folder, contents=contents)
        listed = {record.path for record in manifest.outputs}
        faults += [
            f"{folder / part.name}: not in the manifest; remove it"
            for part in parts_of(build.root, stage)
            if part.name not in listed
        ]
        faults += _count_faults(stage, manifest, before)
        if contents:
            faults += _row_faults(build, stage, manifest)
        before = manifest
    return faults


def _count_faults(stage: str, manifest: Manifest, before: Manifest | None) -> list[str]:
    counts, faults = manifest.counts, []
    removed = sum(counts["removed_by"].values())
    if counts["in"] != counts["kept"] + removed:
        faults.append(f"{stage}: {counts['in']} in, but {counts['kept']} kept and {removed} removed")
    rows = sum(count for path, count in manifest.extra["rows"].items() if not path.startswith("clusters/"))
    if rows != counts["kept"]:
        faults.append(f"{stage}: {counts['kept']} kept, but its parts hold {rows} rows")
    if before is not None and before.counts["kept"] != counts["in"]:
        faults.append(f"{stage}: {counts['in']} in, but the previous stage kept {before.counts['kept']}")
    return faults


def _row_faults(build: Build, stage: str, manifest: Manifest) -> list[str]:
    faults = []
    counted = build.corpus.deduplication.counts
    for path, rows in manifest.extra["rows"].items():
        file = build.root / stage / path
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            faults.append(f"{file}: not a readable parquet file ({str(error).splitlines()[0]})")
            continue
        if metadata.num_rows != rows:
            faults.append(f"{file}: {metadata.num_rows} rows, but the manifest says {rows}")
        kind = path.split("/")[0]
        expected = [] if kind == "clusters" else schema_of(kind, stage, counted=counted).names
        if kind != "clusters" and metadata.schema.names != expected:
            faults.append(f"{file}: columns {metadata.schema.names}, expected {expected}")
    return faults
