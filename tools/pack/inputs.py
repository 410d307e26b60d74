"""Input files of a component: found by folders, patterns and names, told apart by their content, and cut into work
units by their sizes and number alone."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from emma.base.errors import UserError
from emma.tools.pack.formats import FORMATS, UnreadableFormatError, kind_by_name, kind_of

__all__ = [
    "Found",
    "InputFile",
    "Segment",
    "Unit",
    "cut_units",
    "exceed",
    "find_files",
    "input_difference",
    "inputs_among",
    "list_inputs",
    "summary",
]


# A compressed file is assumed to hold this many times its size; it is always one segment.
_COMPRESSION = 4
_FOLDER = "a folder; name it, or its files by the pattern"
_EARLIER = ("parquet", "jsonl", "jsonl.gz", "jsonl.zst")
_SMALLEST_UNIT = 8 << 20
# A unit is a 32nd of the input up to the first size, a 64th up to the second, which is what a process packs before another
# takes its place, and beyond that a 2,048th: 64 tasks of 32 processes.
_SHARES = ((32, 20 << 20), (64, 160 << 20), (2048, None))
# Opening a file takes as long as packing this much of it, so that many small ones make several units.
_FILE_BYTES = 64 << 10


@dataclass(frozen=True)
class InputFile:
    """One input file as it was listed.

    Attributes:
        path: as given.
        bytes: its size.
        modified: in nanoseconds since the epoch.
        kind: what it is (`formats.kind_of`); stores of earlier versions lack it, and went by the name.
    """

    path: str
    bytes: int
    modified: int
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", kind_by_name(Path(self.path).name) or "jsonl")

    @property
    def folder(self) -> str:
        """Name of the file's folder: in the layout of the corpus, the language or pair."""
        return self.path.rpartition(os.sep)[0].rpartition(os.sep)[2]  # there may be many

    @property
    def split(self) -> str:
        """Split of records that name none: `validation` for files named so, else `train`."""
        return "validation" if self.path.rpartition(os.sep)[2].startswith("validation") else "train"

    def same(self, other: Found) -> bool:
        """Whether a file found now is this one, unchanged."""
        return (self.bytes, self.modified) == (other.bytes, other.modified)


class Found(NamedTuple):
    """A file that folders, patterns or names lead to; `named` if it was named itself. `reason` says why it cannot be an
    input whatever it holds."""

    bytes: int
    modified: int
    named: bool
    reason: str | None = None


def find_files(patterns: Sequence[str | Path]) -> dict[str, Found]:
    """All files of folders (recursively), glob patterns and file names, sorted by path.

    Raises:
        UserError: a pattern matches nothing.
    """
    found: dict[str, Found] = {}
    for pattern in map(str, patterns):
        if Path(pattern).is_dir():
            matched = dict(_walk(str(Path(pattern))))
        elif Path(pattern).is_file():
            matched = {str(Path(pattern)): _found(pattern, named=True)}
        else:
            matched = _globbed(pattern)
        found |= matched
        if not any(file.reason is None for file in matched.values()):
            why = summary({name: file.reason for name, file in matched.items() if file.reason is not None})
            raise UserError(
                f"{pattern}: no input there{f' ({why})' if why else ''}; expected {FORMATS}. Run the corpus stage first, "
                "or correct data.pack.components.*.inputs"
            )
    named = [name for name, file in found.items() if file.reason == _FOLDER]
    if named:
        folders = {os.path.dirname(name) for name, file in found.items() if file.reason is None}  # noqa: PTH120
        searched = folders | {str(parent) for folder in folders for parent in Path(folder).parents}
        for name in searched.intersection(named):
            del found[name]
    return {name: found[name] for name in sorted(found)}


