"""English in the table of what was forgotten: a verdict and an interval, where there was enough to test."""

from __future__ import annotations

from pathlib import Path

from emma.tools.evaluation.results import Result, read_results, write_results
from emma.tools.report.benchmarks import benchmark_views
from emma.tools.report.forgetting import forgetting_rows
from emma.tools.report.page import run_page
from emma.tools.report.records import read_run
from emma.tools.report.verdicts import judge_page
from tests.tools.report.sample_run import write_benchmarks, write_run


def test_english_has_a_verdict_with_its_interval_and_groups_count_theirs(tmp_path: Path) -> None:
    recipe = write_run(tmp_path)
    write_benchmarks(recipe)
    folder = recipe.run_folder / "evaluation"
    last = f"{recipe.name}/step-{recipe.schedule.steps}"
    rows = read_results(folder)
    for name, values in (
        ("lm_eval.hellaswag", (0.79, 0.74)),
        ("lm_eval.gsm8k", (0.50, 0.49)),
        ("humaneval", (0.35, 0.21)),
    ):
        key = {"lm_eval.gsm8k": "exact_match", "humaneval": "pass@1"}.get(name, "acc_norm")
        for model, value in zip(("base", last), values, strict=True):
            rows.append(
                Result(model, name, "eng_Latn", key, 1319, value, (value * (1 - value) / 1319) ** 0.5, "x")
            )
    write_results(folder, rows)
    run = read_run(recipe.run_folder)
    judged = judge_page([run])
    found = {
        (row.title, row.group): row.cells[0] for row in forgetting_rows(judged.runs, benchmark_views(judged))
    }
    held = found["Held-out text", "English"]
    assert held is not None and held.verdict is None and held.interval is None, "four documents"
    lost, same = (
        found["HellaSwag, accuracy by length", "English"],
        found["GSM8K, exact match", "English"],
    )
    assert lost is not None and lost.verdict == "loss" and lost.interval is not None and lost.interval[1] < 0
    assert same is not None and same.verdict == "tie" and same.interval is not None
    assert same.interval[0] < same.change < same.interval[1]
    programs = found["HumanEval, pass@1", "English"]
    assert programs is not None and programs.verdict == "loss"
    code = found["Held-out text", "code"]
    assert code is not None and run.gains is not None
    (gained,) = [row for row in run.gains["groups"] if row["kind"] == "code"]
    assert (code.value, code.change) == (gained["trained"], gained["difference"])
    assert sum(code.counts.values()) == gained["languages"] == 2 and code.verdict is None
    group = found["SIB-200, accuracy", "high"]
    assert group is not None and group.verdict is None and sum(group.counts.values()) > 1
    page = run_page(run, judged)
    section = page[page.index('id="forgetting"') :]
    assert "clear loss" in section and "no clear change" in section and "too little to test" in section
