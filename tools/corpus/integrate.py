"""Stage `integrated`: source files → rows with normalised text, resolved languages and provenance.

In the first phase each source file is a task that writes its rows, grouped by language, to one spill file. In
the second, tasks gather the rows of each part from the spills. Both depend only on the input, so neither the
number of processes nor an interruption changes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from emma.base.files import atomic_write
from emma.base.manifest import FileRecord
from emma.recipes.corpus_tables import rules_sha256
from emma.recipes.schema.corpus import Corpus, Source
from emma.tools.corpus.accounts import KEPT, Accounts, Samples, measures_of
from emma.tools.corpus.labelling import Labeller
from emma.tools.corpus.layout import Part, PartWriter, part_path, schema_of, text_columns
from emma.tools.corpus.normalise import Normaliser
from emma.tools.corpus.pii import Masker
from emma.tools.corpus.quarantine import Quarantine, check_bad_lines, write_quarantine
from emma.tools.corpus.reading import Fault, Row, read_rows
from emma.tools.corpus.rendering import texts_of
from emma.tools.corpus.runner import Task
from emma.tools.corpus.source_files import SourceFile, source_files
from emma.tools.corpus.stage import Build, Phase, Results, Stage, settings_of

__all__ = ["integrate"]

_BATCH_ROWS = 2048
_BATCH_BYTES = 8 << 20
_SPILL_BATCH = 16 << 20
_UNMEASURED = ("oversized", "invalid_line", "other_language")
"""Rules whose documents are only counted."""


_SETTINGS = {
    "sources",
    "languages",
    "normalisation",
    "max_document_megabytes",
    "part_megabytes",
    "memory_gib",
    "samples",
}


def integrate(build: Build) -> Stage:
    """The stage.

    Raises:
        UserError: a source without files.
    """
    files = source_files(build.corpus)
    settings = {
        "files": [file.stamp() for file in files],
        "corpus": settings_of(build.corpus, _SETTINGS),
    }
    if isinstance(build.corpus.normalisation.mask_pii, list):
        settings["rules"] = rules_sha256("pii")

    def plan_read(stage: Stage, _: Results) -> list[Task]:
        return [
            Task(f"file-{i:06d}", read_file, (build.corpus, file, _spill(stage, i)))
            for i, file in enumerate(files)
        ]

    def plan_write(stage: Stage, results: Results) -> list[Task]:
        read = results["read"]
        check_bad_lines(build.corpus, files, read)
        paths = [_spill(stage, i) for i in range(len(files))]
        groups = _group_parts(plan_parts(read, build.corpus.part_megabytes), build.corpus.part_megabytes)
        return [
            Task(f"parts-{i:06d}", write_parts, (str(build.root), paths, group))
            for i, group in enumerate(groups)
        ]

    def close(stage: Stage, results: Results) -> None:
        read = results["read"]
        write_quarantine(build.root, files, read)
        stage.finish(
            Accounts.merged(result["accounts"] for result in read),
            Samples.merged(build.corpus.samples, (result["samples"] for result in read)),
            sum(result["rows"] for result in read),
            [record for result in results["write"] for record in result["parts"]],
            [FileRecord(**record) for result in read for record in result["inputs"]],
            {"labels": _labels(read), **_masked(build.corpus, read)},
        )

    return Stage(
        build, "integrated", settings, "", [Phase("read", plan_read), Phase("write", plan_write)], close
    )


def _spill(stage: Stage, number: int) -> str:
    return str(stage.work / "spills" / f"{number:06d}.arrow")


def _labels(read: Sequence[Any]) -> list[dict[str, Any]]:
    """How each label of each source was read, with its number of documents (or sides of pairs)."""
    sums: dict[tuple[str, ...], int] = {}
    for result in read:
        for *key, count in result["labels"]:
            sums[tuple(key)] = sums.get(tuple(key), 0) + count
    names = ("source", "label", "language", "decision")
    return [{**dict(zip(names, key, strict=True)), "documents": count} for key, count in sorted(sums.items())]


def _masked(corpus: Corpus, read: Sequence[Any]) -> dict[str, dict[str, int]]:
    """How much was masked of each kind that the recipe lists."""
    kinds = corpus.normalisation.mask_pii
    if not isinstance(kinds, list):
        return {}
    return {"masked": {kind: sum(result["masked"].get(kind, 0) for result in read) for kind in kinds}}


@dataclass
class _Spill:
    """Rows by kind and language, flushed in batches to one Arrow file."""

    path: Path
    schema: pa.Schema
    texts: tuple[str, ...]
    budget: int
    writer: Any
    buffers: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    index: list[list[Any]] = field(default_factory=list)
    held: int = 0

    def add(self, language: str, row: tuple[str, ...], size: int) -> None:
        """Appends a row (values in the schema's order) with `size` bytes of text."""
        buffer = self.buffers.get(language)
        if buffer is None:
            buffer = self.buffers[language] = []
            self.sizes[language] = 0
        buffer.append(row)
        self.sizes[language] += size
        self.held += size
        if self.sizes[language] >= _SPILL_BATCH:
            self.flush(language)
        elif self.held >= self.budget:
            self.flush_all()

    def flush(self, language: str) -> None:
        rows = self.buffers.pop(language)
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        self.writer.write_batch(pa.record_batch(columns, schema=self.schema))
        size = self.sizes.pop(language)
        self.held -= size
        self.index.append([language, len(rows), size])

    def flush_all(self) -> None:
        for language in sorted(self.buffers):
            self.flush(language)


def read_file(corpus: Corpus, file: SourceFile, spill_path: str) -> dict[str, Any]:
    """Reads one file into a spill.

    Returns:
        `kind`, `index` ([language or pair, rows, bytes] of each record batch in the spill), `accounts`,
        `samples`, `labels`, `rows`, `faults`, `inputs`.
    """
    source = corpus.sources[file.source]
    reader = _FileReader(corpus, source, file)
    schema = schema_of(source.kind)
    Path(spill_path).parent.mkdir(parents=True, exist_ok=True)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with atomic_write(spill_path) as handle, pa.ipc.new_file(handle, schema, options=options) as writer:
        budget = int(corpus.memory_gib * (1 << 30) / 8)
        spill = _Spill(Path(spill_path), schema, text_columns(source.kind), budget, writer)
        reader.read_into(spill)
        spill.flush_all()
    return {
        "kind": source.kind,
        "index": spill.index,
        "accounts": reader.accounts.to_json(),
        "samples": reader.samples.rows,
        "labels": [[*key, count] for key, count in sorted(reader.labeller.counts.items())],
        "rows": reader.rows,
        "masked": dict(sorted(reader.masked.items())),
        "faults": reader.quarantine.to_json(),
        "inputs": [asdict(record) for record in file.records()],
    }


class _FileReader:
    """Turns the rows of one file into rows of the corpus, batch by batch."""

    def __init__(self, corpus: Corpus, source: Source, file: SourceFile) -> None:
        self.corpus, self.source, self.file = corpus, source, file
        self.normalise = Normaliser(corpus.normalisation, source.kind)
        self.labeller = Labeller(corpus.languages, file, source)
        self.limit = int(corpus.max_document_megabytes * 1e6)
        self.accounts, self.samples = Accounts(), Samples(corpus.samples)
        self.quarantine = Quarantine(source.max_bad_lines)
        self.rows = 0
        self._maskers: dict[str, Masker] = {}

    @property
    def masked(self) -> Counter[str]:
        """What was masked, by kind."""
        return sum((masker.counts for masker in self._maskers.values()), Counter[str]())

    def _mask(self, text: str, language: str) -> str:
        kinds = self.corpus.normalisation.mask_pii
        if not isinstance(kinds, list):
            return text
        if language not in self._maskers:
            self._maskers[language] = Masker(kinds, "" if self.source.kind == "code" else language)
        return self._maskers[language](text)

    def read_into(self, spill: _Spill) -> None:
        """Reads the whole file."""
        rows: list[Row] = []
        size = 0
        for row in read_rows(self.file, self.source, self.limit):
            self.rows += 1
            if isinstance(row, Fault):
                self._fault(row)
                continue
            self.quarantine.rows += 1
            rows.append(row)
            size += sum(len(value) for value in row.values.values() if isinstance(value, str))
            if len(rows) >= _BATCH_ROWS or size >= _BATCH_BYTES:
                self._batch(rows, spill)
                rows, size = [], 0
        self._batch(rows, spill)

    def _fault(self, fault: Fault) -> None:
        rule = "oversized" if fault.oversized else "invalid_line"
        if fault.oversized:
            self.quarantine.rows += 1
            self._remove(rule, fault.number, fault.reason, fault.excerpt)
            return
        self.quarantine.add(self.file, fault)
        self._remove(rule, fault.number, fault.reason, fault.excerpt)

    def _remove(self, rule: str, number: int, detail: str, text: str = "", language: str = "") -> None:
        kind, source = self.source.kind, self.file.source
        measures = measures_of(text) if rule not in _UNMEASURED else (1, 0, 0, 0, 0)
        self.accounts.add(kind, language, source, rule, measures)
        self.samples.add(kind, language, rule, id=self._id(number), detail=detail, text=text)

    def _id(self, number: int, values: dict[str, Any] | None = None) -> str:
        if self.source.id_column and values is not None:
            return f"{self.file.source}/{values[self.source.id_column]}"
        return f"{self.file.source}/{self.file.name}#{number}"

    def _batch(self, rows: Sequence[Row], spill: _Spill) -> None:
        if not rows:
            return
        prepared: list[tuple[Row, list[str], list[str]]] = []
        for row in rows:
            try:
                texts = texts_of(row, self.source)
                labels = self.labeller.labels(row)
            except ValueError as error:
                self.quarantine.rows -= 1  # counted as usable when read
                self._fault(Fault(row.number, str(error), str(row.values)[:200]))
                continue
            if any(len(text) > self.limit // 4 and len(text.encode()) > self.limit for text in texts):
                self._remove("oversized", row.number, f"more than {self.limit:,} bytes")
                continue
            if not self.labeller.may_be_wanted(labels):
                self._remove("other_language", row.number, "-".join(labels))
                continue
            prepared.append((row, [self.normalise(text) for text in texts], labels))
        languages = self.labeller.decide(
            [texts for _, texts, _ in prepared], [labels for _, _, labels in prepared]
        )
        for (row, texts, _), codes in zip(prepared, languages, strict=True):
            masked = [self._mask(text, code) for text, code in zip(texts, codes, strict=True)]
            self._keep(row, masked, codes, spill)

    def _keep(self, row: Row, texts: list[str], codes: list[str], spill: _Spill) -> None:
        source, kind = self.source, self.source.kind
        language = "-".join(codes)
        if not self.labeller.wanted(codes):
            self._remove("other_language", row.number, language)
            return
        if not all(texts):
            self._remove("empty", row.number, "no text after normalisation", language=language)
            return
        identifier = self._id(row.number, row.values)
        license_of_row = row.values.get(source.license_column) if source.license_column else None
        origin = (self.file.source, str(license_of_row or source.license))
        measures = measures_of(*texts)
        self.accounts.add(kind, language, self.file.source, KEPT, measures)
        if kind == "parallel":
            spill.add(language, (identifier, codes[0], texts[0], codes[1], texts[1], *origin), measures[2])
        else:
            spill.add(language, (identifier, texts[0], language, *origin), measures[2])


def plan_parts(read: Sequence[Any], megabytes: float) -> list[tuple[Part, int, list[tuple[int, int]]]]:
    """Parts, each with its bytes of text and the batches (spill, position in the spill) that make it up.

    The batches of a kind and language follow the order of sources, files and rows; a new part begins when one
    is full.
    """
    batches: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for spill, result in enumerate(read):
        for position, (language, _, size) in enumerate(result["index"]):
            batches.setdefault((result["kind"], language), []).append((spill, position, size))
    plan = []
    for (kind, language), entries in sorted(batches.items()):
        number, filled = 0, 0
        chosen: list[tuple[int, int]] = []
        for spill, position, size in entries:
            if chosen and filled + size > megabytes * 1e6:
                plan.append((Part(kind, language, number), filled, chosen))
                number, filled, chosen = number + 1, 0, []
            chosen.append((spill, position))
            filled += size
        plan.append((Part(kind, language, number), filled, chosen))
    return plan


def _group_parts(
    plan: Sequence[tuple[Part, int, list[tuple[int, int]]]], megabytes: float
) -> list[list[tuple[Part, list[tuple[int, int]]]]]:
    groups: list[list[tuple[Part, list[tuple[int, int]]]]] = []
    size = 0
    for part, filled, batches in plan:
        if not groups or size + filled > megabytes * 1e6 or len(groups[-1]) >= 500:
            groups.append([])
            size = 0
        groups[-1].append((part, batches))
        size += filled
    return groups


def write_parts(
    root: str, spills: Sequence[str], group: Sequence[tuple[Part, list[tuple[int, int]]]]
) -> dict[str, Any]:
    """Writes parts from their batches; returns `parts`, their records."""
    records = []
    open_spills: dict[int, Any] = {}
    for part, batches in group:
        path = part_path(Path(root), "integrated", part)
        with PartWriter(path, schema_of(part.kind), text_columns(part.kind)) as writer:
            for spill, position in batches:
                if spill not in open_spills:
                    open_spills[spill] = pa.ipc.open_file(pa.memory_map(spills[spill]))
                writer.write(open_spills[spill].get_batch(position))
        records.append(writer.record(Path(root) / "integrated"))
    return {"parts": records}
