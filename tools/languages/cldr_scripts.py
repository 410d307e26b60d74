"""Writes `recipes/corpus/scripts_of_languages.csv` from CLDR's language data and published codes.

Run with the `language-data` package installed (its wheel carries CLDR's `supplementalData.xml`):

    python -P -m emma.tools.languages.cldr_scripts CODES.csv...

Each CODES file lists `xxx_Ssss` codes (or pairs of them) in its first column: scripts that a language really
is written in, such as those of the Universal Declaration of Human Rights. Files named
`only-new*.csv` count only for languages that CLDR doesn't know (e.g. the published MaLA statistics, whose
scripts were measured on noisy text).
"""

from __future__ import annotations

import csv
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import iso639

from emma.base.files import atomic_write

__all__ = ["main"]

TABLE = Path(__file__).parents[2] / "recipes" / "corpus" / "scripts_of_languages.csv"


def _part3(tag: str) -> str | None:
    try:
        language = iso639.Language.from_part1(tag) if len(tag) == 2 else iso639.Language.from_part3(tag)
    except iso639.LanguageNotFoundError:
        return None
    return str(language.part3)


def scripts_from_cldr() -> dict[str, list[str]]:
    """ISO 639-3 code → scripts in customary use, most common first, by CLDR's data and likely subtags.

    CLDR's secondary scripts are historical or transliterations, so a secondary Latin script counts only for
    languages without a primary script.
    """
    import language_data
    from langcodes import Language

    path = Path(language_data.__file__).parent / "data" / "supplementalData.xml"
    found: dict[str, list[str]] = {}
    secondary: dict[str, list[str]] = {}
    for element in ElementTree.parse(path).getroot().iterfind("languageData/language"):
        code = _part3(element.attrib["type"])
        if code is None:
            continue
        likely = Language.get(element.attrib["type"]).maximize().script
        scripts = element.attrib.get("scripts", "").split()
        table = secondary if element.attrib.get("alt") == "secondary" else found
        known = table.setdefault(code, [])
        if likely in scripts:
            known.insert(0, str(likely))
        known.extend(scripts)
    for code, scripts in secondary.items():
        known = found.setdefault(code, [])
        known.extend(scripts if not known else [script for script in scripts if script != "Latn"])
    return {code: scripts for code, scripts in found.items() if scripts}


def main(arguments: list[str]) -> None:
    """Writes the table: CLDR's scripts first, then those of the codes in the given files."""
    scripts = scripts_from_cldr()
    from_cldr = set(scripts)
    for name in arguments:
        with Path(name).open(newline="", encoding="utf-8") as handle:
            for row in csv.reader(handle):
                for code in row[0].split("-"):
                    language, _, script = code.partition("_")
                    trusted = not Path(name).name.startswith("only-new") or language not in from_cldr
                    if script not in ("", "Zyyy") and trusted and _part3(language):
                        scripts.setdefault(language, []).append(script)
    spelled = {"Hans": "Hani", "Hant": "Hani", "Japn": "Jpan", "Kore": "Hang", "Hrkt": "Jpan", "Aran": "Arab"}
    keep = ("Hans", "Hant")
    with atomic_write(TABLE, "w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["language", "scripts"])
        for language, values in sorted(scripts.items()):
            ordered = dict.fromkeys(s if s in keep else spelled.get(s, s) for s in values)
            if "Hans" in ordered or "Hant" in ordered:
                ordered.pop("Hani", None)
            if ordered:
                writer.writerow([language, " ".join(ordered)])


if __name__ == "__main__":
    main(sys.argv[1:])