def exceed(patterns: Iterable[str | Path], most: int) -> bool:
    """Whether the files that folders, patterns and names lead to may hold more than `most` bytes of text, going by their
    sizes and names. Of many files, no more are looked at than tell.

    Raises:
        UserError: a pattern matches nothing.
    """
    seen: set[str] = set()
    left = most
    for pattern in map(str, patterns):
        folder, usable = Path(pattern).is_dir(), False
        for path, found in _walk(str(Path(pattern))) if folder else find_files([pattern]).items():
            if path not in seen:
                seen.add(path)
                left -= found.bytes * _largest_growth(path)
            usable |= found.reason is None
            if left < 0 and usable:
                break
        if not usable:
            find_files([pattern])  # which says what is there
    return left < 0


def _walk(folder: str) -> Iterator[tuple[str, Found]]:
    """Files below a folder, links followed; hidden ones and hidden folders with the reason that they are."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        status = os.stat(place := waiting.pop())  # noqa: PTH116 - there may be many
        if (status.st_dev, status.st_ino) in seen:
            continue  # a link to a folder above it
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    yield entry.path, Found(0, 0, False, "hidden")
                elif entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield entry.path, Found(status.st_size, status.st_mtime_ns, False)
                else:
                    yield (
                        entry.path,
                        Found(0, 0, False, "no file that can be read: a broken link or a device"),
                    )


def _globbed(pattern: str) -> dict[str, Found]:
    """Files and folders that match a pattern."""
    matches = [str(Path(name)) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207
    folders = {name for name in matches if Path(name).is_dir()}
    found = {name: _found(name, named=False) for name in matches if name not in folders}
    for folder in folders:
        found[folder] = Found(0, 0, False, _FOLDER)
    return found


def _found(name: str, *, named: bool) -> Found:
    if not Path(name).is_file():
        return Found(0, 0, named, "no file that can be read: a broken link or a device")
    status = Path(name).stat()
    return Found(status.st_size, status.st_mtime_ns, named)


def _classify(found: Mapping[str, Found], required: Sequence[str]) -> tuple[list[InputFile], dict[str, str]]:
    """Which of the files found are inputs, and why the others are passed over, by path.

    Args:
        found: the files.
        required: fields that the component's records must have.

    Raises:
        UserError: a file that was named itself cannot be an input.
    """
    files: list[InputFile] = []
    passed_over: dict[str, str] = {}
    for name, file in found.items():
        try:
            if file.reason is not None:
                raise UnreadableFormatError(file.reason)
            files.append(InputFile(name, file.bytes, file.modified, kind_of(name, required)))
        except UnreadableFormatError as error:
            if file.named:
                raise UserError(f"{name}: cannot read this format: {error}; expected {FORMATS}") from None
            passed_over[name] = str(error)
    return files, passed_over


def list_inputs(patterns: Sequence[str | Path], required: Sequence[str] = ("text",)) -> list[InputFile]:
    """The input files among all that folders, patterns and names lead to, sorted by path.

    Raises:
        UserError: a pattern matches nothing, or there is no input among what was found; the message says what it is.
    """
    return inputs_among(find_files(patterns), required)[0]


def inputs_among(
    found: Mapping[str, Found], required: Sequence[str]
) -> tuple[list[InputFile], dict[str, str]]:
    """As `classify`.

    Raises:
        UserError: there is no input.
    """
    files, passed_over = _classify(found, required)
    if not files:
        raise UserError(f"no input among {len(found)} files: {summary(passed_over)}; expected {FORMATS}")
    return files, passed_over


def summary(passed_over: Mapping[str, str], most: int = 3) -> str:
    """Files that are passed over, in words: how many for each reason, and the first few of them."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in passed_over.items():
        by_reason.setdefault(reason, []).append(path)
    return "; ".join(
        f"{len(paths):,} × {reason} ({', '.join(paths[:most])}{', …' if len(paths) > most else ''})"
        for reason, paths in by_reason.items()
    )


