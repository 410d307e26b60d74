"""The `corpus.sources` part of the `data` section: files of raw text, their format, language and licence."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from emma.recipes.schema.section import Section

__all__ = ["KINDS", "Kind", "Source", "format_of_name"]

Kind = Literal["monolingual", "parallel", "code", "papers", "books", "instruction"]

KINDS: tuple[Kind, ...] = ("monolingual", "parallel", "code", "papers", "books", "instruction")

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".tmx": "tmx",
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def format_of_name(path: str) -> str | None:
    """Format that a file's ending says; None if it says none."""
    name = path.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return next((form for ending, form in _FORMATS.items() if name.endswith(ending)), None)


class Source(Section):
    """One source of raw text: its files, their format, where the language is named, the licence.

    Monolingual kinds name the language by exactly one of `language`, `language_column` and a `{language}` in `path`;
    parallel sources by `src_lang`/`src_lang_column`/`{src}` and `tgt_lang`/`tgt_lang_column`/`{tgt}` (TMX names its
    languages itself).
    """

    kind: Kind
    """What the text is: `monolingual`, `parallel`, `code`, `papers`, `books` or `instruction`."""
    path: str
    """Pattern of the files, relative to the working folder (or, for `recipes/...` that is not there, the shipped
    recipes), or an address on an object store (`s3://bucket/raw/{language}.jsonl`, `hf://datasets/owner/name/...`, whatever
    fsspec knows): `*`, `?` and `**` as in a shell; `{language}`, `{src}`, `{tgt}` or any other `{name}` captures part of a
    file name, e.g. `raw/{language}.jsonl.zst`. Files ending in .gz, .zst, .bz2 or .xz are decompressed."""
    target_path: str | None = None
    """Moses pairs: file of the target side, in terms of the `{names}` of `path`, e.g. path `c.{src}-{tgt}.{src}` and
    target_path `c.{src}-{tgt}.{tgt}`."""
    format: Literal["jsonl", "csv", "tsv", "parquet", "text", "tmx", "moses"] | None = None
    """Format of the files; default: what their ending says, or `moses` if `target_path` is given."""
    license: str = Field(min_length=1)
    """Licence of the text (an SPDX identifier if there is one); recorded with every document."""
    license_column: str | None = None
    """Column with the licence of each document, if they differ; an empty value means `license`."""
    url: str = ""
    """Where the source comes from, for readers and the corpus card."""
    language: str | None = None
    """Language of all documents: any code that `emma corpus languages` understands. For `code`: the programming
    language."""
    language_column: str | None = None
    """Column with the language of each document."""
    src_lang: str | None = None
    """Language of the source side of all pairs."""
    src_lang_column: str | None = None
    """Column with the language of the source side."""
    tgt_lang: str | None = None
    """Language of the target side of all pairs."""
    tgt_lang_column: str | None = None
    """Column with the language of the target side."""
    text_columns: list[str] = Field(default_factory=lambda: ["text"], min_length=1)
    """Columns that make up the text, joined by a blank line unless `template` says otherwise."""
    src_text_column: str = "src_text"
    """Column with the text of the source side."""
    tgt_text_column: str = "tgt_text"
    """Column with the text of the target side."""
    template: str | None = None
    """How columns make up the text, e.g. `"{inputs}\\n{targets}"`; double a brace to write it literally."""
    id_column: str | None = None
    """Column with an identifier: the document's id is `<source>/<identifier>`, without one `<source>/<file>#<row>`."""
    columns: list[str] | None = None
    """Names of the columns, for csv and tsv without a header line."""
    quoting: bool | None = None
    """Whether `"` quotes fields in csv and tsv; default: yes for csv, no for tsv."""
    text_unit: Literal["file", "block", "line"] = "file"
    """What a document is in plain text: a file, a block between blank lines, or a line."""
    max_bad_lines: float = Field(0.0, ge=0, le=1)
    """Share of a source's lines that may be unusable (not JSON, a column missing, invalid UTF-8). They go to
    `quarantine/` with file, line and reason; above this share the build stops. With 0 the first one stops it."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        names = set(re.findall(r"\{(\w+)\}", self.path))
        form = self.format_of(self.path)
        if (self.target_path is not None) != (form == "moses"):
            raise ValueError("format: moses and target_path go together: give both or neither")
        if self.kind == "parallel":
            self._check_parallel(names, form)
        else:
            self._check_monolingual(names, form)
        if self.columns is not None and form not in ("csv", "tsv"):
            raise ValueError(f"columns is for csv and tsv, not for {form}")
        return self

    def _check_monolingual(self, names: set[str], form: str) -> None:
        if form in ("tmx", "moses"):
            raise ValueError(f"format: {form} holds pairs; set kind: parallel")
        _exactly_one("language", self.language, self.language_column, "language" in names)
        if form == "text" and (
            self.language_column or self.template or self.license_column or self.id_column
        ):
            raise ValueError(
                "format: text has no columns; remove language_column, license_column, id_column, template"
            )

    def _check_parallel(self, names: set[str], form: str) -> None:
        if form == "text":
            raise ValueError(
                "format: text holds no pairs; two line-aligned files are format: moses with target_path"
            )
        if form == "tmx":
            given = (self.src_lang, self.src_lang_column, self.tgt_lang, self.tgt_lang_column)
            if any(given) or names & {"src", "tgt"}:
                raise ValueError("format: tmx names its languages itself; remove src_lang and tgt_lang")
            return
        _exactly_one("src_lang", self.src_lang, self.src_lang_column, "src" in names, "src")
        _exactly_one("tgt_lang", self.tgt_lang, self.tgt_lang_column, "tgt" in names, "tgt")
        if form == "moses" and (self.src_lang_column or self.tgt_lang_column or self.id_column):
            raise ValueError(
                "format: moses has no columns; name the languages by src_lang, tgt_lang or in the path"
            )
        unknown = set(re.findall(r"\{(\w+)\}", self.target_path or "")) - names
        if unknown:
            raise ValueError(f"target_path uses {{{min(unknown)}}}, which path does not capture")

    def format_of(self, path: str) -> str:
        """Format of a file of this source: as given, else by its ending.

        Raises:
            ValueError: the ending says nothing and no format is given.
        """
        if self.format is not None:
            return self.format
        if self.target_path is not None:
            return "moses"
        if form := format_of_name(path):
            return form
        raise ValueError(f"the format of `{path}` cannot be told from its ending; set format to one of jsonl, csv, "
                         "tsv, parquet, text, tmx, moses")  # fmt: skip


def _exactly_one(
    key: str, fixed: str | None, column: str | None, in_path: bool, name: str | None = None
) -> None:
    given = [bool(fixed), bool(column), in_path]
    if sum(given) != 1:
        placeholder = "{" + (name or key) + "}"
        problem = "no language" if not any(given) else "the language more than once"
        raise ValueError(
            f"names {problem}: give exactly one of {key}, {key}_column and {placeholder} in path"
        )
