"""Verifies the release folder of a corpus from the folder alone. Needs no torch."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from emma.base.errors import UserError
from emma.base.manifest import Manifest
from emma.base.progress import progress
from emma.recipes.schema.corpus import KINDS
from emma.tools.corpus.layout import read_row_groups, schema_of, text_columns
from emma.tools.corpus.release.facts import LICENSES_NAME, STATISTICS_NAME
from emma.tools.corpus.release.shards import DATA_NAME, SPLITS
from emma.tools.hub.cards import language_faults, read_card
from emma.tools.hub.checksums import checksum_faults
from emma.tools.hub.licenses import known_licenses

__all__ = ["corpus_faults"]

_FILE = re.compile(rf"{DATA_NAME}/({'|'.join(KINDS)})/([^/]+)/({'|'.join(SPLITS)})-\d{{5}}\.parquet")


def corpus_faults(folder: Path, *, read_data: bool = True) -> list[str]:
    """Everything that is wrong with a corpus release folder; empty if nothing is.

    Args:
        folder: the release.
        read_data: also read all text, to check checksums, columns, languages, licences, and that no document
            is in both training and validation; off if this was checked while writing.
    """
    faults: list[str] = []
    checks = [_file_faults, _card_faults, _table_faults]
    if read_data:
        checks = [checksum_faults, *checks, _row_faults]
    for check in checks:
        try:
            faults += check(folder)
        except UserError as error:
            faults.append(str(error))
    return list(dict.fromkeys(faults))


def _data_files(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Data files on disk → kind, language, split."""
    found = {}
    for path in sorted((folder / DATA_NAME).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and (match := _FILE.fullmatch(name)):
            found[name] = (match[1], match[2], match[3])
    return found


def _file_faults(folder: Path) -> list[str]:
    """Checks that the data files are the manifest's and readable, with its row counts and their kind's
    columns."""
    faults = []
    rows: dict[str, int] = Manifest.read(folder).extra.get("rows", {})
    files = _data_files(folder)
    for path in sorted((folder / DATA_NAME).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in files:
            faults.append(f"{path}: not a corpus data file")
    faults += [
        f"{folder / name}: missing, but listed in the manifest" for name in sorted(rows.keys() - files.keys())
    ]
    for name, (kind, _, _) in files.items():
        path = folder / name
        if name not in rows:
            faults.append(f"{path}: not in the manifest")
            continue
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            faults.append(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})")
            continue
        if metadata.num_rows != rows[name]:
            faults.append(f"{path}: {metadata.num_rows} rows, but the manifest says {rows[name]}")
        if metadata.schema.names != schema_of(kind).names:
            faults.append(f"{path}: columns {metadata.schema.names}, expected {schema_of(kind).names}")
    return faults


def _card_faults(folder: Path) -> list[str]:
    """Checks that the Hub accepts the metadata, and that its configurations cover every data file."""
    data, text = read_card(folder, "dataset")
    faults = [
        f"README.md: metadata `{key}` is missing"
        for key in ("license", "configs", "pretty_name")
        if not data.get(key)
    ]
    licenses = data.get("license") or []
    for name in [licenses] if isinstance(licenses, str) else licenses:
        if name not in known_licenses():
            faults.append(f"README.md: metadata `license` holds {name!r}, which the Hub does not know")
    faults += language_faults(data)
    if not re.search(r"^# .+", text, re.MULTILINE):
        faults.append("README.md: has no heading with the corpus's name")
    files = _data_files(folder)
    return faults + _configuration_faults(data.get("configs") or [], files)


def _configuration_faults(configurations: list[Any], files: dict[str, tuple[str, str, str]]) -> list[str]:
    faults, names, reached = [], set(), set()
    for entry in configurations:
        if not isinstance(entry, dict) or not isinstance(entry.get("config_name"), str):
            return ["README.md: metadata `configs` holds an entry without `config_name`"]
        name = entry["config_name"]
        if name in names:
            faults.append(f"README.md: configuration {name} is listed twice")
        names.add(name)
        for part in entry.get("data_files") or []:
            pattern = re.compile(re.escape(str(part.get("path"))).replace(r"\*", "[^/]*"))
            found = {file for file in files if pattern.fullmatch(file)}
            if not found:
                faults.append(f"README.md: configuration {name}: no file matches {part.get('path')}")
            if wrong := sorted(file for file in found if files[file][2] != part.get("split")):
                faults.append(
                    f"README.md: configuration {name}: {wrong[0]} does not belong to split {part.get('split')}"
                )
            reached |= found
        if not entry.get("data_files"):
            faults.append(f"README.md: configuration {name} has no files")
    for kind, language in sorted({(kind, language) for kind, language, _ in files.values()}):
        if f"{kind}-{language}" not in names:
            faults.append(f"README.md: no configuration for {kind} {language}")
    faults += [f"README.md: no configuration covers {name}" for name in sorted(files.keys() - reached)]
    return faults


def _read_table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: missing")
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def _table_faults(folder: Path) -> list[str]:
    """Checks that statistics.csv counts the data files' rows, and that licenses.csv has the same total."""
    faults = []
    rows: dict[str, int] = Manifest.read(folder).extra.get("rows", {})
    found: dict[tuple[str, str, str], int] = {}
    for name, key in _data_files(folder).items():
        found[key] = found.get(key, 0) + rows.get(name, 0)
    try:
        statistics = _read_table(folder / STATISTICS_NAME)
        counted = {
            (row["kind"], row["language"], s): int(row[s])
            for row in statistics
            for s in SPLITS
            if int(row[s])
        }
        licensed = sum(int(row["documents"]) for row in _read_table(folder / LICENSES_NAME))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: {STATISTICS_NAME} or {LICENSES_NAME} lacks a column or a number ({error})"
        ) from None
    for key in sorted(counted.keys() | found.keys()):
        if counted.get(key) != found.get(key):
            faults.append(
                f"{folder / STATISTICS_NAME}: {' '.join(key)} has {counted.get(key, 0)} documents there but "
                f"{found.get(key, 0)} in its files"
            )
    if licensed != sum(found.values()):
        faults.append(
            f"{folder / LICENSES_NAME}: {licensed} documents there, but {sum(found.values())} in the files"
        )
    return faults


