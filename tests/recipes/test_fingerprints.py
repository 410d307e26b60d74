"""A key that came later, at its default, changes no fingerprint of what was there before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from emma.recipes.load import load_recipe, load_section

# Written before architectures were data, by what the tests below do; not to be written again. Of MaLA's recipes without
# how the raw text is cleaned, which was changed on purpose.
RECORDED = json.loads((Path(__file__).parent / "data" / "fingerprints.json").read_text())


def hashed(values: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).hexdigest()


@pytest.mark.parametrize("run", RECORDED["runs"])
def test_runs(run: str) -> None:
    recipe = load_recipe(run)
    values = recipe.to_dict()
    if recipe.data.name.startswith("mala"):
        del values["data"]["corpus"]
    else:
        assert recipe.sha256 == RECORDED["runs"][run]
    assert hashed(values) == RECORDED["runs"][run]


@pytest.mark.parametrize(
    ("section", "name"),
    [("model", name) for name in RECORDED["models"]] + [("data", n) for n in RECORDED["data"]],
)
def test_sections(section: str, name: str) -> None:
    recorded = RECORDED["models" if section == "model" else "data"][name]
    values = load_section(section, name).model_dump(mode="json", by_alias=True)
    if section == "data" and name.startswith("mala"):
        del values["corpus"]
    assert hashed(values) == recorded
