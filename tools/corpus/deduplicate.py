"""Stage `deduplicated`: filtered parts without copies, and a list of which document each removed one copies.

The first phase hashes chunks of parts into files sorted by hash. Then tasks that each look at a range of the hashes of all
documents find equal ones, and tasks that each look after a chunk collect what was found about its documents. Copies are
sought within groups: one language of one kind, or one language pair in both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from emma.recipes.schema.corpus import Corpus
from emma.tools.corpus.accounts import KEPT, Accounts, Samples, accounts_path, measures_of
from emma.tools.corpus.duplicates.equal import compare_range, working_memory
from emma.tools.corpus.duplicates.hashing import NUMBERING, hash_parts, number_documents, paragraphs
from emma.tools.corpus.duplicates.messages import Messages
from emma.tools.corpus.duplicates.near import decide, verify_pairs, write_sets
from emma.tools.corpus.duplicates.numbering import Numbering
from emma.tools.corpus.duplicates.resolve import (
    CLUSTER_SCHEMA,
    RULES,
    Decisions,
    Files,
    cluster_tables,
    drop_exact,
    resolve,
)
from emma.tools.corpus.layout import Part, PartWriter, part_path, read_row_groups, schema_of, text_columns
from emma.tools.corpus.runner import Task
from emma.tools.corpus.stage import Build, Phase, Results, Stage, chunks_of_parts, settings_of

__all__ = ["deduplicate"]

_CHUNK_MEGABYTES = 16

Plan = Callable[[Stage, Results], list[Task]]


def deduplicate(build: Build, previous: str) -> Stage:
    """The stage, after the one with the fingerprint `previous`."""
    corpus = build.corpus
    settings = settings_of(corpus, {"deduplication", "filters", "language_filters", "memory_gib", "samples"})

    def close(stage: Stage, results: Results) -> None:
        written = results["select"]
        accounts = Accounts.merged(result["accounts"] for result in written)
        if not corpus.deduplication.paragraphs:
            accounts.fill_kept(Accounts.read(accounts_path(build.root, "filtered")))
        stage.finish(
            accounts,
            Samples.merged(corpus.samples, (result["samples"] for result in written)),
            sum(result["rows"] for result in written),
            [record for result in written for record in result["parts"]],
            [stage.previous_manifest()],
        )

    return Stage(build, "deduplicated", settings, previous, _Phases(build).all(), close)


class _Phases:
    """What each phase runs; those that the recipe needs nothing of are left out."""

    def __init__(self, build: Build) -> None:
        self.build, self.corpus, self.root = build, build.corpus, str(build.root)

    def all(self) -> list[Phase]:
        """The phases, in order."""
        settings = self.corpus.deduplication
        near = settings.near is not None
        phases: list[tuple[str, Plan, bool]] = [("keys", self.keys, True), ("number", self.number, True)]
        phases += [("exact", self.exact, settings.exact), ("alive", self.alive, settings.exact)]
        phases += [("compare", self.compare, True), ("sets", self.sets, near), ("verify", self.verify, near)]
        phases += [("decide", self.decide, near), ("resolve", self.resolve, True)]
        phases += [("paragraphs", self.paragraphs, settings.paragraphs), ("select", self.select, True)]
        return [Phase(name, plan, name in ("number", "decide")) for name, plan, needed in phases if needed]

    def chunks(self, stage: Stage) -> list[list[Part]]:
        return chunks_of_parts(self.build.root, "filtered", stage.previous_parts(), _CHUNK_MEGABYTES)

    @staticmethod
    def folder(stage: Stage) -> str:
        return str(stage.work / "hashes")

    def keys(self, stage: Stage, _: Results) -> list[Task]:
        return [
            Task(
                f"chunk-{number:06d}", hash_parts, (self.corpus, self.root, self.folder(stage), number, chunk)
            )
            for number, chunk in enumerate(self.chunks(stage))
        ]

    def number(self, stage: Stage, _: Results) -> list[Task]:
        memory = working_memory(self.corpus)
        return [
            Task("number", number_documents, (self.corpus, self.folder(stage), self.chunks(stage), memory))
        ]

    def _ranges(self, stage: Stage, results: Results, kind: str, *, alive: bool) -> list[Task]:
        return [
            Task(
                f"{kind}-{number:04d}",
                compare_range,
                (self.corpus, self.folder(stage), kind, number, bounds, alive),
            )
            for number, bounds in enumerate(results["number"][0]["ranges"][kind])
        ]

    def exact(self, stage: Stage, results: Results) -> list[Task]:
        return self._ranges(stage, results, "keys", alive=False)

    def alive(self, stage: Stage, results: Results) -> list[Task]:
        files = _files(results, "exact")
        return [
            Task(f"chunk-{number:06d}", drop_exact, (self.folder(stage), number, slices[-1][1], files))
            for number, slices in enumerate(_slices(results))
        ]

    def compare(self, stage: Stage, results: Results) -> list[Task]:
        alive = "alive" in results
        kinds = ["sides", *(["bands"] if self.corpus.deduplication.near is not None else [])]
        return [task for kind in kinds for task in self._ranges(stage, results, kind, alive=alive)]

    def sets(self, stage: Stage, results: Results) -> list[Task]:
        files = _files(results, "compare").get("candidate", [])
        return [
            Task(
                f"chunk-{number:06d}",
                write_sets,
                (self.corpus, self.root, self.folder(stage), number, chunk, slices, files),
            )
            for number, (chunk, slices) in enumerate(zip(self.chunks(stage), _slices(results), strict=True))
        ]

    def verify(self, stage: Stage, results: Results) -> list[Task]:
        files = _files(results, "compare").get("candidates", [])
        return [
            Task(f"chunk-{number:06d}", verify_pairs, (self.corpus, self.folder(stage), number, files))
            for number in range(len(_slices(results)))
        ]

    def decide(self, stage: Stage, results: Results) -> list[Task]:
        return [Task("decide", decide, (self.corpus, self.folder(stage), "alive" in results))]

    def resolve(self, stage: Stage, results: Results) -> list[Task]:
        files = _files(results, "exact", "compare", "decide")
        wanted = {
            kind: files.get(kind, []) for kind in ("exact", "copies", "templated", "near", "near-copies")
        }
        return [
            Task(
                f"chunk-{number:06d}",
                resolve,
                (self.root, self.folder(stage), number, chunk, slices, wanted),
            )
            for number, (chunk, slices) in enumerate(zip(self.chunks(stage), _slices(results), strict=True))
        ]

    def paragraphs(self, stage: Stage, results: Results) -> list[Task]:
        return self._ranges(stage, results, "paragraphs", alive=True)

    def select(self, stage: Stage, results: Results) -> list[Task]:
        files = _files(results, "paragraphs").get("paragraphs", [])
        return [
            Task(
                f"chunk-{number:06d}",
                write_parts,
                (self.corpus, self.root, self.folder(stage), number, chunk, slices, files),
            )
            for number, (chunk, slices) in enumerate(zip(self.chunks(stage), _slices(results), strict=True))
        ]


def _slices(results: Results) -> list[list[list[int]]]:
    return [result["slices"] for result in results["keys"]]


def _files(results: Results, *phases: str) -> Files:
    """Names of the messages' files that phases wrote, by kind."""
    files: dict[str, list[str]] = {}
    for result in (result for phase in phases for result in results.get(phase, [])):
        for kind, names in result["files"].items():
            files.setdefault(kind, []).extend(names)
    return files


