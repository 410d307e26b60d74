"""The committed text: enough languages, scripts and pairs, formats as promised, licences beside it, no overlap."""

import csv
import gzip
import io
import unicodedata
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import zstandard

from emma.recipes.load import load_section

TEXT = Path(__file__).parents[3] / "recipes/data/demo_text"


def jsonl(name: str) -> list[dict[str, Any]]:
    content = (TEXT / name).read_bytes()
    if name.endswith(".zst"):
        content = zstandard.ZstdDecompressor().decompress(content)
    else:
        content = gzip.decompress(content)
    return [orjson.loads(line) for line in content.splitlines()]


@pytest.fixture(scope="module")
def monolingual() -> list[tuple[str, str]]:
    """(language tag, text) of all monolingual documents."""
    documents = [(row["language"], row["text"]) for row in jsonl("monolingual/udhr.jsonl.zst")]
    documents += [
        (row["locale"], row["text"])
        for row in pq.read_table(TEXT / "monolingual/gnome-help.parquet").to_pylist()
    ]
    text = gzip.decompress((TEXT / "monolingual/addresses.csv.gz").read_bytes()).decode()
    return documents + [("en", row["text"]) for row in csv.DictReader(io.StringIO(text, newline=""))]


def test_many_languages_in_many_scripts(monolingual: list[tuple[str, str]]) -> None:
    languages = {tag.split("-")[0].split("_")[0].split("@")[0] for tag, _ in monolingual}
    assert len(languages) >= 180
    scripts = {unicodedata.name(c, "? ").split()[0] for _, text in monolingual for c in text if c.isalpha()}
    known = {
        "LATIN",
        "CYRILLIC",
        "ARABIC",
        "DEVANAGARI",
        "ETHIOPIC",
        "KHMER",
        "TIBETAN",
        "HANGUL",
        "CHEROKEE",
    }
    assert known < scripts
    assert len(scripts) >= 30


def test_many_pairs(monolingual: list[tuple[str, str]]) -> None:
    pairs = {(row["src_lang"], row["tgt_lang"]) for row in jsonl("bilingual/udhr.jsonl.zst")}
    moses = {path.name.split(".")[1] for path in (TEXT / "bilingual/gnome-help").iterdir()}
    tmx = list((TEXT / "bilingual/iso-codes").iterdir())
    assert len(pairs) + len(moses) + len(tmx) >= 90
    assert sum("en" not in pair for pair in pairs) >= 10


def test_no_segment_is_both_monolingual_and_a_pair(monolingual: list[tuple[str, str]]) -> None:
    lines = {line for _, text in monolingual for line in text.split("\n") if len(line) > 200}
    for row in jsonl("bilingual/udhr.jsonl.zst"):
        assert row["src_text"] not in lines
        assert row["tgt_text"] not in lines


def test_no_mojibake(monolingual: list[tuple[str, str]]) -> None:
    for tag, text in monolingual:
        assert "\ufffd" not in text
        assert "Ã©" not in text and "â€" not in text, tag


def test_size_and_licences() -> None:
    files = [path for path in TEXT.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 1.5 * 2**20
    provenance = (TEXT / "PROVENANCE.md").read_text("utf-8")
    for path in files:
        if path.parent.name not in ("licenses", "gnome-help", "iso-codes", "demo_text"):
            assert f"`{path.relative_to(TEXT)}`" in provenance
    for row in jsonl("code/source.jsonl.zst") + jsonl("papers/vignettes.jsonl.gz"):
        assert (TEXT / "licenses" / f"{row['source']}.txt").is_file()


def test_every_file_is_a_source_of_the_recipe() -> None:
    sources = load_section("data", "demo").corpus.sources
    named: set[Path] = set()
    root = TEXT.parents[2]
    for source in sources.values():
        pattern = source.path.replace("{src}-{tgt}.{src}", "*")
        found = list(root.glob(pattern))
        assert found, source.path
        named.update(found)
    text_files = {path for path in TEXT.glob("*/**/*") if path.is_file() and path.parent.name != "licenses"}
    assert text_files == named
