"""The verdicts of a page, whatever they are about, share one control of how many are wrong."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from emma.tools.evaluation.gains import Gains, compare, gains_of
from emma.tools.evaluation.groups import LanguageFacts
from emma.tools.evaluation.journal import DocumentScore, LanguageScores
from emma.tools.evaluation.significance import LEVEL
from emma.tools.report.records import read_run
from emma.tools.report.verdicts import judge_page
from tests.tools.report.sample_run import codes, write_benchmarks, write_run


def _gains(names: tuple[str, str], change: float, seed: int) -> Gains:
    """Made-up gains in ten languages, some of them clear and some not; the first has too few documents for a verdict."""
    draw = np.random.default_rng(seed)
    models: list[dict[tuple[str, str], LanguageScores]] = [{}, {}]
    for place, language in enumerate(codes(10)):
        for after, scores in enumerate(models):
            bits = 2 + after * change * place / 10 + draw.normal(0, 0.1, 20 if place else 5)
            documents = tuple(
                DocumentScore(str(number), 100, 30, value * 100 * math.log(2))
                for number, value in enumerate(bits.tolist())
            )
            scores["monolingual", language] = LanguageScores(
                "monolingual", language, "s", "m", "t", documents
            )
    return compare(*names, *models, LanguageFacts())


def test_all_comparisons_of_a_page_are_judged_together(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("mono", 2), ("bi", 3)):
        recipe = write_run(tmp_path, name, languages=10, steps=20, seed=seed)
        write_benchmarks(recipe, 0.1, seed)
        gains = _gains(("base", f"{name}/step-20"), -0.2, seed)
        runs.append(replace(read_run(recipe.run_folder), gains=gains.to_dict()))
    judged = judge_page(runs, {"bi": _gains(("mono/step-20", "bi/step-20"), -0.15, 5)})
    parts = [
        *(gains_of(run.gains or {}, tmp_path).languages for run in judged.runs),
        *(gains.languages for gains in judged.against.values()),
        *(found.rows for found in judged.benchmarks.values()),
    ]
    assert [bool(part) for part in parts] == [True] * 9
    rows = [row for part in parts for row in part]
    tested = [row for row in rows if row.p is not None]
    together = false_discovery_control([row.p for row in tested])
    assert [row.adjusted for row in tested] == pytest.approx(together.tolist())
    assert [row.verdict != "tie" for row in tested] == (together <= LEVEL).tolist()
    clear = int((together <= LEVEL).sum())
    assert 0 < clear < len(tested) < len(rows)
    assert (judged.tally.comparisons, judged.tally.tested, judged.tally.clear) == (
        *(len(rows), len(tested)),
        clear,
    )
    # What pages print of them are the same verdicts.
    for gains in (*(gains_of(run.gains or {}, tmp_path) for run in judged.runs), judged.against["bi"]):
        everyone = next(group for group in gains.groups if group.group == "all but English")
        others = [row.verdict for row in gains.languages if row.language != "eng_Latn"]
        assert (everyone.wins, everyone.losses) == (others.count("win"), others.count("loss"))