def _row_faults(folder: Path) -> list[str]:
    """Checks every row's language against its folder, its licence against the table, and that no validation
    row is also a training row."""
    allowed = {(row["source"], row["kind"], row["license"]) for row in _read_table(folder / LICENSES_NAME)}
    files = _data_files(folder)
    groups: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, (kind, language, split) in files.items():
        groups.setdefault((kind, language), {}).setdefault(split, []).append(name)
    faults = []
    bar: tqdm[Any]
    with progress(total=len(files), desc="text", unit="file") as bar:
        for (kind, language), by_split in groups.items():
            held_out: dict[str, pa.Array] = {}
            for split in reversed(SPLITS):  # validation first, since it is small
                for name in by_split.get(split, []):
                    for table in read_row_groups(folder / name):
                        faults += _language_faults(folder / name, kind, language, table)
                        faults += _license_faults(folder / name, kind, table, allowed)
                        if split == "validation":
                            for column, values in _identity(kind, table).items():
                                before = held_out.get(column)
                                held_out[column] = (
                                    values if before is None else pa.concat_arrays([before, values])
                                )
                        else:
                            faults += _overlap_faults(folder / name, _identity(kind, table), held_out)
                    bar.update()
    return faults


def _language_faults(path: Path, kind: str, language: str, table: pa.Table) -> list[str]:
    sides = language.partition("-")[::2] if kind == "parallel" else (language,)
    columns = ("src_lang", "tgt_lang") if kind == "parallel" else ("language",)
    return [
        f"{path}: holds rows whose `{column}` is not {side}"
        for column, side in zip(columns, sides, strict=True)
        if not pc.all(pc.equal(table[column], side), min_count=0, skip_nulls=False).as_py()
    ]


def _license_faults(path: Path, kind: str, table: pa.Table, allowed: set[tuple[str, str, str]]) -> list[str]:
    rows = table.group_by(["source", "license"]).aggregate([]).to_pylist()
    return [
        f"{path}: rows of source {row['source']} under {row['license']}, a combination that {LICENSES_NAME} does not list"
        for row in rows
        if (row["source"], kind, row["license"]) not in allowed
    ]


def _identity(kind: str, table: pa.Table) -> dict[str, pa.Array]:
    """What identifies documents: their ids and their texts."""
    texts = [table[name].combine_chunks() for name in text_columns(kind)]
    joined = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, "\0")
    return {"id": table["id"].combine_chunks(), "text": joined}


def _overlap_faults(path: Path, rows: dict[str, pa.Array], held_out: dict[str, pa.Array]) -> list[str]:
    faults = []
    for column, values in held_out.items():
        found = pc.index(pc.is_in(rows[column], values), True).as_py()
        if found >= 0:
            faults.append(
                f"{path}: row with id {rows['id'][found].as_py()} is also in validation (same {column})"
            )
    return faults
