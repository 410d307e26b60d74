"""Layout of a corpus on disk: stages, kinds, languages, part files and their schemas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.claims import claim, temporary_name
from emma.base.errors import UserError
from emma.base.manifest import FileRecord
from emma.recipes.schema.corpus import KINDS

__all__ = [
    "PAIR_SCHEMA",
    "STAGES",
    "TEXT_SCHEMA",
    "Part",
    "PartWriter",
    "part_path",
    "parts_of",
    "read_row_groups",
    "schema_of",
    "text_columns",
]

STAGES = ("integrated", "filtered", "deduplicated", "split")
"""Stages in order; each has a folder with `<corpus>/<stage>/<kind>/<language or pair>/part-NNNNN.parquet`."""

TEXT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "language", "source", "license")])
"""Columns of all kinds but `parallel`."""

PAIR_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("id", "src_lang", "src_text", "tgt_lang", "tgt_text", "source", "license")
    ]
)
"""Columns of `parallel`."""

_ROW_GROUP = 16 << 20
"""Approximate UTF-8 bytes of text in a row group, which is what a reader holds in memory at once."""


def schema_of(kind: str, stage: str = "integrated", *, counted: bool = False) -> pa.Schema:
    """Columns of a kind's parts; in the stage `split` there is one more, `split`.

    With `counted` (`deduplication.counts`) there is `copies` from the stage `deduplicated` on.
    """
    schema = PAIR_SCHEMA if kind == "parallel" else TEXT_SCHEMA
    if counted and stage in ("deduplicated", "split"):
        schema = schema.append(pa.field("copies", pa.int64()))
    return schema.append(pa.field("split", pa.string())) if stage == "split" else schema


def text_columns(kind: str) -> tuple[str, ...]:
    """Columns that hold text."""
    return ("src_text", "tgt_text") if kind == "parallel" else ("text",)


@dataclass(frozen=True, order=True)
class Part:
    """A part file: its kind, language or pair, and number."""

    kind: str
    language: str
    number: int

    @property
    def name(self) -> str:
        """Path below the stage's folder."""
        return f"{self.kind}/{self.language}/part-{self.number:05d}.parquet"


def part_path(root: Path, stage: str, part: Part) -> Path:
    """Full path of a part file."""
    return root / stage / part.name


def parts_of(root: Path, stage: str) -> list[Part]:
    """Parts of a stage on disk, ordered by kind, language and number.

    Raises:
        UserError: a file doesn't belong there.
    """
    found = []
    for path in sorted((root / stage).glob("*/*/*")):
        number = path.stem.removeprefix("part-")
        if path.name.startswith("."):
            continue
        if path.suffix != ".parquet" or not number.isdigit() or path.parts[-3] not in KINDS:
            raise UserError(f"{path}: not a part of the corpus; remove it, or rebuild the stage")
        found.append(Part(path.parts[-3], path.parts[-2], int(number)))
    return sorted(found, key=lambda part: (KINDS.index(part.kind), part.language, part.number))


class PartWriter:
    """Writes one part file, row group by row group; the file appears under its name only when complete.

    Use it as a context manager. A part without rows leaves no file. The stage syncs all parts at its end.
    """

    def __init__(self, path: Path, schema: pa.Schema, texts: tuple[str, ...]) -> None:
        self.path, self.schema, self.texts = path, schema, texts
        self.rows = 0
        self._pending: list[pa.Table] = []
        self._bytes = 0
        self._temporary = path.with_name(temporary_name(path.name))
        self._handle: IO[bytes] | None = None
        self._writer: Any = None

    def __enter__(self) -> PartWriter:
        return self

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Appends rows."""
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        if table.num_rows:
            self._pending.append(table.cast(self.schema))
            self._bytes += sum(table.column(name).nbytes for name in self.texts)
            if self._bytes >= _ROW_GROUP:
                self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            dictionary = [n for n in self.schema.names if n not in ("id", *self.texts)]
            self._handle = open(self._temporary, "wb", opener=claim)  # noqa: SIM115 - closed by __exit__
            self._writer = pq.ParquetWriter(
                self._handle,
                self.schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=dictionary,
            )
        table = pa.concat_tables(self._pending)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self.rows += table.num_rows
        self._pending, self._bytes = [], 0

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._flush()
            if self._writer is not None:
                self._writer.close()
            if self._handle is not None and kind is None:
                self._handle.flush()
                self._temporary.replace(self.path)
        finally:
            if self._handle is not None:
                self._temporary.unlink(missing_ok=True)  # first, since on a full disk closing fails
                self._handle.close()

    def record(self, root: Path) -> dict[str, Any] | None:
        """Path below `root`, bytes, checksum and rows of the finished file; None if there is no file."""
        if not self.rows:
            return None
        file = FileRecord.of(self.path, root)
        return {"path": file.path, "bytes": file.bytes, "checksum": file.checksum, "rows": self.rows}


def read_row_groups(path: Path, columns: Iterable[str] | None = None) -> Iterator[pa.Table]:
    """Row groups of a part, in order.

    Raises:
        UserError: the file is truncated or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for index in range(file.num_row_groups):
                yield file.read_row_group(index, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a readable parquet file ({str(error).splitlines()[0]}); remove its stage's folder and rebuild"
        ) from None
