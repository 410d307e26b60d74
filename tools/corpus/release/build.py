"""Builds the release folder of a corpus; resumes after an interruption. Needs no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from emma.base.errors import CheckFailedError
from emma.base.files import write_text
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest, package_versions
from emma.base.staging import WORK_NAME, check_free_space, resumable_folder
from emma.tools.corpus.release.card import render_card
from emma.tools.corpus.release.facts import (
    LICENSES_NAME,
    STATISTICS_NAME,
    corpus_facts,
    csv_text,
)
from emma.tools.corpus.release.shards import merge_validation, pieces_of, write_shard
from emma.tools.corpus.release.source import STAGE, CorpusSource, Shard
from emma.tools.corpus.release.verify import corpus_faults
from emma.tools.corpus.runner import Task, results_of, run_tasks
from emma.tools.hub.checksums import write_checksums
from emma.tools.hub.kinds import CORPUS_STAGE

__all__ = ["DEFAULT_SHARD_BYTES", "plan_corpus", "write_corpus_release"]

DEFAULT_SHARD_BYTES = 500_000_000
_FORMAT = 1
"""Version of the release's layout; raise it when the same corpus would give different files."""


def plan_corpus(source: CorpusSource, shard_bytes: int = DEFAULT_SHARD_BYTES) -> dict[str, Any]:
    """What would be written: `corpus`, `data`, `kinds` (kind → languages or pairs), `documents`, `files` (of
    training text), and `bytes` of parquet."""
    kinds: dict[str, int] = {}
    for row in source.statistics:
        kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
    return {
        "corpus": str(source.root),
        "data": source.data,
        "kinds": kinds,
        "documents": sum(row["documents"] for row in source.statistics),
        "files": len(source.shards(shard_bytes)),
        "bytes": source.bytes,
    }


def write_corpus_release(
    source: CorpusSource,
    destination: Path,
    *,
    name: str | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    workers: int = 1,
    overwrite: bool = False,
) -> Manifest:
    """Writes the release folder; it appears complete and verified, or not at all.

    After an interruption at any point, the same call continues and writes the same bytes.

    Args:
        source: the corpus.
        destination: folder to write.
        name: name of the corpus on its card; by default, that of its data recipe.
        shard_bytes: approximate size of the corpus parts that go into one file.
        workers: number of processes.
        overwrite: replace `destination`.

    Raises:
        UserError: `destination` exists, the disk has too little space, a part has changed, or a row has no
            licence or id, or is in another language's folder.
        CheckFailedError: document counts do not add up, or the folder fails verification.
    """
    shards = source.shards(shard_bytes)
    check_free_space(destination, math.ceil(source.bytes * 1.05) + (1 << 20))
    manifest = Manifest(CORPUS_STAGE, source.manifest.recipe_sha256)
    manifest.versions = package_versions(("emma-recipes", "pyarrow", "huggingface_hub"))
    with resumable_folder(destination, _fingerprint(source, shard_bytes), overwrite=overwrite) as folder:
        work = folder / WORK_NAME
        tasks = [
            Task(shard.name, write_shard, (str(source.root / STAGE), str(folder), str(work), shard))
            for shard in shards
        ]
        run_tasks(work / "shards", tasks, workers=workers, label="corpus")
        results = results_of(work / "shards", tasks)
        facts = corpus_facts(name or source.data, source, shards, results)
        records = [record for result in results for record in result["files"]]
        records += _merge(folder, work, shards, results)
        write_text(folder / STATISTICS_NAME, csv_text(facts.rows))
        write_text(folder / LICENSES_NAME, csv_text(facts.licenses))
        write_text(folder / "README.md", render_card(facts))
        manifest.inputs = [FileRecord.of(source.root / STAGE / MANIFEST_NAME, source.root)]
        manifest.outputs = [FileRecord(r["path"], r["bytes"], r["checksum"]) for r in records]
        manifest.outputs += [
            FileRecord.of(folder / small, folder) for small in (STATISTICS_NAME, LICENSES_NAME, "README.md")
        ]
        manifest.outputs.sort(key=lambda record: record.path)
        documents = facts.total("documents")
        manifest.counts = {"in": documents, "kept": documents, "removed_by": {}}
        manifest.extra = {
            "data": source.data,
            "corpus": source.manifest.extra["fingerprint"],
            "rows": {
                record["path"]: record["rows"] for record in sorted(records, key=lambda r: str(r["path"]))
            },
        }
        manifest.write(folder)
        known = {record.path: record.checksum.removeprefix("sha256:") for record in manifest.outputs}
        write_checksums(folder, known)
        if faults := corpus_faults(folder, read_data=False):
            raise CheckFailedError("the release is not complete: " + "; ".join(faults))
    return manifest


def _fingerprint(source: CorpusSource, shard_bytes: int) -> str:
    text = f"{_FORMAT} {source.manifest.extra['fingerprint']} {shard_bytes} "
    parts = "".join(f"{record.path} {record.checksum}\n" for record in source.manifest.outputs)
    return hashlib.sha256((text + parts).encode()).hexdigest()


def _merge(
    folder: Path, work: Path, shards: Sequence[Shard], results: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Writes the validation files of all languages; returns their records."""
    records = []
    pairs = zip(shards, results, strict=True)
    for (kind, language), group in groupby(pairs, key=lambda pair: (pair[0].kind, pair[0].language)):
        members = list(group)
        pieces = pieces_of(work, [shard for shard, _ in members], [result for _, result in members])
        record = merge_validation(folder, kind, language, pieces)
        if record is not None:
            records.append(record)
    return records
