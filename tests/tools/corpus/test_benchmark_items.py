from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.recipes.schema.corpus import Decontamination
from emma.tools.corpus.benchmark_items import ItemIndex, Place, place_of
from emma.tools.corpus.build import build_corpus
from emma.tools.corpus.overlap import report_overlap
from tests.tools.corpus.raw_text import ARTICLE, build_at, mono_source, words, write_jsonl


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("facebook/belebele/deu_Latn/test.jsonl", ("facebook/belebele", "deu_Latn", "test")),
        ("facebook/belebele/data/deu_Latn.jsonl", ("facebook/belebele", "deu_Latn", "")),
        ("flores200_dataset/devtest/deu_Latn.devtest", ("flores200_dataset", "deu_Latn", "devtest")),
        ("taxi1500/eng_Latn/eng_Latn_test.tsv", ("taxi1500", "eng_Latn", "test")),
        ("juletxara/mgsm/mgsm_en.tsv", ("juletxara/mgsm", "en", "")),
        ("facebook/xnli/sw/validation-00000-of-00001.parquet", ("facebook/xnli", "sw", "validation")),
        ("xcopa/test.et.jsonl.gz", ("xcopa", "et", "test")),
        (
            "csebuetnlp/xlsum/chinese_simplified_test.jsonl",
            ("csebuetnlp/xlsum", "chinese_simplified", "test"),
        ),
        ("a.jsonl.gz", ("a", "", "")),
        ("data/sib200/test.jsonl", ("sib200", "", "test")),
        ("MassiveSumm_long/train.jsonl", ("MassiveSumm_long", "", "train")),
    ],
)
def test_paths_say_what_is_in_them(path: str, place: tuple[str, str, str]) -> None:
    assert place_of(Path(path)) == Place(*place)


def made_text(language: str, seed: int) -> str:
    """Text of 20 words or 90 characters of a language that no other seed gives."""
    chooser = random.Random(f"{language}/{seed}")
    if language == "tha_Thai":
        return "".join(chooser.choices(ARTICLE["th"].replace(" ", ""), k=90))
    if language == "zho_Hans":
        return "".join(chooser.choices(ARTICLE["zh"], k=90))
    letters = "абвгдежзиклмно" if language == "rus_Cyrl" else "abcdefghiklmno"
    return " ".join("".join(chooser.choices(letters, k=chooser.randint(3, 8))) for _ in range(20))


LANGUAGES = {"deu_Latn": "de", "rus_Cyrl": "ru", "tha_Thai": "th", "zho_Hans": "zh"}


def benchmarks(folder: Path, items: int = 200) -> dict[tuple[str, str], list[str]]:
    """A reading benchmark in four languages, a translation set as plain lines, and one with its language in a field."""
    texts: dict[tuple[str, str], list[str]] = {}
    for number, language in enumerate(LANGUAGES):
        passages = [made_text(language, 1000 * number + i) for i in range(items)]
        texts["facebook/belebele", language] = passages
        rows = [{"passage": text, "question": "Which?", "answer": 2} for text in passages]
        write_jsonl(folder / "facebook" / "belebele" / language / "test.jsonl", rows)
        lines = [made_text(language, 5000 + 1000 * number + i) for i in range(items)]
        texts["flores200_dataset", language] = lines
        path = folder / "flores200_dataset" / "devtest" / f"{language}.devtest"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    stories = [made_text("deu_Latn", 20_000 + i) for i in range(items)]
    texts["massive", "deu_Latn"] = stories
    write_jsonl(folder / "massive" / "train.jsonl", [{"text": t, "language": "deu_Latn"} for t in stories])
    return texts


def test_a_planted_percent_is_found_by_benchmark_and_language_and_nothing_else(tmp_path: Path) -> None:
    texts = benchmarks(tmp_path / "benchmarks")
    clean = [
        {"lang": code, "text": " ".join(made_text(language, 90_000 + i) for _ in range(2))}
        for language, code in LANGUAGES.items()
        for i in range(150)
    ]
    planted = {
        ("facebook/belebele", "rus_Cyrl"): [3, 150],
        ("facebook/belebele", "tha_Thai"): [7, 8],
        ("flores200_dataset", "zho_Hans"): [0, 199],
        ("massive", "deu_Latn"): [20, 21],
    }
    dirty = [
        {
            "lang": LANGUAGES[language],
            "text": f"{made_text(language, 70_000 + i)} {texts[name, language][i].upper()} {made_text(language, 80_000 + i)}",
        }
        for (name, language), chosen in planted.items()
        for i in chosen
    ]
    for place, rows in (("clean", clean), ("dirty", clean + dirty)):
        raw = write_jsonl(tmp_path / place / "raw.jsonl", rows)
        build = build_at(tmp_path / place / "corpus", {"s": mono_source(raw)})
        build_corpus(build)
        found = report_overlap(build, tmp_path / "benchmarks", "split")
        by_place = {(row["benchmark"], row["language"]): row for row in found["benchmarks"]}
        assert set(by_place) == set(texts)
        assert all(row["items"] == row["searched"] == 200 for row in by_place.values())
        met = {key: row["found"] for key, row in by_place.items() if row["found"]}
        if place == "clean":
            assert met == {}
            assert found["contaminated"] == 0
        else:
            assert met == dict.fromkeys(planted, 2)
            assert found["contaminated"] == len(dirty)


def test_items_too_short_to_look_for_are_counted_apart(tmp_path: Path) -> None:
    rows = [
        {"premise": "The rain fell.", "choice1": "He left."},
        {"premise": words(1, 9), "choice1": words(2, 8)},
    ]
    write_jsonl(tmp_path / "xcopa" / "et" / "test.jsonl", rows)
    index = ItemIndex.of_folder(Decontamination(benchmarks=str(tmp_path)))
    (before,) = index.found()
    assert (before.items, before.searched, before.found) == (2, 1, 0)
    # Neither sentence has 13 words, but they follow each other in the document.
    assert index.overlaps([f"{words(5, 30)} {words(1, 9)} {words(2, 8)} {words(6, 30)}"], "Latn")[0] > 0
    assert index.found()[0].found == 1


def test_the_command_names_benchmark_language_and_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emma.commands import corpus

    texts = benchmarks(tmp_path / "benchmarks", items=100)
    rows = [{"lang": "de", "text": f"{words(9, 40)} {texts['facebook/belebele', 'deu_Latn'][5]}"}]
    build = build_at(tmp_path / "corpus", {"s": mono_source(write_jsonl(tmp_path / "raw.jsonl", rows))})
    build_corpus(build)
    monkeypatch.setattr(corpus, "_build", lambda *_: build)
    arguments = ["decontaminate", "demo", "--benchmarks", str(tmp_path / "benchmarks")]
    result = CliRunner().invoke(corpus.group, arguments)
    assert result.exit_code == 1
    line = next(line for line in result.output.splitlines() if "belebele" in line)
    assert line.split() == "facebook/belebele test deu_Latn 1 of 100 items (1.0%)".split()
    found = json.loads(CliRunner().invoke(corpus.group, [*arguments, "--json"]).stdout)
    assert sum(row["found"] for row in found["benchmarks"]) == 1
