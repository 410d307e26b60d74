"""Shares of Unicode blocks in each language's text: the papers' figure of the scripts in a corpus."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emma.tools.corpus.filter import batches
from emma.tools.corpus.layout import Part, part_path, read_row_groups, text_columns
from emma.tools.corpus.passes import count_parts
from emma.tools.corpus.stage import Build
from emma.tools.languages.codepoints import LETTER, MARK, CodePoints

__all__ = ["block_table", "count_blocks"]


@functools.cache
def _blocks() -> tuple[NDArray[np.uint16], list[str]]:
    """Block index of every code point (uint16, length 0x110000), and the blocks' names."""
    from fontTools.unicodedata import Blocks

    starts = np.array(Blocks.RANGES, np.int64)
    of_range = np.arange(len(starts), dtype=np.uint16)
    table = np.repeat(of_range, np.diff(np.concatenate([starts, [0x110000]])))
    return table, list(Blocks.VALUES)


def count_blocks(root: str, stage: str, parts: Sequence[Part]) -> list[list[Any]]:
    """Counts the letters and marks of each block in parts; rows are kind, language, block, characters."""
    table, names = _blocks()
    found = []
    for part in parts:
        counts = np.zeros(len(names), np.int64)
        columns = text_columns(part.kind)
        for group in read_row_groups(part_path(Path(root), stage, part), columns):
            for batch in batches(group, columns):
                for name in columns:
                    points = CodePoints.of(batch.column(name).to_pylist())
                    letters = (points.class_of == LETTER) | (points.class_of == MARK)
                    counts += np.bincount(table[points.values[letters]], minlength=len(names))
        # Variation selectors are marks, but they only choose a glyph and belong to no script.
        of_scripts = [i for i in np.flatnonzero(counts) if not names[i].startswith("Variation Selectors")]
        found += [[part.kind, part.language, names[i], int(counts[i])] for i in of_scripts]
    return found


def block_table(build: Build, stage: str) -> pa.Table:
    """Letters and marks of each Unicode block by language; columns `kind language block characters share`."""
    sums: dict[tuple[str, str, str], int] = {}
    totals: dict[tuple[str, str], int] = {}
    for result in count_parts(build, stage, "Unicode blocks", count_blocks):
        for kind, language, block, characters in result:
            sums[kind, language, block] = sums.get((kind, language, block), 0) + characters
            totals[kind, language] = totals.get((kind, language), 0) + characters
    keys = sorted(sums, key=lambda key: (key[0], key[1], -sums[key], key[2]))
    return pa.table(
        {
            "kind": [key[0] for key in keys],
            "language": [key[1] for key in keys],
            "block": [key[2] for key in keys],
            "characters": [sums[key] for key in keys],
            "share": [sums[key] / totals[key[:2]] for key in keys],
        }
    )
