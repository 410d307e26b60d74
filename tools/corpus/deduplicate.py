"""Stage `deduplicated`: filtered parts without copies, and a list of which document each removed one copies.

The first phase hashes chunks of parts, the second finds copies within groups (one language of one kind, or
one language pair in both directions), and the third writes the parts, again chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from emma.recipes.schema.corpus import Corpus
from emma.tools.corpus.accounts import KEPT, Accounts, Samples, accounts_path, measures_of
from emma.tools.corpus.groups import RULES, Group, find_copies
from emma.tools.corpus.hashing import ChunkHashes, Slice, hash_parts, paragraphs
from emma.tools.corpus.layout import Part, PartWriter, part_path, read_row_groups, schema_of, text_columns
from emma.tools.corpus.runner import Task
from emma.tools.corpus.stage import Build, Phase, Results, Stage, chunks_of_parts

__all__ = ["deduplicate"]

_CHUNK_MEGABYTES = 16
_GROUP_ROWS = 100_000
"""Documents per task when small groups share one."""


def deduplicate(build: Build, previous: str) -> Stage:
    """The stage, after the one with the fingerprint `previous`."""
    corpus, root = build.corpus, str(build.root)
    settings = corpus.model_dump(
        mode="json", include={"deduplication", "filters", "language_filters", "memory_gib", "samples"}
    )

    def folder(stage: Stage) -> str:
        return str(stage.work / "hashes")

    def chunks(stage: Stage) -> list[list[Part]]:
        return chunks_of_parts(build.root, "filtered", stage.previous_parts(), _CHUNK_MEGABYTES)

    def plan_hash(stage: Stage, _: Results) -> list[Task]:
        return [
            Task(f"chunk-{number:06d}", hash_parts, (corpus, root, folder(stage), number, chunk))
            for number, chunk in enumerate(chunks(stage))
        ]

    def plan_compare(stage: Stage, results: Results) -> list[Task]:
        return [
            Task(f"groups-{number:06d}", find_copies, (corpus, root, folder(stage), number, bundle))
            for number, bundle in enumerate(_bundles(_slices(chunks(stage), results["hash"])))
        ]

    def plan_write(stage: Stage, results: Results) -> list[Task]:
        slices = _slices(chunks(stage), results["hash"])
        members: dict[int, list[Slice]] = {}
        for piece in slices:
            members.setdefault(piece.chunk, []).append(piece)
        touched: dict[int, list[int]] = {number: [] for number in members}
        for number, bundle in enumerate(_bundles(slices)):
            for chunk in sorted({piece.chunk for group in bundle for piece in group.slices}):
                touched[chunk].append(number)
        return [
            Task(f"chunk-{number:06d}", write_parts, (corpus, root, folder(stage), pieces, touched[number]))
            for number, pieces in members.items()
        ]

    def close(stage: Stage, results: Results) -> None:
        written = results["write"]
        accounts = Accounts.merged(result["accounts"] for result in written)
        if not corpus.deduplication.paragraphs:
            accounts.fill_kept(Accounts.read(accounts_path(build.root, "filtered")))
        stage.finish(
            accounts,
            Samples.merged(corpus.samples, (result["samples"] for result in written)),
            sum(result["rows"] for result in written),
            [record for result in (*written, *results["compare"]) for record in result["parts"]],
            [stage.previous_manifest()],
        )

    phases = [Phase("hash", plan_hash), Phase("compare", plan_compare), Phase("write", plan_write)]
    return Stage(build, "deduplicated", settings, previous, phases, close)


def _slices(chunks: Sequence[Sequence[Part]], hashed: Sequence[Any]) -> list[Slice]:
    return [
        Slice(part, number, start, stop)
        for number, (chunk, result) in enumerate(zip(chunks, hashed, strict=True))
        for part, (start, stop) in zip(chunk, result["slices"], strict=True)
    ]


def _bundles(slices: Sequence[Slice]) -> list[list[Group]]:
    """Groups in order, small ones bundled together."""
    members: dict[tuple[str, str], list[Slice]] = {}
    for piece in slices:
        language = piece.part.language
        if piece.part.kind == "parallel":
            language = "-".join(sorted(language.split("-")))
        members.setdefault((piece.part.kind, language), []).append(piece)
    bundles: list[list[Group]] = []
    rows = 0
    for (kind, language), pieces in members.items():
        group = Group(kind, language, pieces)
        if not bundles or rows + group.rows > _GROUP_ROWS:
            bundles.append([])
            rows = 0
        bundles[-1].append(group)
        rows += group.rows
    return bundles


def write_parts(
    corpus: Corpus, root: str, folder: str, slices: Sequence[Slice], bundles: Sequence[int]
) -> dict[str, Any]:
    """Writes the parts of a chunk without the removed documents: `parts`, `rows`, `accounts`, `samples`.

    Unless paragraphs are cut out, the accounts hold only the number of kept documents (see
    `Accounts.fill_kept`).
    """
    reasons, cut = _decisions(Path(folder), slices, bundles)
    accounts, samples = Accounts(), Samples(corpus.samples)
    records, rows = [], 0
    searched = corpus.deduplication.paragraphs
    for piece in slices:
        path = part_path(Path(root), "deduplicated", piece.part)
        with PartWriter(path, schema_of(piece.part.kind), text_columns(piece.part.kind)) as writer:
            row = piece.start
            for table in read_row_groups(part_path(Path(root), "filtered", piece.part)):
                rules = reasons[row - slices[0].start : row - slices[0].start + table.num_rows]
                writer.write(
                    _select(piece.part, table, rules, row, cut if searched else None, accounts, samples)
                )
                row += table.num_rows
                rows += table.num_rows
        records.append(writer.record(Path(root) / "deduplicated"))
    return {"parts": records, "rows": rows, "accounts": accounts.to_json(), "samples": samples.rows}


def _decisions(
    folder: Path, slices: Sequence[Slice], bundles: Sequence[int]
) -> tuple[NDArray[np.uint8], dict[int, set[int]]]:
    """The rule that removes each row of the chunk (0: none), and the paragraphs to cut out, by row."""
    chunk = slices[0].chunk
    reasons = np.zeros(slices[-1].stop, np.uint8)
    cut: dict[int, set[int]] = {}
    for number in bundles:
        with np.load(folder / f"copies-{number:06d}.npz") as copies:
            mine = copies["chunk"] == chunk
            reasons[copies["row"][mine]] = copies["rule"][mine]
            mine = copies["cut_chunk"] == chunk
            positions = copies["cut_position"][mine]
        if len(positions):
            owners = ChunkHashes(folder, chunk).paragraph_rows
            first = np.searchsorted(owners, owners[positions])
            for position, row, start in zip(
                positions.tolist(), owners[positions].tolist(), first.tolist(), strict=True
            ):
                cut.setdefault(row, set()).add(position - start)
    return reasons, cut


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
