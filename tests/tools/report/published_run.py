"""A run folder from the published statistics and results of EMMA-500, as large as reports get: 939 codes of text and the
benchmarks' languages, 1,507 of them in Taxi-1500. Items were not published, so errors are those of a proportion, and
numbers of items are 0 where they differ between languages."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow.parquet as pq

from emma.base.files import write_json
from emma.recipes.schema import Recipe
from emma.tools.evaluation.reference import read_tables
from emma.tools.evaluation.results import Result, write_results
from emma.tools.mix.plan import MixPlan, PlannedSource
from emma.tools.mix.sources import Source
from tests.tools.report.sample_run import sample_recipe, write_start

PUBLISHED = Path(os.environ.get("EMMA_PUBLISHED", Path(__file__).parents[4] / "shared" / "mala"))

BASE, TRAINED = "Llama 3 8B", "EMMA-500 Llama 3 8B Bi"

_ITEMS = {
    "sib200": 204,
    "taxi1500": 111,
    "belebele": 900,
    "xcopa": 500,
    "xstorycloze": 1511,
    "xnli": 2490,
    "flores200_eng_x": 1012,
    "flores200_x_eng": 1012,
    "mgsm_direct": 250,
    "mgsm_cot": 250,
}


def write_published_run(root: Path) -> Recipe:
    """Run folder with the published mix and results of a model and its base."""
    recipe = sample_recipe(root, "published")
    write_start(recipe)
    groups = json.loads((PUBLISHED / "resource_groups.json").read_text(encoding="utf-8"))
    category = {code: name for name, codes in groups.items() for code in codes}
    with (PUBLISHED / "monolingual_tokens.csv").open(encoding="utf-8", newline="") as handle:
        sources = [
            Source(
                "monolingual",
                row["lang_code"],
                category.get(row["lang_code"]),
                tokens,
                tokens // 99 + 1,
                2 * tokens,
            )
            for row in csv.DictReader(handle)
            if (tokens := int(float(row["num_tokens"])))
        ]
    trained = [source for source in sources if source.category not in (None, "unseen")]
    total = sum(source.words for source in trained)
    plan = MixPlan(total, 8192, [PlannedSource(s, s.words, total) for s in trained], recipe.data.mix.shares)
    recipe.mix_folder.mkdir(parents=True)
    pq.write_table(plan.table(), recipe.mix_folder / "plan.parquet")
    write_json(recipe.mix_folder / "mix.json", {"fingerprint": "f" * 64, "seed": 1, "samples": 1})
    rows = []
    for scores in read_tables(PUBLISHED / "results"):
        for model, name in (("base", BASE), ("published/step-120", TRAINED)):
            for language, value in scores.values.get(name, {}).items():
                n = _ITEMS.get(scores.benchmark, 0)
                error = (value * (1 - value) / n) ** 0.5 if n and scores.metric == "acc" else None
                rows.append(
                    Result(model, scores.benchmark, language, scores.metric, n, value, error, "published")
                )
    folder = recipe.run_folder / "evaluation"
    write_results(folder, rows)
    models = {
        "base": {"role": "base", "folder": "../base", "step": None, "sha256": "1" * 64},
        "published/step-120": {"role": "trained", "folder": "../hf", "step": 120, "sha256": "2" * 64},
    }
    write_json(folder / "models.json", models)
    return recipe
