"""The YAML and CSV tables of `recipes/corpus`, each read once, and their fingerprint for the manifests."""

from __future__ import annotations

import csv
import functools
import hashlib
from pathlib import Path
from typing import Any

from emma.recipes.reading import read_yaml

__all__ = ["FOLDER", "rules_sha256", "scripts_of_languages", "table", "tables_sha256"]

FOLDER = Path(__file__).parent / "corpus"


@functools.cache
def table(name: str) -> dict[str, Any]:
    """Values of `recipes/corpus/NAME.yaml`; `rules/NAME` for one of a rule's."""
    return read_yaml(FOLDER / f"{name}.yaml").values


@functools.cache
def scripts_of_languages() -> dict[str, tuple[str, ...]]:
    """ISO 639-3 code → ISO 15924 codes of the scripts in customary use, most common first."""
    with (FOLDER / "scripts_of_languages.csv").open(newline="", encoding="utf-8") as handle:
        found = {row["language"]: tuple(row["scripts"].split()) for row in csv.DictReader(handle)}
    for code, scripts in table("languages")["scripts"].items():
        found[code] = tuple(scripts)
    for macro, individual in table("languages")["individual_of_macrolanguage"].items():
        merged = dict.fromkeys((*found.get(macro, ()), *found.get(individual, ())))
        if individual not in table("languages")["scripts"] and merged:
            found[individual] = tuple(merged)
    return found


@functools.cache
def tables_sha256() -> str:
    """SHA-256 over all tables, so that stages built with other tables are recognised."""
    digest = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.yaml")) + sorted(FOLDER.glob("*.csv")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def rules_sha256(name: str) -> str:
    """SHA-256 of `recipes/corpus/rules/NAME.yaml`: a table of a rule that corpora built without it don't depend on."""
    return hashlib.sha256((FOLDER / "rules" / f"{name}.yaml").read_bytes()).hexdigest()
