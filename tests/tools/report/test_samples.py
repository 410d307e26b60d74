"""Samples of answers on the atlas: of every kind of unit, shared out among languages, within a number of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emma.tools.evaluation.benchmarks.records import Finished, unit_file, write_unit
from emma.tools.report import samples
from emma.tools.report.records import read_run
from emma.tools.report.verdicts import judge_page
from tests.tools.report.sample_run import write_benchmarks, write_run


def _write(folder: Path, benchmark: str, language: str, rows: list[dict[str, Any]]) -> None:
    unit = Finished(benchmark, language, "k", "m", "s", {}, {})
    write_unit(
        unit_file(folder, "sample/step-120", benchmark, language),
        unit,
        [{"index": n, "scores": {}, **row} for n, row in enumerate(rows)],
    )


def test_samples_of_every_kind_are_shown_and_none_is_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_run(tmp_path)
    write_benchmarks(recipe)
    folder = recipe.run_folder / "evaluation"
    choice = {"prompt": "Q" * 900, "choices": ["yes", "no"], "gold": 0, "likelihoods": [-3.0, -1.0]}
    _write(folder, "sib200", "yor_Latn", [choice] * 3)
    _write(folder, "sib200", "deu_Latn", [{**choice, "gold": 1}])
    _write(
        folder,
        "flores200_eng_x",
        "eng_Latn-yor_Latn",
        [{"prompt": "say", "reference": "wí"}, {"prompt": "p", "reference": "r", "output": "o" * 900}],
    )
    harness = {"prompt": "2+2=", "target": "4", "responses": [["four"]]}
    _write(folder, "xnli_emma", "de", [harness, {"prompt": "text", "nll": 3.0}])
    judged = judge_page([read_run(recipe.run_folder)])
    rows: list[dict[str, Any]] = [
        {"codes": ["deu_Latn", "de"]},
        {"codes": ["yor_Latn"]},
        {"codes": ["kat_Geor"]},
    ]
    samples.samples_of(judged, rows)
    german, yoruba, georgian = (row.get("samples") for row in rows)
    assert georgian is None
    assert german is not None and yoruba is not None
    found = {(one["benchmark"], one["answer"][:4], one["reference"]) for one in german}
    assert found == {("sib200", "no", "no"), ("xnli_emma", "four", "4")}
    assert [one["benchmark"] for one in yoruba].count("sib200") == 2, "two of a benchmark"
    assert {one["answer"] for one in yoruba if one["benchmark"] == "flores200_eng_x"} == {"", "o" * 400 + "…"}
    assert all(len(one["prompt"]) <= 401 for one in yoruba)
    # A small budget gives each language one before any gets many.
    monkeypatch.setattr(samples, "BUDGET", 950)
    rows = [{"codes": ["yor_Latn"]}, {"codes": ["deu_Latn", "de"]}]
    samples.samples_of(judged, rows)
    counts = [len(row["samples"]) for row in rows]
    assert min(counts) >= 1 and sum(counts) < len(german) + len(yoruba)
    shown = [
        value for row in rows for one in row["samples"] for value in one.values() if isinstance(value, str)
    ]
    assert sum(len(value.encode()) for value in shown) <= 950


def test_choices_of_lm_eval_s_tasks_are_shown_as_texts() -> None:
    sample = {
        "prompt": "She",
        "target": "1",
        "continuations": [" sing", " sings", " sang"],
        "responses": [[[-3.5, False]], [[-2.0, False]], [[-1.0, True]]],
    }
    assert samples._texts(sample) == {"prompt": "She", "answer": " sang", "reference": " sings"}
    # A target that is itself the text.
    assert samples._texts({**sample, "target": " sings"}) == samples._texts(sample)
