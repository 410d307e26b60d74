"""Sentences of the Universal Declaration of Human Rights in more than 20 scripts, from the demo's text."""

from __future__ import annotations

import io
import json

import zstandard

from emma.recipes.compose import ROOT

__all__ = ["DECLARATION"]

_CODES = {
    "en": "eng_Latn", "ru": "rus_Cyrl", "el-monoton": "ell_Grek", "hy": "hye_Armn", "ka": "kat_Geor", "he": "heb_Hebr",
    "ar": "arb_Arab", "am": "amh_Ethi", "hi": "hin_Deva", "bn": "ben_Beng", "pa": "pan_Guru", "gu": "guj_Gujr",
    "ta": "tam_Taml", "te": "tel_Telu", "kn": "kan_Knda", "ml": "mal_Mlym", "si": "sin_Sinh", "th": "tha_Thai",
    "lo": "lao_Laoo", "km": "khm_Khmr", "my": "mya_Mymr", "bo": "bod_Tibt", "ko": "kor_Hang", "ja": "jpn_Jpan",
    "zh": "cmn_Hani", "chr": "chr_Cher", "iu": "iku_Cans", "sw": "swh_Latn",
}  # fmt: skip


def _declaration() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {code: [] for code in _CODES.values()}
    path = ROOT / "data/demo_text/monolingual/udhr.jsonl.zst"
    with zstandard.open(path, "rb") as handle:
        for line in io.TextIOWrapper(handle, "utf-8"):
            row = json.loads(line)
            if (code := _CODES.get(row["language"])) is not None:
                found[code] += row["text"].split("\n")
    return {code: lines[:40] for code, lines in found.items()}


DECLARATION = _declaration()
