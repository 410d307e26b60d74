"""What a run's tokenizer costs each language, as `emma tokenizer report` has measured it."""

from __future__ import annotations

from typing import Any

from emma.base.files import read_json
from emma.recipes.vocabulary import report_folder
from emma.tools.languages.codes import language, subject
from emma.tools.report.records import RunRecord

__all__ = ["cost_of", "tokenizer_costs"]


def tokenizer_costs(run: RunRecord) -> dict[str, dict[str, Any]]:
    """By the corpus's code: `premium` over English with its interval (`low`, `high`), `bytes_per_token`, `fertility`, as
    far as they are known; empty without a report."""
    path = (
        report_folder(run.recipe.paths.corpus, run.mix_facts.get("tokenizer_sha256") or "-") / "report.json"
    )
    if not path.is_file():
        return {}
    keys = ("premium", "low", "high", "bytes_per_token", "fertility")
    rows = read_json(path)["tokenizers"][0]["languages"]
    return {row["language"]: {key: row[key] for key in keys if row.get(key) is not None} for row in rows}


def cost_of(costs: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The cost of a benchmark's language or direction, whose code the corpus may spell differently; empty if unknown."""
    code = subject(name)
    return costs.get(code) or costs.get(language(code).corpus or code) or {}
