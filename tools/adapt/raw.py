"""Files of raw text → the corpus's sources: format, kind and languages from endings, columns and names."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from emma.base.errors import UserError
from emma.recipes.schema.sources import Source, format_of_name
from emma.tools.corpus.streams import lines, open_bytes
from emma.tools.languages.labels import LanguageResolver

__all__ = ["Found", "UNSTATED", "find_sources"]

UNSTATED = "LicenseRef-unstated"
"""Licence of text for which none was given."""

_COLUMNS = {
    "text": ("text", "content", "raw_content", "body"),
    "language": ("language", "lang", "language_code", "lang_code", "locale"),
    "license": ("license", "licence"),
    "id": ("id",),
    "src_text": ("src_text", "source_text", "text_src"),
    "tgt_text": ("tgt_text", "target_text", "text_tgt"),
    "src_lang": ("src_lang", "source_lang", "source_language", "lang_src"),
    "tgt_lang": ("tgt_lang", "target_lang", "target_language", "lang_tgt"),
}
"""What columns are called, the usual name first."""
_ENDING = re.compile(r"(?:\.(?:gz|zst|bz2|xz))?$", re.IGNORECASE)
_PATTERN = re.compile(r"[*?{}\[\]]")
_FIRST_LINE = 64 << 20


@dataclass
class Found:
    """Sources as a data recipe writes them, by name, and files that were passed over, with the reason."""

    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    path: Path
    form: str
    columns: tuple[str, ...]

    @property
    def ending(self) -> str:
        """Everything behind the stem: `.jsonl.zst`."""
        plain = _ENDING.sub("", self.path.name)
        return Path(plain).suffix + self.path.name[len(plain) :]

    @property
    def stem(self) -> str:
        return self.path.name[: len(self.path.name) - len(self.ending)]

    def column(self, what: str) -> str | None:
        """Name of the column that holds something; None if there is none."""
        lower = {column.lower(): column for column in reversed(self.columns)}
        return next((lower[name] for name in _COLUMNS[what] if name in lower), None)


def find_sources(given: Sequence[str], languages: Sequence[str], license_: str | None) -> Found:
    """Looks at files and folders of raw text and pairs.

    A file's language is in a column, in its name (`swh_Latn.jsonl`, `web.sw.txt`), in its folder's (`swh_Latn/*.jsonl`), or
    given as `FILE=LANGUAGE`; languages of pairs in columns, in the file (TMX) or in the name (`news.en-sw.en`, `en-sw.tsv`).
    Names count only for `languages`: many words are codes of some language.

    Args:
        given: files and folders, `PATH` or `PATH=LANGUAGE`.
        languages: ISO 639-3 codes of the languages that are wanted.
        license_: licence of texts without a column of that name; `UNSTATED` where it is None.

    Raises:
        UserError: there is no such file, no text in it, or a name that a recipe's pattern cannot spell.
    """
    found = Found()
    for text in given:
        name, _, language = text.partition("=") if not Path(text).exists() else (text, "", "")
        path = Path(name)
        if not path.exists():
            raise UserError(
                f"--text: {name}: no such file or folder. Fix: name a file or a folder of raw text"
            )
        if _PATTERN.search(str(path)):
            raise UserError(
                f"--text: {path}: a recipe reads * ? {{ }} [ ] in paths as patterns. Fix: rename it, or link to it"
            )
        before = len(found.sources)
        _look(path, language or None, languages, license_ or UNSTATED, found)
        if len(found.sources) == before:
            why = "\n  ".join(["", *found.passed_over[:10]]) if found.passed_over else " it holds no files"
            raise UserError(
                f"--text: {path}: no text of the wanted languages is recognised in it:{why}\n"
                "Fix: name a file's language with --text FILE=LANGUAGE, or describe the sources in a data recipe (--data)"
            )
    return found


def _look(path: Path, language: str | None, wanted: Sequence[str], license_: str, found: Found) -> None:
    groups: dict[tuple[Path, str, str], list[_File]] = {}
    described: dict[str, dict[str, Any]] = {}
    every = list(_files(path))
    for file in every:
        if pair := _sides(file, wanted):
            # A Moses pair is read with its first side.
            if pair[0] == _side(file):
                other = str(file.with_name(_partner(file.name, *pair)))
                values = {
                    "kind": "parallel",
                    "target_path": other,
                    "src_lang": pair[0],
                    "tgt_lang": pair[1],
                }
                _add(found, _ENDING.sub("", file.name), str(file), values, license_)
            continue
        form = format_of_name(file.name)
        if form is None:
            found.passed_over.append(f"{file}: its ending tells no format")
        elif _PATTERN.search(str(file)):
            found.passed_over.append(f"{file}: a name with * ? {{ }} [ ], which recipes read as patterns")
        else:
            one = _File(file, form, _columns(file, form))
            said = _describe(one, language, wanted)
            if isinstance(said, str):
                found.passed_over.append(f"{file}: {said}")
                continue
            key = repr(sorted(said.items()))
            described[key] = said
            groups.setdefault((file.parent, one.ending, key), []).append(one)
    for (folder, ending, key), files in groups.items():
        values = described[key]
        same = [file for file in every if file.parent == folder and file.name.endswith(ending)]
        if len(files) > 1 and len(same) == len(files):
            name = f"{folder.name}-{values['language']}" if "language" in values else folder.name
            _add(found, name, f"{folder}/*{ending}", values, license_)
        else:
            for each in files:
                _add(found, each.stem, str(each.path), values, license_)


def _add(found: Found, name: str, path: str, described: Mapping[str, Any], license_: str) -> None:
    base = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "text"
    name, number = base, 2
    while name in found.sources:
        name, number = f"{base}-{number}", number + 1
    values = {"kind": described["kind"], "path": path, **described, "license": license_}
    Source.model_validate(values)
    found.sources[name] = values


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _columns(file: Path, form: str) -> tuple[str, ...]:
    """Names of a file's columns, from its beginning; none where it has none."""
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return tuple(pq.read_schema(file).names)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file}: not a readable parquet file ({str(error).splitlines()[0]}); fetch it again"
            ) from None
    if form not in ("jsonl", "csv", "tsv"):
        return ()
    with open_bytes(str(file)) as stream:
        first = next((line for _, line in lines(stream, _FIRST_LINE) if line and line != b"\r"), b"")
    if isinstance(first, int):
        return ()
    if form == "jsonl":
        try:
            value = orjson.loads(first)
        except orjson.JSONDecodeError:
            return ()
        return tuple(value) if isinstance(value, dict) else ()
    text = first.decode("utf-8-sig", "replace").rstrip("\r")
    return tuple(next(csv.reader([text]), [])) if form == "csv" else tuple(text.split("\t"))


