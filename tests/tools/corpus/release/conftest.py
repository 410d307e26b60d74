from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emma.recipes.schema.corpus import Source
from emma.tools.corpus.build import build_corpus
from tests.tools.corpus.raw_text import build_at, documents, mono_source, pair_source, write_jsonl
from tests.tools.hub.uploading import address, hub

__all__ = ["address", "hub"]

LANGUAGES = ("en", "de", "ar", "zh")


def _pairs(count: int) -> list[dict[str, str]]:
    english, german = (documents(count, [language]) for language in ("en", "de"))
    return [
        {"src_lang": "de", "src_text": g["text"], "tgt_lang": "en", "tgt_text": e["text"]}
        for e, g in zip(english, german, strict=True)
    ]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three kinds from four sources, with several parts per language, that no test changes."""
    root = tmp_path_factory.mktemp("raw")
    rows = documents(60, LANGUAGES)
    for number in range(5):  # each file of raw text becomes a part
        write_jsonl(root / f"web-{number}.jsonl", rows[number * 24 : number * 24 + 24])
    news = write_jsonl(root / "news.jsonl", [{**row, "lic": "ODC-By-1.0"} for row in rows[len(rows) // 2 :]])
    code = [{"text": f"def f{i}(x):\n    return x + {i * 37}\n", "id": str(i)} for i in range(30)]
    sources = {
        "web": mono_source(root / "web-*.jsonl"),
        "news": mono_source(news, license_column="lic", url="https://example.org/news"),
        "europarl": pair_source(write_jsonl(root / "pairs.jsonl", _pairs(40))),
        "snippets": Source(
            kind="code",
            path=str(write_jsonl(root / "code.jsonl", code)),
            license="MIT OR Apache-2.0",
            language="python",
        ),
    }
    folder = root / "corpus"
    build_corpus(
        build_at(
            folder,
            sources,
            split={"share": 0.2},
            part_megabytes=0.01,
            filters={"code": {"min_characters": 0}},
        )
    )
    return folder


@pytest.fixture
def own_corpus(corpus: Path, tmp_path: Path) -> Path:
    """A copy for tests to corrupt."""
    return Path(shutil.copytree(corpus, tmp_path / "corpus"))


@pytest.fixture(scope="session")
def released_corpus(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its release, which no test changes."""
    from emma.tools.corpus.release.build import write_corpus_release
    from emma.tools.corpus.release.source import open_corpus

    folder = tmp_path_factory.mktemp("released-corpus") / "release"
    write_corpus_release(open_corpus(str(corpus)), folder, name="team/test-corpus", shard_bytes=9_000)
    return folder


@pytest.fixture
def corpus_release(released_corpus: Path, tmp_path: Path) -> Path:
    """A copy for tests to corrupt."""
    return Path(shutil.copytree(released_corpus, tmp_path / "release"))