def input_difference(
    before: Iterable[InputFile],
    passed_over: Mapping[str, str] | None,
    now: Mapping[str, Found],
    required: Sequence[str],
) -> str | None:
    """How the files found now differ from recorded inputs, naming one; None where they are the same.

    Args:
        before: the inputs.
        passed_over: what was passed over beside them; None if an earlier version, which went by the name, did so.
        now: the files.
        required: fields that the component's records must have.
    """
    old = {file.path: file for file in before}
    new = {path: file for path, file in now.items() if path not in old and path not in (passed_over or {})}
    if passed_over is None:
        new = {path: file for path, file in new.items() if kind_by_name(Path(path).name) in _EARLIER}
    for file in _classify(new, required)[0]:
        return f"{file.path} is new"
    for path, file in old.items():
        if path not in now:
            return f"{path} is gone"
        if not file.same(now[path]):
            return f"{path} was changed ({file.bytes} bytes then, {now[path].bytes} now, or written again)"
    return None


@dataclass(frozen=True)
class Segment:
    """A piece of a file: bytes [start, stop) of a plain jsonl file (the lines that begin there), row groups
    [start, stop) of a parquet file, or all of any other file (0, 1)."""

    file: InputFile
    start: int
    stop: int

    @property
    def first(self) -> bool:
        """Whether the file begins with this segment."""
        return self.start == 0


@dataclass(frozen=True)
class Unit:
    """What one process packs at a time: consecutive segments. Units take about the same time."""

    index: int
    segments: tuple[Segment, ...]
    bytes: int

    def to_json(self, numbers: Mapping[str, int]) -> dict[str, Any]:
        """The unit, with files by their `numbers` in the list of inputs."""
        segments = [[numbers[each.file.path], each.start, each.stop] for each in self.segments]
        return {"bytes": self.bytes, "segments": segments}

    @classmethod
    def from_json(cls, index: int, value: Mapping[str, Any], files: Sequence[InputFile]) -> Unit:
        """The inverse of `to_json`."""
        segments = (Segment(files[number], start, stop) for number, start, stop in value["segments"])
        return cls(index, tuple(segments), value["bytes"])


def cut_units(files: Iterable[InputFile], largest: int) -> list[Unit]:
    """Cuts files into work units.

    Args:
        files: sorted input files.
        largest: maximum size of a unit in bytes of text (a compressed file or a row group may exceed it).

    Units are as many as keep all processes busy, from 8 MiB on (`_SHARES`), and of one size; a file of less than 64 KiB
    counts as one of 64 KiB. They depend on the inputs alone.
    """
    files = [file for file in files if file.bytes]
    sized = [(file, _text_bytes(file)) for file in files]
    total = sum(max(sum(sizes), _FILE_BYTES) for _, sizes in sized)
    shares = (min(-(-total // count), most or total) for count, most in _SHARES)
    target = min(max(_SMALLEST_UNIT, *shares), largest)
    target = -(-total // max(1, -(-total // target)))
    least = min(_FILE_BYTES, target // 64)
    units: list[Unit] = []
    segments: list[Segment] = []
    filled = added = 0  # bytes of text, and what small files count beyond theirs

    def close() -> None:
        nonlocal segments, filled, added
        if segments:
            units.append(Unit(len(units), tuple(segments), filled - added))
        segments, filled, added = [], 0, 0

    for file, sizes in sized:
        added += max(0, least - sum(sizes))
        filled += max(0, least - sum(sizes))
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


def _largest_growth(path: str) -> int:
    """How many times a file's size its text may be, as its name states what it is."""
    kind = kind_by_name(path.rpartition(os.sep)[2]) or ""
    return 16 if "." in kind or kind in ("parquet", "arrow") else 1


def _text_bytes(file: InputFile) -> list[int]:
    """Size of the pieces that a file can be cut into, in bytes of uncompressed content."""
    if file.kind != "parquet":
        return [file.bytes * (_COMPRESSION if "." in file.kind else 1)]
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Names would be looked up among the file systems that pyarrow knows.
        with pa.OSFile(file.path) as source:
            metadata = pq.read_metadata(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file.path}: not a complete parquet file ({error}); write it again") from None
    return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]
