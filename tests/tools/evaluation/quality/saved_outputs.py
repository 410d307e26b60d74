"""An evaluation folder as `emma evaluate run` leaves it, with outputs that the tests choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emma.base.files import write_json
from emma.tools.evaluation.benchmarks.records import Finished, unit_file, write_unit
from emma.tools.evaluation.benchmarks.scores import mean_score
from emma.tools.evaluation.results import write_results

__all__ = ["MODEL", "write_evaluation"]

MODEL = "reader"


def write_evaluation(
    folder: Path, outputs: Mapping[tuple[str, str], Sequence[tuple[str, str, str]]], model: str = MODEL
) -> Path:
    """Finished units by (benchmark, language), with a source (may be empty), an output and a reference per item."""
    units = []
    for (benchmark, language), rows in outputs.items():
        empty = mean_score([float(not output.strip()) for _, output, _ in rows])
        value = {"value": empty.value, "error": empty.error, "n": empty.n, "signature": ""}
        unit = Finished(benchmark, language, "key", "0" * 64, "shots:3", {"empty_rate": value}, {})
        samples = [
            {"index": place, "prompt": "…", "prompt_sha256": "…"}
            | ({"source": source} if source else {})
            | {"reference": reference, "output": output, "scores": {"empty_rate": empty.items[place]}}
            for place, (source, output, reference) in enumerate(rows)
        ]
        write_unit(unit_file(folder, model, benchmark, language), unit, samples)
        units.append(unit)
    write_results(folder, [row for unit in units for row in unit.results(model)])
    write_json(
        folder / "models.json", {model: {"role": "trained", "step": 1, "sha256": "0" * 64, "folder": "."}}
    )
    return folder
