"""`emma evaluate items` on stored samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.commands.evaluate_items import items
from emma.tools.evaluation.benchmarks.records import Finished, unit_file, write_unit
from emma.tools.evaluation.results import Result, write_results
from tests.tools.evaluation.test_item_response import simulated

LANGUAGES = [f"q{chr(97 + i // 26)}{chr(97 + i % 26)}_Latn" for i in range(30)]


def evaluation(folder: Path, *, name: str = "belebele", cut: int = 0) -> Path:
    """Base and trained model on 80 items in 30 languages; `cut` items are missing in the last one."""
    rows = []
    write_json(
        folder / "models.json",
        {
            "base": {"role": "base", "folder": "b", "step": None, "sha256": "1" * 64},
            "run/step-9": {"role": "trained", "folder": "t", "step": 9, "sha256": "2" * 64},
        },
    )
    items_, able, _ = simulated(30, 80, guessing=0.25)
    draw = np.random.default_rng(3)
    for model, lift in (("base", -0.7), ("run/step-9", 0.7)):
        right = draw.random((30, 80)) < items_.right(able + lift)
        for language, answers in zip(LANGUAGES, right, strict=True):
            samples = [
                {"index": place, "prompt": "", "scores": {"acc": float(answer)}}
                for place, answer in enumerate(answers[: 80 - cut if language == LANGUAGES[-1] else 80])
            ]
            scores = {"acc": {"value": float(answers.mean()), "error": 0.05, "n": 80, "signature": ""}}
            unit = Finished(name, language, "k", "m", "s", scores, {})
            write_unit(unit_file(folder, model, name, language), unit, samples)
            rows.append(Result(model, name, language, "acc", 80, float(answers.mean()), 0.05, "s"))
            rows.append(Result(model, name, language, "chance", 80, 0.25, None, "s"))
    write_results(folder, rows)
    return folder


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(items, [str(part) for part in arguments])
    if result.exception:
        raise result.exception
    return result.output


def test_abilities_and_subset_of_a_run(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation")
    subset = tmp_path / "items.txt"
    found = json.loads(invoke(folder, "--benchmark", "belebele", "--subset", subset, "--json"))
    assert found["guessing"] == 0.25
    assert found["items"] == 80
    gains = [
        found["abilities"]["run/step-9"][language]["value"] - found["abilities"]["base"][language]["value"]
        for language in LANGUAGES
    ]
    assert np.mean(gains) > 0.5
    assert found["check"]["items"] == len(subset.read_text().split()) == 8
    assert found["check"]["languages"] == 60
    assert sorted(found["subset"]) == sorted(subset.read_text().split())
    text = invoke(folder, "--benchmark", "belebele")
    assert "8 of 80 items" in text
    assert LANGUAGES[0] in text


def test_items_that_are_not_the_same_are_refused(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "cut", cut=3)
    with pytest.raises(UserError, match=f"{LANGUAGES[-1]} and {LANGUAGES[0]} were asked different items"):
        invoke(folder, "--benchmark", "belebele")
    with pytest.raises(UserError, match="no items of xcopa are kept"):
        invoke(folder, "--benchmark", "xcopa")
    with pytest.raises(UserError, match="differ between languages"):
        invoke(folder, "--benchmark", "xlsum")
    with pytest.raises(UserError, match="lower bits_per_byte is better"):
        invoke(folder, "--benchmark", "belebele", "--metric", "bits_per_byte")
