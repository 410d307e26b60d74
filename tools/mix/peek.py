"""A look at what training reads: decoded documents of a mix, and whole samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emma.base.errors import UserError
from emma.tools.mix.layout import DatasetInfo
from emma.tools.pack.peek import Decoder

__all__ = ["PeekedRow", "peek_rows", "peek_sample"]


@dataclass(frozen=True)
class PeekedRow:
    """One row as training reads it: its place in the dataset, and its text.

    `sample` is the sample in which it begins; `tokens` counts what is shown.
    """

    row: int
    sample: int
    component: str
    language: str
    category: str | None
    shard: str
    offset: int
    tokens: int
    text: str


def peek_rows(
    info: DatasetInfo, decode: Decoder, *, language: str | None = None, count: int = 3, seed: int = 0
) -> Iterator[PeekedRow]:
    """Yields rows drawn at random from a dataset, or from one language of it.

    Raises:
        UserError: the language is missing.
    """
    rows = np.load(info.folder / "rows.npy", mmap_mode="r")
    rng = np.random.default_rng(seed)
    if language is None:
        drawn = np.sort(rng.choice(len(rows), min(count, len(rows)), replace=False))
    else:
        numbers = [
            i for i, source in enumerate(info.sources) if source.language == language and source.documents
        ]
        if not numbers:
            known = sorted({source.language for source in info.sources if source.documents})
            near = [name for name in known if name[:2] == language[:2]] or known
            raise UserError(
                f"{info.folder}: holds no {language!r}; it has "
                f"{', '.join(near[:8])}{' ...' if len(near) > 8 else ''}"
            )
        mine = np.flatnonzero(np.isin(rows["source"], numbers))
        drawn = np.sort(rng.choice(mine, min(count, len(mine)), replace=False))
    samples = np.load(info.folder / "samples.npy", mmap_mode="r")
    for row in drawn.tolist():
        sample = _sample_of(samples, row)
        yield _peek(info, rows[row], row, sample, decode)


def peek_sample(info: DatasetInfo, decode: Decoder, sample: int) -> Iterator[PeekedRow]:
    """Yields the pieces of one sample in order, including its last label.

    Raises:
        UserError: the dataset has no such sample.
    """
    if not 0 <= sample < info.samples:
        raise UserError(f"{info.folder}: has samples 0 to {info.samples - 1}, not {sample}")
    rows = np.load(info.folder / "rows.npy", mmap_mode="r")
    samples = np.load(info.folder / "samples.npy", mmap_mode="r")
    (row, into), (end_row, end_into) = samples[sample].tolist(), samples[sample + 1].tolist()
    for index in range(row, end_row + (info.packing == "concatenate")):
        begin = into if index == row else 0
        stop = end_into + 1 if info.packing == "concatenate" and index == end_row else None
        yield _peek(info, rows[index], index, sample, decode, begin, stop)


def _sample_of(samples: np.ndarray, row: int) -> int:
    """The sample that holds a row's first token."""
    begins = samples[:-1]
    after = int(np.searchsorted(begins[:, 0], row, side="right"))
    # If a sample begins inside the row, the row's first token is in the sample before.
    while after > 0 and begins[after - 1, 0] == row and begins[after - 1, 1] > 0:
        after -= 1
    return max(after - 1, 0)


def _peek(
    info: DatasetInfo,
    record: np.void,
    row: int,
    sample: int,
    decode: Decoder,
    begin: int = 0,
    stop: int | None = None,
) -> PeekedRow:
    source, shard = info.sources[int(record["source"])], info.shards[int(record["shard"])]
    dtype = np.dtype(info.dtype)
    stop = int(record["tokens"]) if stop is None else stop
    offset = int(record["offset"]) + begin * dtype.itemsize
    path: Path = info.folder / f"{shard.name}.bin"
    if not path.is_file():
        raise UserError(f"{path}: leads nowhere; the store has moved")
    tokens = np.memmap(path, dtype, "r", offset, (stop - begin,))
    return PeekedRow(
        row,
        sample,
        source.component,
        source.language,
        source.category,
        shard.name,
        offset,
        len(tokens),
        decode(tokens),
    )
