"""Raw sources and builds for the corpus tests."""

from __future__ import annotations

import gzip
import hashlib
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from emma.recipes.schema.corpus import Corpus, Source
from emma.tools.corpus.stage import Build

# Article 1 of the Universal Declaration of Human Rights.
ARTICLE = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience "
    "and should act towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt "
    "und sollen einander im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и "
    "должны поступать в отношении друг друга в духе братства.",
    "sr": "Сва људска бића рађају се слободна и једнака у достојанству и правима. Она су обдарена разумом и свешћу и "
    "требају једни према другима да поступају у духу братства.",
    "ar": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً وعليهم أن يعامل بعضهم بعضاً بروح الإخاء.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है "
    "और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "th": "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกันในศักดิ์ศรีและสิทธิ ต่างในตนมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
}  # fmt: skip

LANGUAGES = {
    "en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "ru": "rus_Cyrl", "sr": "srp_Cyrl", "ar": "arb_Arab",
    "hi": "hin_Deva", "zh": "cmn_Hans", "th": "tha_Thai", "ja": "jpn_Jpan",
}  # fmt: skip


def words(seed: int, count: int = 60) -> str:
    """Text of made-up words that no other seed gives."""
    chooser = random.Random(seed)
    made = ["".join(chooser.choices("abcdefghijklmnoprstuvz", k=chooser.randint(2, 9))) for _ in range(count)]
    return " ".join(made).capitalize() + "."


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]], *, compress: bool = False) -> Path:
    """Writes rows as JSON lines, gzipped if asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    return path


def documents(count: int, languages: Sequence[str] = tuple(ARTICLE)) -> list[dict[str, str]]:
    """Different documents in each language: its article with made-up words, or its own characters, in between."""
    rows = []
    for number in range(count):
        for language in languages:
            text = ARTICLE[language]
            chooser = random.Random(f"{language}{number}")
            if language in ("zh", "th", "ja"):
                text += "".join(chooser.sample(text, len(text) - 1))
            else:
                parts = text.split()
                text += " " + " ".join(chooser.sample(parts, len(parts)))
            rows.append({"lang": language, "text": f"{text} {number}"})
    return rows


def mono_source(path: Path | str, **settings: Any) -> Source:
    """A monolingual source with a column `lang`."""
    return Source(kind="monolingual", path=str(path), license="CC0-1.0", language_column="lang", **settings)


def pair_source(path: Path | str, **settings: Any) -> Source:
    """A parallel source with columns `src_lang` and `tgt_lang`."""
    return Source(
        kind="parallel",
        path=str(path),
        license="CC0-1.0",
        src_lang_column="src_lang",
        tgt_lang_column="tgt_lang",
        **settings,
    )


def build_at(root: Path, sources: dict[str, Source], workers: int = 1, **settings: Any) -> Build:
    """A build of sources into `root`."""
    return Build(Corpus(sources=sources, **settings), "test", root, "0" * 64, workers)


def rows_of(root: Path, stage: str, kind: str = "*", language: str = "*") -> list[dict[str, Any]]:
    """All rows of a stage, or of a kind and language of it."""
    rows = []
    for path in sorted((root / stage).glob(f"{kind}/{language}/part-*.parquet")):
        if "clusters" not in path.parts:
            rows += pq.read_table(path).to_pylist()
    return rows


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file of a corpus but the manifests, which hold times."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