def _describe(file: _File, language: str | None, wanted: Sequence[str]) -> dict[str, Any] | str:
    """Keys of the file's source, or why it cannot be one."""
    if file.form == "tmx":
        return {"kind": "parallel"}
    extra: dict[str, Any] = {}
    if file.columns:
        extra = {f"{what}_column": name for what in ("license", "id") if (name := file.column(what))}
    source, target = file.column("src_text"), file.column("tgt_text")
    if source and target:
        values: dict[str, Any] = {
            "kind": "parallel",
            "src_text_column": source,
            "tgt_text_column": target,
            **extra,
        }
        one, other = file.column("src_lang"), file.column("tgt_lang")
        if one and other:
            return {**values, "src_lang_column": one, "tgt_lang_column": other}
        if pair := _pair(file.stem, wanted) or _pair(file.path.parent.name, wanted):
            return {**values, "src_lang": pair[0], "tgt_lang": pair[1]}
        return "pairs, but no column and no name says of which languages"
    if file.form == "text":
        values = {"kind": "monolingual"}
    elif text := file.column("text"):
        values = {"kind": "monolingual", **({} if text == "text" else {"text_columns": [text]}), **extra}
    else:
        return f"no column `text` (it has {', '.join(file.columns) or 'none'})"
    if language is not None:
        return {**values, "language": language}
    if column := file.column("language"):
        return {**values, "language_column": column}
    for name in (file.stem, file.stem.rpartition(".")[2], file.path.parent.name):
        if _is(name, wanted):
            return {**values, "language": name}
    return "neither a column nor its name nor its folder's says that it is in a wanted language"


def _is(name: str, wanted: Sequence[str]) -> bool:
    """Whether a name is a code or name of a wanted language."""
    try:
        return LanguageResolver().resolve(name).language in wanted
    except UserError:
        return False


def _pair(name: str, wanted: Sequence[str]) -> tuple[str, str] | None:
    """The two wanted languages that end a name: `news.en-sw`, `eng_Latn-swh_Latn`."""
    found = re.fullmatch(r"(?:.*[.])?([A-Za-z_]+)-([A-Za-z_]+)", name)
    if found and _is(found[1], wanted) and _is(found[2], wanted):
        return found[1], found[2]
    return None


def _side(file: Path) -> str:
    """Language that a Moses file's name ends with."""
    return _ENDING.sub("", file.name).rpartition(".")[2]


def _sides(file: Path, wanted: Sequence[str]) -> tuple[str, str] | None:
    """The languages of the Moses pair that a file is a side of, if its other side is there."""
    pair = _pair(_ENDING.sub("", file.name).rpartition(".")[0], wanted)
    if pair is None or _side(file) not in pair:
        return None
    own = _side(file)
    other = pair[1] if own == pair[0] else pair[0]
    return pair if file.with_name(_partner(file.name, own, other)).is_file() else None


def _partner(name: str, own: str, other: str) -> str:
    """Name of the other side: `news.en-sw.en.gz` → `news.en-sw.sw.gz`."""
    plain = _ENDING.sub("", name)
    return plain.removesuffix(f".{own}") + f".{other}" + name[len(plain) :]
