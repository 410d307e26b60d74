"""What the shipped MaLA recipe's rules do to sound and to faulty text of twenty languages in different scripts.

    python -m benchmarks.corpus_rules [--folder DIR]

Sound documents are three to six paragraphs each, drawn from the demo's texts of a language (the Universal Declaration of Human
Rights and GNOME's help, as shipped). Of each language there are also documents in another language, spam, lists of words that
occur once, and sound documents with an e-mail address, an IBAN, a card number and an IP address. Deduplication is not part of it: the draws
share paragraphs.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

import orjson

from emma.recipes.load import load_section
from emma.tools.corpus.build import build_corpus
from emma.tools.corpus.layout import part_path, parts_of, read_row_groups
from emma.tools.corpus.stage import Build

LANGUAGES = (
    "eng_Latn deu_Latn fra_Latn vie_Latn tur_Latn yor_Latn swh_Latn rus_Cyrl ell_Grek hye_Armn kat_Geor heb_Hebr arb_Arab "
    "hin_Deva tam_Taml tha_Thai khm_Khmr amh_Ethi cmn_Hans jpn_Jpan"
).split()
_SOUND, _FAULTY = 400, 25
_PII = "x.y@mail.example.net, DE89 3704 0044 0532 0130 00, 4111 1111 1111 1111, 93.184.216.34"
_SPAM = "Online casino free spins! Slots, poker, roulette, jackpot: no deposit bonus code. "


def paragraphs() -> dict[str, list[str]]:
    """Paragraphs of at least 40 characters of each language, as the demo's corpus has them after reading."""
    with tempfile.TemporaryDirectory() as folder:
        demo = load_section("data", "demo_monolingual").corpus
        sources = {name: each for name, each in demo.sources.items() if name in ("udhr", "gnome-help")}
        build = Build(demo.model_copy(update={"sources": sources}), "demo", Path(folder) / "demo", "0" * 64)
        build_corpus(build, "integrated")
        found: dict[str, list[str]] = {}
        for part in parts_of(build.root, "integrated"):
            for table in read_row_groups(part_path(build.root, "integrated", part), ["text"]):
                for text in table.column("text").to_pylist():
                    found.setdefault(part.language, []).extend(p for p in text.split("\n") if len(p) >= 40)
    return {language: sorted(set(found[language])) for language in LANGUAGES}


def documents(language: str, texts: dict[str, list[str]]) -> list[dict[str, str]]:
    """Sound and faulty documents, all with the label of the language; ids say what each is."""
    chooser = random.Random(language)

    def draw(source: str) -> str:
        return "\n".join(chooser.sample(texts[source], min(len(texts[source]), chooser.randint(3, 6))))

    script = language.partition("_")[2]
    others = [each for each in LANGUAGES if each != language and each.endswith(script)] or ["eng_Latn"]
    counts = Counter(word.strip(".,;:()") for text in texts[language] for word in text.lower().split())
    rare = sorted(word for word, count in counts.items() if count == 1)
    rows = [("sound", draw(language)) for _ in range(_SOUND)]
    for _ in range(_FAULTY):
        rows += [
            ("other", draw(chooser.choice(others))),
            ("spam", _SPAM * chooser.randint(1, 3)),
            ("salad", " ".join(chooser.choices(rare, k=60))),
            ("pii", f"{draw(language)}\n{draw(language)} {_PII}"),
        ]
    return [{"id": f"{kind}-{number}", "text": text} for number, (kind, text) in enumerate(rows)]


def run(folder: Path) -> list[dict[str, int | str]]:
    """One row per language: documents of each sort that are left, and masked items that are left in the text."""
    texts = paragraphs()
    for language in LANGUAGES:
        path = folder / "raw" / f"{language}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in documents(language, texts)))
    shipped = load_section("data", "mala_monolingual").corpus
    source = shipped.sources["mala_monolingual"].model_copy(
        update={"path": f"{folder}/raw/{{language}}.jsonl", "id_column": "id"}
    )
    iso = shipped.languages.model_copy(update={"spelling": "iso"})
    corpus = shipped.model_copy(update={"sources": {"t": source}, "decontamination": None, "languages": iso})
    build = Build(corpus, "rules", folder / "corpus", "0" * 64)
    build_corpus(build, "filtered")
    rows: list[dict[str, int | str]] = []
    for language in LANGUAGES:
        left, unmasked = Counter[str](), 0
        for part in parts_of(build.root, "filtered"):
            if part.language != language:
                continue
            for table in read_row_groups(part_path(build.root, "filtered", part), ["id", "text"]):
                for identifier, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    kind = identifier.partition("/")[2].partition("-")[0]
                    left[kind] += 1
                    unmasked += sum(item in text for item in _PII.split(", "))
        rows.append(
            {
                "language": language,
                "sound lost": _SOUND - left["sound"],
                **{f"{kind} left": left[kind] for kind in ("other", "spam", "salad")},
                "pii lost": _FAULTY - left["pii"],
                "pii unmasked": unmasked,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    folder = parser.parse_args().folder
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            rows = run(Path(temporary))
    else:
        rows = run(folder)
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
