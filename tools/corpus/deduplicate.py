"""Stage `deduplicated`: filtered parts without copies, and the list of who was removed for whom.

Hashes are made chunk by chunk of parts, copies are found group by group (a language of a kind; a language pair in
both directions), and parts are written chunk by chunk again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recipes.schema.corpus import Corpus
from tools.corpus.accounts import KEPT, Accounts, Samples, measures_of
from tools.corpus.groups import RULES, Group, find_copies
from tools.corpus.hashing import ChunkHashes, Slice, hash_parts, paragraphs
from tools.corpus.layout import Part, PartWriter, part_path, read_row_groups, schema_of, text_columns
from tools.corpus.runner import Task
from tools.corpus.stage import Build, Phase, Results, Stage, chunks_of_parts

__all__ = ["deduplicate"]

_CHUNK_MEGABYTES = 16
_GROUP_ROWS = 100_000
"""Documents of small groups that make a task together."""


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
        stage.finish(
            Accounts.merged(result["accounts"] for result in written),
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
    """Groups in order, small ones together."""
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
    """Writes the parts of a chunk without what was removed: `parts`, `rows`, `accounts`, `samples`."""
    reasons, cut = _decisions(Path(folder), slices, bundles)
    accounts, samples = Accounts(), Samples(corpus.samples)
    records, rows = [], 0
    for piece in slices:
        path = part_path(Path(root), "deduplicated", piece.part)
        with PartWriter(path, schema_of(piece.part.kind), text_columns(piece.part.kind)) as writer:
            row = piece.start
            for table in read_row_groups(part_path(Path(root), "filtered", piece.part)):
                rules = reasons[row - slices[0].start : row - slices[0].start + table.num_rows]
                writer.write(_select(piece.part, table, rules, row, cut, accounts, samples))
                row += table.num_rows
                rows += table.num_rows
        records.append(writer.record(Path(root) / "deduplicated"))
    return {"parts": records, "rows": rows, "accounts": accounts.to_json(), "samples": samples.rows}


def _decisions(
    folder: Path, slices: Sequence[Slice], bundles: Sequence[int]
) -> tuple[NDArray[np.uint8], dict[int, set[int]]]:
    """For each row of the chunk the rule that removes it (0: none), and by row the paragraphs to cut out."""
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
    cut: dict[int, set[int]],
    accounts: Accounts,
    samples: Samples,
) -> pa.Table:
    names = text_columns(part.kind)
    columns = [table.column(name).to_pylist() for name in names]
    rules = rules.copy()
    changed = False
    for row in range(table.num_rows):
        if first + row in cut and not rules[row]:
            lines = paragraphs(columns[0][row])
            kept = [line for index, line in enumerate(lines) if index not in cut[first + row]]
            columns[0][row] = "\n".join(kept).strip()
            changed = True
            if not columns[0][row]:
                columns[0][row] = "\n".join(lines)
                rules[row] = RULES.index("duplicate_paragraphs")
    sources = table.column("source").to_pylist()
    identifiers = table.column("id")
    for row, (source, rule, *texts) in enumerate(zip(sources, rules.tolist(), *columns, strict=True)):
        accounts.add(part.kind, part.language, source, RULES[rule] or KEPT, measures_of(*texts))
        if rule:
            target = texts[1] if len(texts) > 1 else ""
            samples.add(
                part.kind,
                part.language,
                RULES[rule],
                id=identifiers[row].as_py(),
                text=texts[0],
                target=target,
            )
    if changed:
        table = table.set_column(
            table.schema.get_field_index("text"), "text", pa.array(columns[0], pa.string())
        )
    return table if not rules.any() else table.filter(pa.array(rules == 0))
