"""Stage `split`: deduplicated parts with a column that assigns each document to training or validation.

A text's hash decides. A language's floor and cap need its lowest hashes, so the first phase collects them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emma.base.files import atomic_write
from emma.recipes.schema.corpus import Corpus, Split
from emma.tools.corpus.accounts import KEPT, Accounts, Samples, measures_of
from emma.tools.corpus.filter import batches
from emma.tools.corpus.keys import text_keys
from emma.tools.corpus.layout import Part, PartWriter, part_path, read_row_groups, schema_of, text_columns
from emma.tools.corpus.runner import Task
from emma.tools.corpus.stage import Build, Phase, Results, Stage, chunks_of_parts, settings_of

__all__ = ["Choices", "Cut", "decide", "document_hashes", "split_corpus"]

_CHUNK_MEGABYTES = 16
_CHOICES = "split_choices.parquet"
_BITS = np.uint64(11)
"""Bits dropped from a key: hashes have 53 bits, exact in JSON and in floating point."""


def split_corpus(build: Build, previous: str) -> Stage:
    """The stage, after the one with the fingerprint `previous`."""
    corpus, root = build.corpus, str(build.root)
    settings = settings_of(corpus, {"split", "samples"})
    path = build.root / _CHOICES

    def chunks(stage: Stage) -> list[list[Part]]:
        return chunks_of_parts(build.root, "deduplicated", stage.previous_parts(), _CHUNK_MEGABYTES)

    def plan_hash(stage: Stage, _: Results) -> list[Task]:
        earlier = sorted(Choices.read(path).validation)
        return [
            Task(f"chunk-{number:06d}", collect_hashes, (corpus, root, chunk, earlier))
            for number, chunk in enumerate(chunks(stage))
        ]

    def plan_write(stage: Stage, results: Results) -> list[Task]:
        choices = Choices.read(path)
        cuts = decide(corpus.split, results["hash"], choices)
        pinned = sorted(choices.validation)
        return [
            Task(
                f"chunk-{number:06d}",
                write_parts,
                (corpus, root, chunk, [cuts[part.kind, part.language] for part in chunk], pinned),
            )
            for number, chunk in enumerate(chunks(stage))
        ]

    def close(stage: Stage, results: Results) -> None:
        choices = Choices.read(path)
        decide(corpus.split, results["hash"], choices)
        choices.write(path)
        written = results["write"]
        stage.finish(
            Accounts.merged(result["accounts"] for result in written),
            Samples.merged(corpus.samples, (result["samples"] for result in written)),
            sum(result["rows"] for result in written),
            [record for result in written for record in result["parts"]],
            [stage.previous_manifest()],
            {"validation": _validation_counts(written)},
        )

    return Stage(
        build, "split", settings, previous, [Phase("hash", plan_hash), Phase("write", plan_write)], close
    )


def _validation_counts(written: Sequence[Any]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for result in written:
        for kind, language, documents in result["validation"]:
            of_kind = counts.setdefault(kind, {})
            of_kind[language] = of_kind.get(language, 0) + documents
    return counts


def document_hashes(texts: Sequence[Sequence[str]], kind: str) -> NDArray[np.uint64]:
    """53-bit hash of each document's text; for a pair, the lower of the two sides' hashes.

    Args:
        texts: one list per text column.
        kind: kind of the documents.
    """
    hashes = [text_keys(values, kind)[:, 0] >> _BITS for values in texts]
    return np.minimum.reduce(hashes)


def _share(split: Split, language: str) -> np.uint64:
    """The hash below which documents are candidates for validation."""
    if split.cap == 0:
        return np.uint64(0)
    return np.uint64(int(split.shares.get(language, split.share) * (1 << 53)))


def collect_hashes(
    corpus: Corpus, root: str, parts: Sequence[Part], earlier: Sequence[int]
) -> list[dict[str, Any]]:
    """Collects what the split decision needs to know about each part.

    Args:
        corpus: settings.
        root: folder of the corpus.
        parts: parts of the chunk.
        earlier: hashes that the floors of earlier builds chose for validation.

    Returns:
        For each part: `kind`, `language`, `rows`, `candidates` (their number), `lowest` (as many of the
        lowest hashes as the cap, the floor or the smallest training set can require) and `pinned` (hashes
        that are in `earlier`).
    """
    split = corpus.split
    found = []
    for part in parts:
        pieces = [np.zeros(0, np.uint64)]
        names = text_columns(part.kind)
        for table in read_row_groups(part_path(Path(root), "deduplicated", part), names):
            for batch in batches(table, names):
                pieces.append(document_hashes([batch.column(name).to_pylist() for name in names], part.kind))
        hashes = np.sort(np.concatenate(pieces))
        most = max(split.cap + 1, split.floor + 1, split.min_train + 1)
        found.append(
            {
                "kind": part.kind,
                "language": part.language,
                "rows": len(hashes),
                "candidates": int((hashes < _share(split, part.language)).sum()),
                "lowest": hashes[:most].tolist(),
                "pinned": hashes[np.isin(hashes, np.array(earlier, np.uint64))].tolist(),
            }
        )
    return found


@dataclass
class Choices:
    """What floors decided, in this and earlier builds.

    `validation` holds hashes that validate, whatever their language; `train` holds, by kind and language,
    hashes that train although the share would make them validate.
    """

    validation: set[int]
    train: dict[tuple[str, str], set[int]]

    @classmethod
    def read(cls, path: Path) -> Choices:
        """Reads the file; without one, there are no choices."""
        choices = cls(set(), {})
        if path.is_file():
            for row in pq.read_table(path).to_pylist():
                choices.add(row["kind"], row["language"], row["hash"], row["split"])
        return choices

    def add(self, kind: str, language: str, value: int, split: str) -> None:
        """Records a decision."""
        if split == "validation":
            self.validation.add(value)
        else:
            self.train.setdefault((kind, language), set()).add(value)

    def write(self, path: Path) -> None:
        """Writes the file, unless there are no choices."""
        rows = [
            {"kind": "", "language": "", "hash": value, "split": "validation"}
            for value in sorted(self.validation)
        ]
        for (kind, language), values in sorted(self.train.items()):
            rows += [
                {"kind": kind, "language": language, "hash": v, "split": "train"} for v in sorted(values)
            ]
        if not rows:
            return
        schema = pa.schema(
            [("kind", pa.string()), ("language", pa.string()), ("hash", pa.int64()), ("split", pa.string())]
        )
        with atomic_write(path) as handle:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), handle)


@dataclass(frozen=True)
class Cut:
    """How the documents of a kind and language divide.

    Hashes below `share` don't train, and those of them up to `cap` validate; hashes in `train` always train.
    """

    share: int
    cap: int
    train: frozenset[int]


def decide(
    split: Split, collected: Sequence[Sequence[dict[str, Any]]], choices: Choices
) -> dict[tuple[str, str], Cut]:
    """Cuts for each kind and language; adds what the floors choose to `choices`."""
    members: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in collected:
        for entry in result:
            members.setdefault((entry["kind"], entry["language"]), []).append(entry)
    cuts = {}
    for key, entries in members.items():
        rows = sum(entry["rows"] for entry in entries)
        lowest = np.sort(np.concatenate([np.array(entry["lowest"], np.int64) for entry in entries]))
        pinned = {value for entry in entries for value in entry["pinned"]}
        cuts[key] = _cut(split, key, rows, lowest, pinned, choices)
    return cuts


def _cut(
    split: Split,
    key: tuple[str, str],
    rows: int,
    lowest: NDArray[np.int64],
    pinned: set[int],
    choices: Choices,
) -> Cut:
    share = int(_share(split, key[1]))
    trains = choices.train.get(key, set())
    candidates = [value for value in lowest.tolist() if value < share and value not in trains]
    validation = candidates[: split.cap]
    # Equal hashes stay together: if the cap would separate them, all are beyond it.
    if len(candidates) > split.cap:
        validation = [value for value in validation if value != candidates[split.cap]]
    chosen = len(set(validation) | pinned)
    # The smallest training set comes first: give documents back to it, highest hashes first.
    while validation and rows - chosen < split.min_train:
        back = validation.pop()
        choices.add(*key, back, "train")
        trains = choices.train[key]
        chosen = len(set(validation) | pinned)
    for value in lowest.tolist():
        if chosen >= split.floor or rows - chosen <= split.min_train:
            break
        if value not in trains and value not in pinned and value >= share:
            choices.add(*key, value, "validation")
            chosen += 1
    return Cut(share, validation[-1] if validation else -1, frozenset(trains))


def write_parts(
    corpus: Corpus, root: str, parts: Sequence[Part], cuts: Sequence[Cut], pinned: Sequence[int]
) -> dict[str, Any]:
    """Writes parts with the column `split`; returns `parts`, `rows`, `accounts`, `samples`, `validation`."""
    accounts, samples = Accounts(), Samples(corpus.samples)
    records, rows = [], 0
    validating = []
    for part, cut in zip(parts, cuts, strict=True):
        names = text_columns(part.kind)
        path = part_path(Path(root), "split", part)
        validation = 0
        with PartWriter(
            path, schema_of(part.kind, "split", counted=corpus.deduplication.counts), names
        ) as writer:
            for table in read_row_groups(part_path(Path(root), "deduplicated", part)):
                for batch in batches(table, names):
                    texts = [batch.column(name).to_pylist() for name in names]
                    where = _assign(document_hashes(texts, part.kind), cut, pinned)
                    sources = batch.column("source").to_pylist()
                    for row, (source, split, *values) in enumerate(
                        zip(sources, where.tolist(), *texts, strict=True)
                    ):
                        outcome = KEPT if split else "validation_cap"
                        accounts.add(part.kind, part.language, source, outcome, measures_of(*values))
                        if not split:
                            identifier = batch.column("id")[row].as_py()
                            samples.add(part.kind, part.language, outcome, id=identifier, text=values[0])
                    batch = batch.append_column("split", pa.array(where, pa.string()))
                    writer.write(batch.filter(pa.array(where != "")))
                    rows += batch.num_rows
                    validation += int((where == "validation").sum())
        records.append(writer.record(Path(root) / "split"))
        if validation:
            validating.append([part.kind, part.language, validation])
    return {
        "parts": records,
        "rows": rows,
        "accounts": accounts.to_json(),
        "samples": samples.rows,
        "validation": validating,
    }


def _assign(hashes: NDArray[np.uint64], cut: Cut, pinned: Sequence[int]) -> NDArray[np.object_]:
    """`train`, `validation` or "" (neither, being beyond the cap) for each document."""
    values = hashes.astype(np.int64)
    trains = np.isin(values, np.array(sorted(cut.train), np.int64))
    low = (values < cut.share) & ~trains
    validates = (low & (values <= cut.cap)) | np.isin(values, np.array(pinned, np.int64))
    where = np.full(len(values), "train", object)
    where[low] = ""
    where[validates] = "validation"
    return where
