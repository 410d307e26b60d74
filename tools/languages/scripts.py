"""Measures the script of a text: the writing system that most of its letters belong to."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emma.tools.languages.codepoints import CodePoints, script_names

__all__ = [
    "ABJADS",
    "MIN_LETTERS",
    "SPACELESS",
    "SYLLABARIES",
    "compatible",
    "family",
    "measure",
    "script_of",
]

MIN_LETTERS = 3
"""Minimum letters for measuring a text's script; in Han, kana and Hangul, a single letter suffices."""

MIN_SHARE = 0.5
"""Share of a text's letters that its leading script needs in order to count as the text's script."""

_SAMPLE = 2048
"""How many characters to look at from the start of a text, and again from its middle."""

SPACELESS = frozenset(
    ["Hani", "Hans", "Hant", "Jpan", "Japn", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Yiii", "Talu",
     "Tale", "Lana", "Java", "Bali", "Bopo"]
)  # fmt: skip
"""Scripts that don't separate words with spaces."""

ABJADS = frozenset(["Arab", "Hebr", "Syrc", "Samr", "Thaa", "Nkoo", "Phnx", "Mand"])
"""Right-to-left scripts that leave out vowels, and their close relatives: words are short."""

_BATCH = 1024
"""Texts per batch, small enough for the processor's cache."""

# Scripts that a label may name, with the measured scripts that agree with them.
_PARTS: dict[str, frozenset[str]] = {
    "Hani": frozenset(["Hani", "Bopo"]),
    "Hans": frozenset(["Hani", "Bopo"]),
    "Hant": frozenset(["Hani", "Bopo"]),
    "Jpan": frozenset(["Hani", "Hira", "Kana"]),
    "Japn": frozenset(["Hani", "Hira", "Kana"]),
    "Kore": frozenset(["Hang", "Hani"]),
    "Hang": frozenset(["Hang", "Hani"]),
}


SYLLABARIES = frozenset(["Ethi", "Cans", "Cher", "Vaii", "Bamu", "Mend", "Hang"])
"""Scripts whose characters are syllables: words have few characters."""


def family(script: str) -> str:
    """Family of a script, for filter thresholds: `spaceless`, `abjad`, `syllabary` or `spaced`."""
    if script in SPACELESS:
        return "spaceless"
    if script in SYLLABARIES:
        return "syllabary"
    return "abjad" if script in ABJADS else "spaced"


def script_of(code: str) -> str:
    """ISO 15924 part of an `xxx_Ssss` code; "" where there is none."""
    return code.rpartition("_")[2] if "_" in code else ""


def parts(script: str) -> frozenset[str]:
    """Scripts whose letters occur in a text in `script`."""
    return _PARTS.get(script, frozenset([script]))


@functools.cache
def part_mask(script: str) -> NDArray[np.bool_]:
    """Which script indices (see `codepoints.script_names`) belong to `script`."""
    return np.isin(np.array(script_names()), list(parts(script)))


def compatible(measured: str, script: str) -> bool:
    """Whether a text in `script` can have this measured script; Hans and Hant exclude each other."""
    if {measured, script} == {"Hans", "Hant"}:
        return False
    if measured in ("Hans", "Hant", "Jpan"):
        return measured == script or script == "Hani" or (measured, script) in {("Jpan", "Japn")}
    return measured in parts(script) or measured == script


@functools.cache
def _chinese() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of code points that are only simplified (GB 2312 without Big5) and only traditional."""

    def encodable(codec: str) -> NDArray[np.bool_]:
        table = np.zeros(0x110000, np.bool_)
        for code in range(0x4E00, 0xA000):
            try:
                chr(code).encode(codec)
            except UnicodeEncodeError:
                continue
            table[code] = True
        return table

    simplified, traditional = encodable("gb2312"), encodable("big5")
    return simplified & ~traditional, traditional & ~simplified


def measure(texts: Sequence[str]) -> list[tuple[str | None, float]]:
    """Script of each text, and the share of its letters in that script.

    The script is None if there are fewer than three letters or no script has half of them. Chinese text is
    `Hans` or `Hant` if one form's own characters outnumber the other's by more than four to one, else `Hani`.
    Text with enough kana is `Jpan`.
    """
    result: list[tuple[str | None, float]] = []
    for start in range(0, len(texts), _BATCH):
        result.extend(_measure(CodePoints.of([_sample(text) for text in texts[start : start + _BATCH]])))
    return result


def _measure(points: CodePoints) -> list[tuple[str | None, float]]:
    present, counts = points.script_counts()
    counts[:, 0] = 0
    names = [script_names()[index] for index in present]
    column = {name: position for position, name in enumerate(names)}
    none = np.zeros(len(points), np.int64)
    han = counts[:, column["Hani"]] if "Hani" in column else none
    kana = sum((counts[:, column[name]] for name in ("Hira", "Kana") if name in column), none)
    japanese = (kana > 0) & (kana * 20 >= han)
    total = counts.sum(axis=1)
    best = counts.argmax(axis=1)
    most = counts[np.arange(len(points)), best]
    kana_first = japanese & (kana + han >= most)
    most = np.where(kana_first, kana + han, most)
    share = most / np.maximum(total, 1)
    hangul = counts[:, column["Hang"]] if "Hang" in column else none
    known = (total + MIN_LETTERS * (han + kana + hangul) >= MIN_LETTERS) & (share >= MIN_SHARE)
    result: list[tuple[str | None, float]] = []
    for row, (is_known, is_kana, index, part) in enumerate(
        zip(known.tolist(), kana_first.tolist(), best.tolist(), share.tolist(), strict=True)
    ):
        if not is_known:
            result.append((None, part))
        elif is_kana:
            result.append(("Jpan", part))
        elif names[index] == "Hani":
            result.append((_han_form(points.values[points.offsets[row] : points.offsets[row + 1]]), part))
        else:
            result.append((names[index], part))
    return result


def _sample(text: str) -> str:
    if len(text) <= 2 * _SAMPLE:
        return text
    middle = len(text) // 2
    return text[:_SAMPLE] + text[middle : middle + _SAMPLE]


def _han_form(values: NDArray[np.uint32]) -> str:
    simplified, traditional = _chinese()
    hans, hant = int(simplified[values].sum()), int(traditional[values].sum())
    if hans > 4 * hant:
        return "Hans"
    return "Hant" if hant > 4 * hans else "Hani"
