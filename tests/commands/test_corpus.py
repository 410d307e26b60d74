from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from tests.command_line import emma
from tests.small_recipe import DATA, write_small_run
from tests.tools.corpus.raw_text import ARTICLE, documents, words, write_jsonl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose corpus is built."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = [
        *documents(6, ["en", "zh", "ru"]),
        {"lang": "ru", "text": ARTICLE["en"]},
        {"lang": "en", "text": "x"},
    ]
    raw = write_jsonl(folder / "raw.jsonl", rows)
    with raw.open("a") as handle:
        handle.write("{broken\n")
    source = {
        "kind": "monolingual",
        "path": str(raw),
        "license": "CC0-1.0",
        "language_column": "lang",
        "max_bad_lines": 0.1,
    }
    path = write_small_run(folder, {**DATA, "corpus": {"sources": {"web": source}}})
    answer = emma("corpus", "build", str(path), "--workers", "1", "data.corpus.split.share=0.2")
    assert answer.code == 0, answer.err
    assert "21 in" in answer.out
    assert "invalid_line 1" in answer.out
    return str(path)


SHARE = "data.corpus.split.share=0.2"


def test_build_twice_and_as_json(run: str) -> None:
    answer = emma("corpus", "build", run, SHARE, "--workers", "1", "--json")
    counts = orjson.loads(answer.out)
    assert counts["integrated"] == {"in": 21, "kept": 20, "removed_by": {"invalid_line": 1}}
    assert counts["filtered"]["removed_by"] == {"too_short": 1, "wrong_script": 1}
    assert counts["split"]["kept"] == 18


def test_dry_run(run: str) -> None:
    answer = emma("corpus", "build", run, SHARE, "--dry-run")
    assert "web" in answer.out
    assert "18 documents, built" in answer.out
    plan = orjson.loads(emma("corpus", "build", run, SHARE, "--dry-run", "--json").out)
    assert plan["sources"][0]["files"] == 1


def test_stats(run: str, tmp_path: Path) -> None:
    answer = emma("corpus", "stats", run)
    assert answer.code == 0
    assert "unseen" in answer.out
    rows = orjson.loads(emma("corpus", "stats", run, "--languages", "--json").out)
    assert {row["language"]: row["documents"] for row in rows} == {
        "eng_Latn": 6,
        "cmn_Hans": 6,
        "rus_Cyrl": 6,
    }
    assert "cmn_Hans" in emma("corpus", "stats", run, "--languages", "--kind", "monolingual").out
    published = tmp_path / "published.csv"
    published.write_text("lang_code,num_texts,num_tokens\neng_Latn,9,3000000000\nxxx_Latn,1,5\n")
    compared = orjson.loads(emma("corpus", "stats", run, "--against", str(published), "--json").out)
    assert compared["published"]["high"]["languages"] == 1
    text = emma("corpus", "stats", run, "--against", str(published)).out
    assert "published languages that are not in this corpus: 1" in text


def test_peek(run: str) -> None:
    answer = emma("corpus", "peek", run, "--language", "cmn_Hans", "-n", "1")
    assert "人人生而自由" in answer.out
    rejected = orjson.loads(emma("corpus", "peek", run, "--rejected-by", "wrong_script", "--json").out)
    assert [row["text"] for row in rejected] == [ARTICLE["en"]]
    apart = orjson.loads(emma("corpus", "peek", run, "--quarantine", "--json").out)
    assert (apart[0]["line"], apart[0]["excerpt"]) == (21, "{broken")
    wrong = emma("corpus", "peek", run, "--rejected-by", "no_such_rule")
    assert wrong.code == 2
    assert "rules that removed some: invalid_line, too_short, wrong_script" in wrong.err


def test_verify_and_decontaminate(run: str, tmp_path: Path) -> None:
    assert emma("corpus", "verify", run, "--contents").code == 0
    (tmp_path / "a.txt").write_text(words(1, 40))
    clean = emma("corpus", "decontaminate", run, "--benchmarks", str(tmp_path))
    assert clean.code == 0
    (tmp_path / "b.txt").write_text(ARTICLE["ru"])
    found = emma("corpus", "decontaminate", run, "--benchmarks", str(tmp_path), "--json")
    assert found.code == 1
    assert orjson.loads(found.out)["contaminated"] == 6


def test_languages() -> None:
    rows = orjson.loads(emma("corpus", "languages", "zh", "sr_latin", "--json").out)
    assert {"cmn_Hans", "cmn_Hant"} <= set(rows[0]["codes"])
    assert rows[1]["codes"] == ["srp_Latn"]
    assert "zho_Hani" in emma("corpus", "languages", "zho_Hans", "--spelling", "mala").out
    wrong = emma("corpus", "languages", "engl")
    assert wrong.code == 2
    assert wrong.err.startswith("error: unknown language code `engl`")


def test_a_mistake_is_one_message(tmp_path: Path) -> None:
    raw = write_jsonl(tmp_path / "raw.jsonl", [{"lang": "en", "body": "x"}])
    source = {"kind": "monolingual", "path": str(raw), "license": "CC0-1.0", "language_column": "lang"}
    path = write_small_run(tmp_path, {**DATA, "corpus": {"sources": {"web": source}}})
    answer = emma("corpus", "build", str(path), "--workers", "1")
    assert answer.code == 2
    assert "raw.jsonl: line 1: no key `text`" in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "corpus").exists()
    without = emma("corpus", "build", str(write_small_run(tmp_path / "b")))
    assert without.code == 2
    assert "no section `corpus`" in without.err
    nothing = emma("corpus", "stats", str(path))
    assert nothing.code == 2
    assert "build the corpus first" in nothing.err
