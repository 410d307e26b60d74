from __future__ import annotations

from pathlib import Path

from emma.tools.evaluation.benchmarks.records import Finished, unit_file, write_unit
from emma.tools.evaluation.stored import item_scores


def test_scores_of_items_are_read_back(tmp_path: Path) -> None:
    score = {"value": 0.5, "error": 0.1, "n": 2, "signature": ""}
    unit = Finished("sib200", "deu_Latn", "k", "m", "s", {"acc": score}, {})
    samples = [
        {"index": 0, "scores": {"acc": 1, "chrf++": [1, 2, 3], "macro_f1": None}},
        {"index": 1, "scores": {"acc": 0.0, "chrf++": [1, 2, 3], "macro_f1": None}},
    ]
    write_unit(unit_file(tmp_path, "demo/step-20", "sib200", "deu_Latn"), unit, samples)
    items = item_scores(tmp_path, "demo/step-20")
    assert items("sib200", "deu_Latn", "acc") == {"0": 1.0, "1": 0.0}
    assert items("sib200", "deu_Latn", "chrf++") == {"0": [1, 2, 3], "1": [1, 2, 3]}
    assert items("sib200", "deu_Latn", "macro_f1") is None
    assert items("sib200", "yor_Latn", "acc") is None
    assert item_scores(tmp_path, "other")("sib200", "deu_Latn", "acc") is None
