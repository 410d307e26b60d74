"""The shipped MaLA recipes on planted faults: what is removed, what is masked, and that `mala_as_published` removes nothing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.base.manifest import Manifest
from emma.recipes.load import load_section
from emma.tools.corpus.build import build_corpus, totals
from emma.tools.corpus.stage import Build
from emma.tools.corpus.verify import verify_corpus
from tests.tools.corpus.raw_text import ARTICLE, rows_of, write_jsonl
from tests.tools.corpus.test_duplicates import variant

pytest.importorskip("py3langid")
pytest.importorskip("phonenumbers")

SUBJECTS = "The river,My grandmother,Our village,The old teacher,A young doctor,The council,Her brother,The harbour".split(
    ","
)
VERBS = "was known for,never forgot,wrote about,often spoke of,could not find,had always loved,sold,looked after".split(
    ","
)
THINGS = "the bridge,a letter,the garden,three books,its history,the market,an old song,the winter".split(",")
PLACES = (
    "in the north,near the station,at the end of the road,before the war,with great care,on most days".split(
        ","
    )
)

ITEM = (
    "The committee of seven astronomers measured the brightness of a distant comet on eleven consecutive nights, and "
    "published their tables in the spring."
)


def english(seed: int) -> str:
    """A made-up document that reads like English."""
    chooser = random.Random(seed)
    sentences = [
        f"{chooser.choice(SUBJECTS)} {chooser.choice(VERBS)} {chooser.choice(THINGS)} {chooser.choice(PLACES)}, "
        f"and {chooser.choice(SUBJECTS).lower()} {chooser.choice(VERBS)} {chooser.choice(THINGS)} number {chooser.randint(2, 9999)}."
        for _ in range(8)
    ]
    return " ".join(sentences)


GERMAN = (
    "Der Gemeinderat hat gestern Abend beschlossen, die alte Brücke über den Fluss im nächsten Jahr zu erneuern. Die Kosten "
    "trägt zur Hälfte das Land, und die Bauarbeiten sollen im Herbst beginnen, sobald die Genehmigung vorliegt."
)
SPAM = "Best online casino free spins bonus code. Casino slots, poker, roulette and jackpot! " * 2
SALAD = " ".join(
    f"{colour} {thing}"
    for colour in ("cheap", "genuine", "discount", "outlet", "wholesale")
    for thing in ("shoes", "handbags", "sunglasses", "watches", "jerseys", "wallets", "perfume", "boots")
)

PII = {
    "mail": (english(901) + " Write to jane.doe@mail.example.org today.", "jane.doe@mail.example.org"),
    "iban": (english(902) + " Pay to DE89 3704 0044 0532 0130 00 now.", "DE89 3704 0044 0532 0130 00"),
    "card": (english(903) + " The card 4111 1111 1111 1111 was lost.", "4111 1111 1111 1111"),
    "address": (
        english(904) + " It came from 93.184.216.34 and 2606:2800:220:1::1946 then.",
        "93.184.216.34",
    ),
    "phone": (english(905) + " Call (212) 736-5000 or +49 30 901820 first.", "736-5000"),
}
NEARLY = {
    "not-an-iban": (
        english(911) + " The code DE89 3704 0044 0532 0130 01 stays.",
        "DE89 3704 0044 0532 0130 01",
    ),
    "not-a-card": (english(912) + " The number 4111 1111 1111 1112 stays.", "4111 1111 1111 1112"),
    "not-an-address": (english(913) + " Version 300.1.2.3 of 12:30:45 stays.", "300.1.2.3 of 12:30:45"),
    "not-a-phone": (
        english(914) + " In 1914-1918 and on 2023-10-11 it stays.",
        "1914-1918 and on 2023-10-11",
    ),
}
"""Look-alikes with wrong check digits or no meaning."""


def planted() -> list[dict[str, Any]]:
    """400 sound documents and the planted ones, all labelled English."""
    texts = {f"sound-{number}": english(number) for number in range(400)}
    texts |= {name: text for name, (text, _) in (*PII.items(), *NEARLY.items())}
    texts |= {
        "exact": texts["sound-3"].upper(),
        "near": variant(texts["sound-4"], 1, 4),
        "german": GERMAN,
        "spam": SPAM,
        "salad": SALAD,
        "item": f"{english(920)} {ITEM} {english(921)}",
    }
    return [{"id": name, "text": text} for name, text in texts.items()]


def shipped(folder: Path, name: str) -> Build:
    """The recipe with its files as it names them, over the planted text."""
    write_jsonl(folder / "raw/mala-monolingual-split/eng_Latn/train.jsonl", planted())
    write_jsonl(folder / "raw/benchmarks/facts/test.jsonl", [{"question": ITEM}])
    corpus = load_section("data", name).corpus
    source = corpus.sources["mala_monolingual"].model_copy(update={"id_column": "id"})
    corpus = corpus.model_copy(update={"sources": {"mala": source}})
    return Build(corpus, name, folder / "corpus", "0" * 64)


def test_the_shipped_recipe_removes_or_masks_what_is_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build = shipped(tmp_path, "mala_monolingual")
    build_corpus(build)
    left = {row["id"].removeprefix("mala/"): row for row in rows_of(build.root, "split")}
    rejected: dict[str, str] = {}
    for path in (build.root / "rejected").glob("*.parquet"):
        rejected |= {row["id"].removeprefix("mala/"): row["rule"] for row in pq.read_table(path).to_pylist()}
    assert rejected == {
        "exact": "exact_duplicate",
        "near": "near_duplicate",
        "german": "language_mismatch",
        "spam": "spam",
        "salad": "word_salad",
        "item": "contaminated",
    }
    for name, (text, secret) in PII.items():
        assert secret in text
        assert secret not in left[name]["text"], name
    for name, (text, kept) in NEARLY.items():
        assert kept in left[name]["text"], name
        assert left[name]["text"] == text
    masked = Manifest.read(build.root / "integrated").extra["masked"]
    assert masked == {"email": 1, "ip": 2, "iban": 1, "card": 1, "phone": 2}
    assert Manifest.read(build.root / "filtered").extra["identification"] == {"backend": "py3langid"}
    assert {name: row["copies"] for name, row in left.items() if row["copies"] > 1} == {
        "sound-3": 2,
        "sound-4": 2,
    }
    # Nothing sound is lost, and everything is accounted for.
    assert sum(name.startswith("sound") for name in left) == 400
    counts = totals(build)
    assert counts["integrated"]["in"] == len(planted())
    removed = Counter[str]()
    for stage in counts.values():
        removed.update(stage["removed_by"])
    assert removed == Counter(rejected.values())
    assert counts["split"]["kept"] + removed.total() == len(planted())
    assert verify_corpus(build, contents=True) == []


def test_limits_are_reported_within_their_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build = shipped(tmp_path, "mala_monolingual")
    build_corpus(build, "filtered")
    rows = {row["limit"]: row for row in pq.read_table(build.root / "statistics/limits.parquet").to_pylist()}
    assert rows.keys() == {
        "min_letter_share", "max_digit_share", "max_symbol_share", "min_mean_word_length", "max_mean_word_length",
        "max_repeated_line_share", "max_repeated_ngram_share", "min_common_share",
    }  # fmt: skip
    for row in rows.values():
        assert row["language"] == "eng_Latn"
        assert row["documents"] == len(planted()) - 1  # without the German one
    # Words of five letters: nothing near the table's 25, and the lower bound is not undercut.
    assert rows["max_mean_word_length"]["table"] == 25
    assert rows["max_mean_word_length"]["used"] == 9.0
    assert rows["min_common_share"]["used"] == 0.2
    few = build.corpus.model_copy(
        update={"own_limits": build.corpus.own_limits.model_copy(update={"min_documents": 10_000})}  # type: ignore[union-attr]
    )
    build_corpus(Build(few, "few", tmp_path / "few", "0" * 64), "filtered")
    assert pq.read_table(tmp_path / "few/statistics/limits.parquet").num_rows == 0
    kept = {row["id"] for row in rows_of(tmp_path / "few", "filtered")}
    assert "mala/salad" in kept  # without the language's frequent words


def test_as_published_removes_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build = shipped(tmp_path, "mala_as_published")
    build_corpus(build)
    assert {name: stage["removed_by"] for name, stage in totals(build).items()} == {
        "integrated": {}, "filtered": {}, "deduplicated": {}, "split": {},
    }  # fmt: skip
    left = {row["id"].removeprefix("mala/"): row["text"] for row in rows_of(build.root, "split")}
    assert left == {row["id"]: row["text"] for row in planted()}


def test_without_benchmarks_or_fallback_the_build_says_what_to_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build = shipped(tmp_path, "mala_monolingual")
    (tmp_path / "raw/benchmarks/facts/test.jsonl").unlink()
    with pytest.raises(UserError, match="emma evaluate fetch"):
        build_corpus(build)
    settings = build.corpus.identification.model_copy(update={"fallback": None})
    strict = build.corpus.model_copy(update={"identification": settings, "decontamination": None})
    pytest.importorskip("fasttext")
    with pytest.raises(UserError, match=r"models/glotlid\.bin does not exist"):
        build_corpus(Build(strict, "strict", tmp_path / "strict", "0" * 64))


def test_sound_text_of_ten_languages_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build = shipped(tmp_path, "mala_monolingual")
    for code, text in (
        ("deu_Latn", "de"),
        ("rus_Cyrl", "ru"),
        ("hin_Deva", "hi"),
        ("zho_Hani", "zh"),
        ("tha_Thai", "th"),
    ):
        write_jsonl(
            tmp_path / f"raw/mala-monolingual-split/{code}/train.jsonl", [{"id": code, "text": ARTICLE[text]}]
        )
    build_corpus(build, "filtered")
    left = {row["id"] for row in rows_of(build.root, "filtered")}
    assert {"mala/deu_Latn", "mala/rus_Cyrl", "mala/hin_Deva", "mala/zho_Hani", "mala/tha_Thai"} <= left


MENU = "\n".join(
    f"{first}{second}{third}"
    for first in ("ba", "do", "fu", "ge", "ki", "lo", "ma", "ni")
    for second in ("ra", "ve", "zo", "pi", "tu", "sha", "ne")
    for third in ("lin", "mor", "tas", "vek", "dun", "sar", "pol")
)
"""Some four hundred words, each on a line of its own, which all pages of a site have."""


def test_what_a_site_repeats_is_not_what_a_language_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build = shipped(tmp_path, "mala_monolingual")
    pages = [{"id": f"page-{number}", "text": f"{MENU}\n{english(number)}"} for number in range(330)]
    sound = [{"id": "article", "text": ARTICLE["en"]}, {"id": "salad", "text": SALAD}]
    write_jsonl(tmp_path / "raw/mala-monolingual-split/eng_Latn/train.jsonl", [*pages, *sound])
    # Pages that were never translated, and one that was, in a language that py3langid knows and in one that it doesn't.
    untranslated = [{"id": f"untranslated-{number}", "text": english(number)} for number in range(330)]
    for code, text in (
        (
            "ell_Grek",
            "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι με λογική "
            "και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
        ),
        (
            "udm_Cyrl",
            "Ваньмыз адямиос эрико но огкадь правоосын вордӥсько. Соослы визь но возьыт сётэмын, но соос ог-огенызы братъёс "
            "сямен кариськыны кулэ. Ваньмызлы тани та Декларациын возьматэм правоос но эрикъёс сётӥсько.",
        ),
        (
            "lit_Latn",
            "Visi žmonės gimsta laisvi ir lygūs savo orumu ir teisėmis. Jiems suteiktas protas ir sąžinė, ir jie turi elgtis "
            "vienas kito atžvilgiu kaip broliai, nes visi yra lygūs.",
        ),
    ):
        write_jsonl(
            tmp_path / f"raw/mala-monolingual-split/{code}/train.jsonl",
            [*untranslated, {"id": code, "text": text}],
        )
    build_corpus(build, "filtered")
    left = {row["id"].removeprefix("mala/") for row in rows_of(build.root, "filtered")}
    assert {"article", "ell_Grek", "udm_Cyrl", "lit_Latn"} <= left
    assert "salad" not in left
    # One page says nothing of a language.
    limits = pq.read_table(build.root / "statistics/limits.parquet")
    assert set(limits["language"].to_pylist()) == {"eng_Latn"}