def write_parts(
    corpus: Corpus,
    root: str,
    folder: str,
    chunk: int,
    parts: Sequence[Part],
    slices: Sequence[Sequence[int]],
    files: Sequence[str],
) -> dict[str, Any]:
    """Writes the parts of a chunk without the removed documents: `parts`, `rows`, `accounts`, `samples`.

    Unless paragraphs are cut out, the accounts hold only the number of kept documents (see
    `Accounts.fill_kept`).
    """
    decisions = Decisions.read(Path(folder), chunk)
    cut = _cut(Path(folder), chunk, files) if corpus.deduplication.paragraphs else None
    accounts, samples = Accounts(), Samples(corpus.samples)
    counted = corpus.deduplication.counts
    records = []
    for part, (start, _) in zip(parts, slices, strict=True):
        path = part_path(Path(root), "deduplicated", part)
        schema = schema_of(part.kind, "deduplicated", counted=counted)
        with PartWriter(path, schema, text_columns(part.kind)) as writer:
            row = start
            for table in read_row_groups(part_path(Path(root), "filtered", part)):
                here = slice(row, row + table.num_rows)
                if counted:
                    table = table.append_column("copies", pa.array(decisions.copies[here]))
                writer.write(_select(part, table, decisions.rule[here], row, cut, accounts, samples))
                row += table.num_rows
        records.append(writer.record(Path(root) / "deduplicated"))
    clusters = Path(root) / "deduplicated" / "clusters" / f"part-{chunk:05d}.parquet"
    with PartWriter(clusters, CLUSTER_SCHEMA, ("removed_id", "kept_id")) as writer:
        for table in cluster_tables(Path(root), Path(folder), parts, slices, decisions):
            writer.write(table)
    records.append(writer.record(Path(root) / "deduplicated"))
    return {
        "parts": records,
        "rows": int(slices[-1][1]),
        "accounts": accounts.to_json(),
        "samples": samples.rows,
    }


