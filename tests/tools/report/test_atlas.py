from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from emma.base.files import write_json
from emma.commands.report import group
from emma.recipes.vocabulary import report_folder
from emma.tools.evaluation.results import read_results
from tests.tools.report.sample_run import BENCHMARK_LANGUAGES, sample_recipe, write_benchmarks, write_run


def test_everything_of_a_language_stands_together(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    write_benchmarks(recipe)
    mix = json.loads((recipe.mix_folder / "mix.json").read_text())
    write_json(recipe.mix_folder / "mix.json", {**mix, "tokenizer_sha256": "e" * 64})
    costs = [{"language": "yor_Latn", "premium": 2.5, "low": None, "fertility": 3.1, "documents": 9}]
    summary = {"languages": 1, "median": 2.5, "maximum": 2.5, "gini": 0.0}
    report = {"pair_set": "x", "tokenizers": [{"premiums": summary, "languages": costs}]}
    folder = report_folder(recipe.paths.corpus, "e" * 64)
    folder.mkdir(parents=True)
    write_json(folder / "report.json", report)
    result = CliRunner().invoke(group, ["run", str(recipe.run_folder), "--json"], catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert Path(facts["languages_file"]) == recipe.run_folder / "report" / "languages.json"
    found = json.loads(Path(facts["languages_file"]).read_text())
    assert found["run"] == "sample"
    rows = {row["code"]: row for row in found["languages"]}
    assert list(rows) == sorted(rows)
    assert {"eng_Latn", *BENCHMARK_LANGUAGES} <= rows.keys()
    assert "python" not in rows
    yoruba = rows["yor_Latn"]
    assert (yoruba["name"], yoruba["script"], yoruba["family"]) == ("Yoruba", "Latn", "Atlantic-Congo")
    # A benchmark's code that is none of ISO 639-3 has its language's name and place.
    assert (rows["de"]["name"], round(rows["de"]["latitude"])) == (
        "German",
        round(rows["deu_Latn"]["latitude"]),
    )
    gains = json.loads((recipe.run_folder / "evaluation" / "gains.json").read_text())
    held = next(row for row in yoruba["heldout"] if row["kind"] == "monolingual")
    own = next(r for r in gains["languages"] if (r["kind"], r["language"]) == ("monolingual", "yor_Latn"))
    assert (held["base"], held["trained"], held["pooled"]) == (own["base"], own["trained"], own["pooled"])
    # A pair with English stands with the other language, in text, mix and benchmarks.
    assert any(row["language"] == "eng_Latn-yor_Latn" for row in yoruba["heldout"])
    assert all("-" not in row["language"] for row in rows["eng_Latn"]["heldout"])
    marks = {row["benchmark"]: row for row in yoruba["benchmarks"]}
    assert {"sib200", "flores200_eng_x"} <= marks.keys()
    stored = {
        (row.model, row.language): row.value
        for row in read_results(recipe.run_folder / "evaluation")
        if (row.benchmark, row.metric) == ("sib200", "acc")
    }
    cell = marks["sib200"]
    assert cell["value"] == stored["sample/step-120", "yor_Latn"]
    assert cell["difference"] == pytest.approx(cell["value"] - stored["base", "yor_Latn"])
    low, high = cell["interval"]
    assert low < cell["difference"] < high
    assert cell["verdict"] in ("win", "tie", "loss")
    assert yoruba["tokenizer"] == {"premium": 2.5, "fertility": 3.1}
    assert "tokenizer" not in rows["deu_Latn"]
    # Every token in a natural language is counted, those of pairs once.
    mixes = {(row["kind"], row["language"]): row for entry in rows.values() for row in entry.get("mix", ())}
    assert sum(row["share"] for row in mixes.values()) == pytest.approx(0.9, abs=0.02)
    assert all(row["epochs"] > 0 for row in mixes.values())


def test_a_run_without_results_has_only_its_mix(tmp_path: Path) -> None:
    from tests.tools.report.sample_run import codes, write_plan, write_start

    recipe = sample_recipe(tmp_path)
    write_start(recipe)
    write_plan(recipe, codes(9))
    page = tmp_path / "pages" / "other.html"
    CliRunner().invoke(group, ["run", str(recipe.run_folder), "--output", str(page)], catch_exceptions=False)
    found = json.loads((page.parent / "other.languages.json").read_text())
    assert {"heldout", "benchmarks", "tokenizer"}.isdisjoint(key for row in found["languages"] for key in row)
    assert all(row["mix"] for row in found["languages"])
