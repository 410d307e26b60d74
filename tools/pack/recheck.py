"""Packed documents against their text: some of a unit's documents, drawn at random, are made and encoded once more, by
the reference, and looked for in the unit's shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.processes import process_pool, result_of
from emma.base.progress import progress
from emma.tools.pack.bad_lines import BadLines
from emma.tools.pack.columns import as_array
from emma.tools.pack.documents import DocumentMaker
from emma.tools.pack.encoder import Encoder
from emma.tools.pack.engine import REFERENCE
from emma.tools.pack.inputs import InputFile, Unit
from emma.tools.pack.plan import PackSettings, difference
from emma.tools.pack.sample import Draw, share_needed
from emma.tools.pack.store import open_component, token_dtype
from emma.tools.pack.unit import unit_documents

__all__ = ["Rechecked", "recheck_component", "recheck_unit"]

ShardFiles = tuple[Path, Path]
"""A shard's tokens and documents."""


@dataclass
class Rechecked:
    """How many documents were encoded again, and which are not in the store as the reference encodes them."""

    documents: int = 0
    wrong: list[str] = field(default_factory=list)


def recheck_unit(
    settings: PackSettings, name: str, unit: Unit, shards: Sequence[ShardFiles], draw: Draw
) -> Rechecked:
    """Runs in a worker: encodes the drawn documents of a unit and looks for them in its shards.

    Args:
        settings: what was packed.
        name: the component.
        unit: what to read.
        shards: what was written.
        draw: which documents.

    Raises:
        UserError: the input cannot be read.
    """
    expected: dict[str, list[np.ndarray]] = {}
    found = Rechecked()
    component, pack, tokenizer = settings.pack.components[name], settings.pack, settings.tokenizer
    encoder = Encoder(tokenizer, REFERENCE)
    maker = DocumentMaker(component, pack)
    for documents in unit_documents(unit, maker, BadLines(component.max_bad_lines)):
        rows = pa.array(np.flatnonzero(draw.next(len(documents))))
        if not len(rows):
            continue
        drawn = documents.take(rows)
        encoded = encoder.encode(as_array(drawn["text"]), as_array(drawn["language"]))
        for row, document_id in enumerate(drawn["document_id"].to_pylist()):
            ids = encoded.ids[encoded.offsets[row] : encoded.offsets[row + 1]]
            found.documents += 1
            for part_id, part in _parts(document_id, ids, settings):
                expected.setdefault(part_id, []).append(part)
    for files in shards:
        _cross_off(expected, files, settings)
    found.wrong = sorted(expected)
    return found


def _parts(document_id: str, ids: np.ndarray, settings: PackSettings) -> Iterator[tuple[str, np.ndarray]]:
    """What the store holds of a document: all of it, pieces, or nothing."""
    pack, count = settings.pack, len(ids)
    if count < pack.min_tokens:
        return
    if pack.max_tokens is None or count <= pack.max_tokens:
        yield document_id, ids
    elif pack.long_documents == "split":
        pieces = -(-count // pack.max_tokens)
        for piece in range(pieces):
            yield f"{document_id}#{piece}", ids[piece * count // pieces : (piece + 1) * count // pieces]


def _cross_off(expected: dict[str, list[np.ndarray]], files: ShardFiles, settings: PackSettings) -> None:
    """Removes the documents that a shard holds; several may share an id."""
    if not expected or not files[0].stat().st_size:
        return
    tokenizer = settings.tokenizer
    dtype = token_dtype(tokenizer.vocab_size)
    tokens = np.memmap(files[0], dtype, "r")
    opening = tokenizer.begin_of_text_id is not None
    wanted = pa.array(list(expected), pa.string())
    for batch in pq.ParquetFile(files[1]).iter_batches(1 << 17, columns=["document_id", "offset", "tokens"]):
        for row in batch.filter(pc.is_in(batch["document_id"], wanted)).to_pylist():
            start = row["offset"] // dtype.itemsize
            ids = tokens[start + opening : start + row["tokens"] - 1]
            left = expected.get(row["document_id"], [])
            left = [each for each in left if not np.array_equal(each, ids)]
            if left:
                expected[row["document_id"]] = left
            else:
                expected.pop(row["document_id"], None)


def recheck_component(
    settings: PackSettings, name: str, seed: int, workers: int
) -> tuple[list[str], dict[str, Any]]:
    """Encodes documents drawn from a finished component's text once more and compares them with the store.

    Args:
        settings: what was packed.
        name: the component.
        seed: of the draw.
        workers: processes.

    Returns:
        Faults, and what was done: `encoded_again` documents, `of` all, with `seed`; or `not_encoded_again`, the reason
        why nothing was.

    Raises:
        UserError: the component is not finished, or the input cannot be read.
    """
    component = open_component(settings.store / name)
    extra = component.manifest.extra
    if reason := _obstacle(settings, name, component.settings, extra):
        return [], {"not_encoded_again": reason}
    files = [InputFile(**file) for file in extra["input_files"]]
    documents = component.manifest.counts["kept"]
    share = share_needed(documents, settings.pack.fault_share)
    tasks, number = [], 0
    found = Rechecked()
    with process_pool(workers, preload=["emma.tools.pack.recheck"]) as pool:
        for index, value in enumerate(extra["units"]):
            shards = [
                (shard.bin_path, shard.documents_path)
                for shard in component.shards[number : number + value["shards"]]
            ]
            number += value["shards"]
            unit = Unit.from_json(index, value, files)
            tasks.append(pool.submit(recheck_unit, settings, name, unit, shards, Draw(seed, index, share)))
        for task in progress(tasks, unit="unit", desc=f"encode {name} again"):
            result = result_of(task)
            found.documents += result.documents
            found.wrong += result.wrong
    faults = [
        f"{component.folder}: document {document_id}: its tokens are not those that the tokenizer gives its text"
        for document_id in found.wrong
    ]
    return faults, {"encoded_again": found.documents, "of": documents, "seed": seed}


def _obstacle(settings: PackSettings, name: str, before: dict[str, Any], extra: dict[str, Any]) -> str | None:
    """Why a component's text cannot be compared with it."""
    if "units" not in extra:
        return "an earlier version packed it"
    if change := difference(before, settings.of_component(name)):
        return f"the recipe was changed: {change}"
    try:
        files = [InputFile(**file) for file in extra["input_files"]]
        change = settings.input_change(name, files, extra["inputs_passed_over"])
    except UserError as error:
        return str(error)
    return f"the input was changed: {change}" if change else None
