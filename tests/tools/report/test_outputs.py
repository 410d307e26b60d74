"""Language and quality of outputs on the page, and what the tokenizer costs beside the scores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy.stats import binomtest

from emma.base.files import read_json, write_json
from emma.recipes.vocabulary import report_folder
from emma.tools.evaluation.results import Result, read_results, write_results
from emma.tools.report.benchmarks import benchmark_views
from emma.tools.report.outputs import outputs_of, wilson
from emma.tools.report.page import run_page
from emma.tools.report.records import read_run
from emma.tools.report.verdicts import judge_page
from tests.tools.report.sample_run import write_benchmarks, write_run

NAME = "flores200_eng_x"


def test_intervals_of_shares_are_scipys() -> None:
    for right, n in ((0, 7), (7, 7), (300, 1012), (1, 2)):
        expected = binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right / n, n) == pytest.approx((expected.low, expected.high))


def test_blind_scores_are_marked_and_in_no_mean(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    write_benchmarks(recipe)
    mix = read_json(recipe.mix_folder / "mix.json")
    write_json(recipe.mix_folder / "mix.json", {**mix, "tokenizer_sha256": "e" * 64})
    folder = report_folder(recipe.paths.corpus, "e" * 64)
    folder.mkdir(parents=True)
    costs = [{"language": "yor_Latn", "premium": 2.468, "low": 2.0, "high": 3.0, "fertility": 3.179}]
    summary = {"languages": 1, "median": 2.5, "maximum": 2.5, "gini": 0.0}
    write_json(
        folder / "report.json", {"pair_set": "x", "tokenizers": [{"premiums": summary, "languages": costs}]}
    )
    before = run_page(read_run(recipe.run_folder))
    assert "Language and quality of the outputs" not in before

    evaluation = recipe.run_folder / "evaluation"
    last = f"{recipe.name}/step-{recipe.schedule.steps}"
    rows = read_results(evaluation)
    for model, lift in (("base", 0.0), (last, 0.05)):
        for language, key, value in (
            ("swh_Latn", "comet", 0.80),
            ("deu_Latn", "comet", 0.60),
            ("yor_Latn", "comet_unseen", 0.10),
            ("yor_Latn", "in_language", 0.90),
        ):
            rows.append(Result(model, NAME, f"eng_Latn-{language}", key, 1012, value + lift, 0.01, "made up"))
    rows.append(Result(last, NAME, "eng_Latn-yor_Latn", "off_target_rate", 1012, 0.0, None, "made up"))
    write_results(evaluation, rows)
    run = read_run(recipe.run_folder)
    found = outputs_of(NAME, [run])
    columns = {(column.metric.key, column.model): column for column in found.columns}
    assert set(columns) == {(key, model) for key in ("comet", "in_language") for model in ("base", run.name)}
    comet = columns["comet", run.name]
    assert (comet.mean, comet.valid, comet.invalid) == ("75.0", 2, 1) and columns[
        "comet", "base"
    ].mean == "70.0"
    assert [cell.valid for cell in comet.cells.values()] == [True, True, False]
    assert (
        not found.script_only and "… " in columns["in_language", run.name].cells["eng_Latn-yor_Latn"].interval
    )

    page = run_page(run)
    table = page.split("Language and quality of the outputs")[1].split("</table>")[0]
    yoruba = re.search(r"<tr><td>eng_Latn-yor_Latn.*?</tr>", table, re.DOTALL)
    assert yoruba is not None and yoruba[0].count("not valid") == 2
    assert "2 languages, 1 not valid" in table and "75.0" in table
    # Nor do the other metrics' means hold them.
    view = next(view for view in benchmark_views(judge_page([run])) if view.key == NAME)
    assert {metric.key for metric, _, _ in view.others} == {"spbleu", "empty_rate", "off_target_rate"}
    # Parity and fertility stand beside the scores, under the benchmark's spelling of the language.
    assert view.costs == {
        "eng_Latn-yor_Latn": {"premium": 2.468, "low": 2.0, "high": 3.0, "fertility": 3.179}
    }
    assert "<td>2.47</td><td>3.18</td>" in page and "tokens, by English" in page


def test_a_page_says_when_only_the_script_was_looked_at(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    write_benchmarks(recipe)
    evaluation = recipe.run_folder / "evaluation"
    last = f"{recipe.name}/step-{recipe.schedule.steps}"
    row = Result(last, NAME, "eng_Latn-yor_Latn", "off_target_rate", 1012, 0.0, None, "made up")
    write_results(evaluation, [*read_results(evaluation), row])
    page = run_page(read_run(recipe.run_folder))
    assert (
        page.count("only the script of the outputs was looked at") == 1 and "tokens, by English" not in page
    )
