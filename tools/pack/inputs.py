"""Input files of a component, cut into work units by their sizes alone."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError

__all__ = ["InputFile", "Segment", "Unit", "cut_units", "list_inputs"]

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst")

# A compressed jsonl file is assumed to hold this many times its size; it is always one segment.
_COMPRESSION = 4
_SMALLEST_UNIT = 32 << 20
_UNITS = 64


@dataclass(frozen=True)
class InputFile:
    """One input file as it was listed: `path` as given, `bytes`, and `modified` in nanoseconds since the
    epoch."""

    path: str
    bytes: int
    modified: int

    @property
    def kind(self) -> str:
        """`parquet`, `jsonl`, `jsonl.gz` or `jsonl.zst`."""
        return next(suffix for suffix in reversed(SUFFIXES) if self.path.endswith(suffix)).lstrip(".")

    @property
    def folder(self) -> str:
        """Name of the file's folder: in the layout of the corpus, the language or pair."""
        return Path(self.path).parent.name

    @property
    def split(self) -> str:
        """Split of records that name none: `validation` for files named so, else `train`."""
        return "validation" if Path(self.path).name.startswith("validation") else "train"


@dataclass(frozen=True)
class Segment:
    """A piece of a file: bytes [start, stop) of a plain jsonl file (the lines that begin there), row groups
    [start, stop) of a parquet file, or all of a compressed file (0, 1)."""

    file: InputFile
    start: int
    stop: int

    @property
    def first(self) -> bool:
        """Whether the file begins with this segment."""
        return self.start == 0


@dataclass(frozen=True)
class Unit:
    """What one process packs at a time: consecutive segments. Units are of about the same size."""

    index: int
    segments: tuple[Segment, ...]
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Unit:
        segments = tuple(
            Segment(InputFile(**segment["file"]), segment["start"], segment["stop"])
            for segment in value["segments"]
        )
        return cls(value["index"], segments, value["bytes"])


def list_inputs(patterns: Sequence[str | Path]) -> list[InputFile]:
    """Files of folders (recursively), glob patterns and file names, sorted by path.

    Raises:
        UserError: a pattern matches nothing, or a named file is of another format.
    """
    found: dict[str, Path] = {}
    for pattern in map(str, patterns):
        path = Path(pattern)
        if path.is_dir():
            matches = [p for p in sorted(path.rglob("*")) if p.is_file() and _is_input(p)]
        elif path.is_file():
            matches = [path]
        else:
            matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
            matches = [p for p in matches if p.is_file()]
        if not matches:
            raise UserError(
                f"{pattern}: no input there; expected {', '.join(SUFFIXES)} files. Run the corpus stage first, "
                "or correct data.pack.components.*.inputs"
            )
        for match in matches:
            if not match.name.endswith(SUFFIXES):
                raise UserError(f"{match}: cannot read this format; expected one of {', '.join(SUFFIXES)}")
            found[str(match)] = match
    files = []
    for name in sorted(found):
        status = found[name].stat()
        files.append(InputFile(name, status.st_size, status.st_mtime_ns))
    return files


def _is_input(path: Path) -> bool:
    return path.name.endswith(SUFFIXES) and not path.name.startswith(".")


def cut_units(files: Iterable[InputFile], largest: int) -> list[Unit]:
    """Cuts files into work units.

    Args:
        files: sorted input files.
        largest: maximum size of a unit in bytes of text (a compressed file or a row group may exceed it).

    A unit is a 64th of the input, between 32 MiB and `largest`, so that small inputs keep several processes
    busy too; it depends on the inputs alone.
    """
    files = [file for file in files if file.bytes]
    sized = [(file, _text_bytes(file)) for file in files]
    total = sum(sum(sizes) for _, sizes in sized)
    target = min(max(total // _UNITS, _SMALLEST_UNIT), largest)
    units: list[Unit] = []
    segments: list[Segment] = []
    filled = 0

    def close() -> None:
        nonlocal segments, filled
        if segments:
            units.append(Unit(len(units), tuple(segments), filled))
        segments, filled = [], 0

    for file, sizes in sized:
        start = 0
        if file.kind == "jsonl":
            while start < file.bytes:
                stop = min(file.bytes, start + max(target - filled, 1))
                segments.append(Segment(file, start, stop))
                filled += stop - start
                start = stop
                if filled >= target:
                    close()
            continue
        for index, size in enumerate(sizes):
            filled += size
            if filled >= target:
                segments.append(Segment(file, start, index + 1))
                start = index + 1
                close()
        if start < len(sizes):
            segments.append(Segment(file, start, len(sizes)))
    close()
    return units


def _text_bytes(file: InputFile) -> list[int]:
    """Size of the pieces that a file can be cut into, in bytes of uncompressed content."""
    if file.kind == "jsonl":
        return [file.bytes]
    if file.kind != "parquet":
        return [file.bytes * _COMPRESSION]
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file.path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file.path}: not a complete parquet file ({error}); write it again") from None
    return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