def _cut(folder: Path, chunk: int, files: Sequence[str]) -> dict[int, set[int]]:
    """The lines to cut out, by row."""
    numbering = Numbering.read(folder / NUMBERING)
    cut: dict[int, set[int]] = {}
    for messages in Messages(folder, "paragraphs", files, numbering).to_chunk(chunk):
        rows = numbering.places(messages["rank"])[1]
        for row, line in zip(rows.tolist(), messages["line"].tolist(), strict=True):
            cut.setdefault(row, set()).add(line)
    return cut


def _select(
    part: Part,
    table: pa.Table,
    rules: NDArray[np.uint8],
    first: int,
    cut: dict[int, set[int]] | None,
    accounts: Accounts,
    samples: Samples,
) -> pa.Table:
    """Rows that stay; `cut` is None if paragraphs are not deduplicated."""
    if cut is not None:
        return _select_cut(part, table, rules, first, cut, accounts, samples)
    removed = rules > 0
    for source in pc.value_counts(table.column("source").filter(pa.array(~removed))).to_pylist():
        accounts.add(part.kind, part.language, source["values"], KEPT, (source["counts"], 0, 0, 0, 0))
    if not removed.any():
        return table
    _count(part, table.filter(pa.array(removed)), rules[removed], accounts, samples)
    return table.filter(pa.array(~removed))


def _select_cut(
    part: Part,
    table: pa.Table,
    rules: NDArray[np.uint8],
    first: int,
    cut: dict[int, set[int]],
    accounts: Accounts,
    samples: Samples,
) -> pa.Table:
    """Like `_select`, but cuts paragraphs out; a document with nothing left is removed."""
    # Pairs have no entry in `cut`; they pass through.
    name = text_columns(part.kind)[0]
    texts = table.column(name).to_pylist()
    rules = rules.copy()
    for row in (row for row in range(table.num_rows) if first + row in cut and not rules[row]):
        lines = paragraphs(texts[row])
        kept = "\n".join(line for index, line in enumerate(lines) if index not in cut[first + row]).strip()
        if kept:
            texts[row] = kept
        else:
            rules[row] = RULES.index("duplicate_paragraphs")
    table = table.set_column(table.schema.get_field_index(name), name, pa.array(texts, pa.string()))
    _count(part, table, rules, accounts, samples)
    return table.filter(pa.array(rules == 0))


def _count(
    part: Part, table: pa.Table, rules: NDArray[np.uint8], accounts: Accounts, samples: Samples
) -> None:
    """Counts documents under their rules, and keeps samples of the removed ones."""
    columns = [table.column(name).to_pylist() for name in text_columns(part.kind)]
    sources, identifiers = table.column("source").to_pylist(), table.column("id")
    for row, (source, rule, *texts) in enumerate(zip(sources, rules.tolist(), *columns, strict=True)):
        accounts.add(part.kind, part.language, source, RULES[rule] or KEPT, measures_of(*texts))
        if rule:
            samples.add(
                part.kind,
                part.language,
                RULES[rule],
                id=identifiers[row].as_py(),
                text=texts[0],
                target=texts[1] if len(texts) > 1 else "",
            )
