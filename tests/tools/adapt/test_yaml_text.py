"""What is written as YAML is read as the same values."""

from __future__ import annotations

from pathlib import Path

from emma.recipes.reading import read_yaml
from emma.tools.adapt.yaml_text import Said, yaml_text

ODD = [
    "no",
    "Yes",
    "null",
    "1e3",
    ".5",
    "0x1F",
    "a: b",
    "# x",
    "é ü",
    'quo"te',
    "new\nline",
    "",
    "~",
    "../ours.yaml",
]


def test_odd_values_come_back(tmp_path: Path) -> None:
    values = {
        "texts": ODD,
        "keys": {text: number for number, text in enumerate(ODD) if text},
        "numbers": [1, 1.5, 1e-07, 1e16, True, None],
        "empty": {},
    }
    said = {key: Said(value, f"Because of {key}.\n  a table") for key, value in values.items()}
    path = tmp_path / "x.yaml"
    path.write_text(yaml_text(said))
    assert read_yaml(path).values == values
