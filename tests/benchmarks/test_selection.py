"""The comparison of selections, on four declarations of two articles."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.selection import ARMS, main
from tests.tokenizer_styles import write_style

_TEXTS = {
    "eng": ("en", "all people are born free and equal", "all people may rest and work and rest"),
    "deu": ("de", "alle Menschen sind frei und gleich geboren", "alle Menschen ruhen und arbeiten und ruhen"),
    "hin": ("hi", "सभी मनुष्य जन्म से स्वतन्त्र और समान हैं", "सभी मनुष्य काम और आराम कर सकते हैं और"),
    "tha": ("th", "มนุษย์ทั้งหลายเกิดมามีอิสระ", "มนุษย์ทั้งหลายพักผ่อนและทำงาน"),
}


def test_each_arm_is_measured_on_other_articles(tmp_path: Path) -> None:
    folder = tmp_path / "package/declaration"
    folder.mkdir(parents=True)
    for code, (tag, odd, even) in _TEXTS.items():
        articles = "".join(
            f'<article data-number="{number}"><p>{" ".join([text] * 6)}</p></article>'
            for number, text in ((1, odd), (2, even))
        )
        (folder / f"{code}.html").write_text(
            f'<html lang="{tag}"><title>{code}</title><body>{articles}</body></html>', "utf-8"
        )
    base = write_style(tmp_path / "base", "llama3")
    arguments = [str(tmp_path / "package"), str(base), "--tokens", "12"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    lines = result.stdout.splitlines()
    found = json.loads(lines[-1])
    assert list(found) == ["none", *ARMS] and len(lines) == 2 + len(found) + 1
    for arm in ARMS:
        assert found[arm]["new_tokens"] == 12
        assert found[arm]["tokens"] < found["none"]["tokens"] and found[arm]["languages"] == 3
    assert found["parity"]["maximum"] < found["none"]["maximum"]
