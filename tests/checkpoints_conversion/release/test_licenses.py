"""Names and texts that only look like those that a licence asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.checkpoints_conversion.release.licenses import (
    base_license_fault,
    fitting_name,
    licence_faults,
    license_of,
)

APACHE = (Path(__file__).parents[3] / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("licence", "name"),
    [
        ("llama3.1", "emma-500-llama-3.1"),
        ("llama3.1", "Llamas-emma"),
        ("llama3.1", "Llam\u0430-emma"),  # a Cyrillic letter
        ("llama3.1", "Llama\u00e9"),
        ("llama3.1", " Llama-emma"),
        ("llama3.1", "L-lama"),
        ("llama3", "Llama-30-emma"),
        ("llama3", "Llama-emma-3"),
    ],
)
def test_names_that_do_not_fit(licence: str, name: str) -> None:
    assert fitting_name(name, license_of(licence)) != name


@pytest.mark.parametrize(
    ("licence", "name"),
    [("llama3.1", "llama3.1-emma"), ("llama3.1", "Llama_emma"), ("llama3", "Llama-3-emma"), ("llama3", "Llama 3.1"),
     ("llama2", "emma-500")],
)  # fmt: skip
def test_names_that_fit(licence: str, name: str) -> None:
    assert fitting_name(name, license_of(licence)) == name


def _faults(folder: Path) -> list[str]:
    return licence_faults([license_of("apache-2.0")], folder, "emma", "card")


@pytest.mark.parametrize(
    "text",
    [
        APACHE.replace("royalty-free", "royalty-bearing", 1),
        APACHE.replace("irrevocable", "", 1),
        APACHE.replace("END OF TERMS AND CONDITIONS", ""),
        APACHE + "\nThe model must not be used by companies.\n",
        APACHE.replace("APPENDIX:", "10. Research use only.\n\nAPPENDIX:"),
        APACHE[: APACHE.index("   APPENDIX")] + "Commercial use needs a licence of ours.",
        APACHE.replace("perpetual", "perpetu\u0430l", 1),
    ],
)
def test_a_changed_clause_wherever_it_stands(text: str, tmp_path: Path) -> None:
    assert text != APACHE
    (tmp_path / "LICENSE").write_text(text, encoding="utf-8")
    assert any("LICENSE: its text" in fault for fault in _faults(tmp_path))


def test_texts_that_are_the_licences(tmp_path: Path) -> None:
    path = tmp_path / "LICENSE.txt"
    short = APACHE[: APACHE.index("   APPENDIX")]
    signed = APACHE[APACHE.rindex("   Copyright") :].replace(
        "[yyyy] [name of copyright owner]", "2024 Alibaba Cloud"
    )
    for text in (APACHE, short, short + signed, APACHE.replace("\n", "\r\n")):
        path.write_text(text, encoding="utf-8")
        assert _faults(tmp_path) == []


@pytest.mark.parametrize("name", ["LICENSE.txt", "license", "LICENSE-2", "License.rst"])
def test_a_second_text_beside_the_true_one(name: str, tmp_path: Path) -> None:
    (tmp_path / "LICENSE.md").write_text(APACHE, encoding="utf-8")
    assert _faults(tmp_path) == []
    (tmp_path / name).write_text("All rights reserved.", encoding="utf-8")
    assert any(f"{name}: its text (3 words)" in fault for fault in _faults(tmp_path))


def test_the_licence_of_the_base_cannot_be_left_behind() -> None:
    base = "Meta-Llama/llama-3.1-8B"
    fault = base_license_fault([base], [license_of("mit")])
    assert (
        fault is not None and "Llama 3.1 Community License Agreement, which the card does not name" in fault
    )
    assert base_license_fault([base], [license_of("llama3.1")]) is None
    assert base_license_fault(["someone/else"], [license_of("mit")]) is None
