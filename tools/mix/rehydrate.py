"""Rehydration: documents that had copies before deduplication are read more often; what a plan says of it, and the proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from emma.tools.mix.catalogue import Catalogue
from emma.tools.mix.plan import PlannedSource
from emma.tools.mix.select import Choice, Reads, salts_of

__all__ = ["rehydration_faults", "rehydration_note", "with_reads"]

_READS = {"whole_passes": pa.int64(), "read_below": pa.uint64(), "longest_read": pa.int64()}
"""Columns of the `plan.parquet` of a mix that rehydrates: every document of a source is read in `whole_passes`, and the
readings of one more pass whose random numbers are below `read_below`, of documents of at most `longest_read` tokens."""


def rehydration_note(catalogue: Catalogue, planned: Sequence[PlannedSource]) -> str:
    """What rehydration makes of a component's sources, in words.

    Args:
        catalogue: of the component, with `times`.
        planned: the plan's sources of the component.
    """
    assert catalogue.times is not None
    size = len(catalogue.languages)
    takes_part = np.isin(catalogue.languages, [row.source.language for row in planned])
    documents = np.zeros(256, np.int64)
    held, most = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for part in catalogue.parts:
        here = slice(part.start, part.stop)
        code, times = catalogue.language[here], catalogue.times[here]
        mine = catalogue.training(part) & takes_part[code]
        documents += np.bincount(times[mine], minlength=256)
        held += np.bincount(
            code[mine], times[mine] * catalogue.tokens[here][mine].astype(np.int64), size
        ).astype(np.int64)
        np.maximum.at(most, code[mine], times[mine])
    codes = {language: number for number, language in enumerate(catalogue.languages)}
    reads = 0
    for row in planned:
        if (place := codes.get(row.source.language)) is not None and held[place]:
            reads = max(reads, -(-row.target_tokens // int(held[place])) * int(most[place]))
    counts = ", ".join(f"{documents[times]:,} × {times}" for times in np.flatnonzero(documents).tolist())
    distinct = sum(row.source.tokens for row in planned)
    return (
        f"component {catalogue.component.name}: rehydrated: documents by how often a pass reads them: {counts}; a pass over all "
        f"is {int(held.sum()):,} tokens, of {distinct:,} distinct ones, in which shares, caps and epochs count; the most read "
        f"document is read some {reads:,} times"
    )


def with_reads(plan: pa.Table, choice: Choice) -> pa.Table:
    """A mix's `plan.parquet` with the columns from which every document's number of readings follows."""
    rows = [(row["component"], row["language"]) for row in plan.select(["component", "language"]).to_pylist()]
    chosen = [choice.rounded.get(key) for key in rows]
    values: list[list[int]] = [
        [0 if each is None else int(getattr(each, name)) for each in chosen]
        for name in ("whole", "below", "longest")
    ]
    for (name, kind), column in zip(_READS.items(), values, strict=True):
        plan = plan.append_column(name, pa.array(column, kind))
    return plan


def rehydration_faults(
    catalogue: Catalogue, read: np.ndarray, plan: Sequence[Mapping[str, Any]], seed: int, *, consumed: bool
) -> Iterator[str]:
    """Documents of a component that are read more or less often than the plan, the copies' numbers and the seed say.

    Args:
        catalogue: of the component, with `times`.
        read: how often the training data reads each document (int32 [documents]).
        plan: rows of the mix's `plan.parquet`.
        seed: of the mix.
        consumed: whether earlier phases' documents were left out, which are then never read.
    """
    name, size = catalogue.component.name, len(catalogue.languages)
    reads = Reads(
        salts_of(seed, name, catalogue.languages),
        np.zeros(size, np.int64),
        np.zeros(size, np.uint64),
        np.zeros(size, np.int64),
    )
    spare = np.zeros(size, np.int64)  # the last document, of which only a part is read to make up the total
    codes = {language: number for number, language in enumerate(catalogue.languages)}
    for row in plan:
        if missing := [column for column in _READS if column not in row]:
            yield f"plan.parquet lacks the column {missing[0]}, so readings of {name} cannot be proved; build the mix again"
            return
        if row["component"] == name and (number := codes.get(row["language"])) is not None:
            reads.whole[number], reads.below[number], reads.longest[number] = (
                row[column] for column in _READS
            )
            spare[number] = row["rounding"] == "closing"
    for part in catalogue.parts:
        here = slice(part.start, part.stop)
        found, code = read[here].astype(np.int64), catalogue.language[here]
        expected = reads.times(catalogue, part)
        off = found - expected
        if consumed:
            off[found == 0] = 0
        for place in np.flatnonzero(off).tolist():
            if off[place] == 1 and spare[code[place]]:
                spare[code[place]] = 0
                continue
            yield (
                f"document {part.start + place} of {name}/{catalogue.languages[int(code[place])]} is read "
                f"{int(found[place])} times, but by its copies {int(expected[place])} times"
            )
            return
    if spare.any():
        language = catalogue.languages[int(np.argmax(spare))]
        yield f"{name}/{language} makes up the total, but no document of it is read once more for that"
