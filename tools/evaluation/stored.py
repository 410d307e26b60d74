"""Reads back the results of an evaluation folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.tools.evaluation.journal import Journal, LanguageScores
from emma.tools.evaluation.results import BENCHMARK, Result, read_results

__all__ = [
    "EvaluatedModel",
    "evaluated_models",
    "evaluation_folder",
    "item_scores",
    "journal_of",
    "stored_scores",
]


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with results in an evaluation folder; `role` is `trained` or `base`."""

    name: str
    role: str
    step: int | None
    sha256: str


def journal_of(folder: Path, model: str) -> Journal:
    """Journal of a model in an evaluation folder."""
    return Journal(folder / "heldout" / f"{model.replace('/', '_')}.jsonl")


def evaluation_folder(run: str | Path) -> Path:
    """The evaluation folder of a run, or the one that is named itself.

    Raises:
        UserError: there is no such run.
    """
    from emma.tools.evaluation.targets import resolve_run

    folder = Path(run)
    return folder if (folder / "models.json").is_file() else resolve_run(str(run))[0] / "evaluation"


def evaluated_models(folder: Path) -> list[EvaluatedModel]:
    """Models of `models.json`: base models first, then trained ones by step; empty if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "models.json"
    if not path.is_file():
        return []
    try:
        models = [
            EvaluatedModel(name, row["role"], row["step"], row["sha256"])
            for name, row in read_json(path).items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a list of models ({error}); run the evaluation again") from None
    return sorted(models, key=lambda model: (model.role != "base", model.step or 0, model.name))


def stored_scores(
    folder: Path, model: EvaluatedModel, results: list[Result] | None = None
) -> dict[tuple[str, str], LanguageScores]:
    """Document-level scores on held-out text behind a model's results, by kind and language."""
    rows = read_results(folder) if results is None else results
    wanted = {
        (row.benchmark.removeprefix(f"{BENCHMARK}/"), row.language): row.signature
        for row in rows
        if row.model == model.name and row.benchmark.startswith(f"{BENCHMARK}/")
    }
    scores: dict[tuple[str, str], LanguageScores] = {}
    for signature in set(wanted.values()):
        found = journal_of(folder, model.name).read(signature, model.sha256)
        scores |= {key: found[key] for key in found if wanted.get(key) == signature}
    return scores


def item_scores(folder: Path, model: str) -> Callable[[str, str, str], dict[str, Any] | None]:
    """A function from benchmark, language and metric to a model's item scores; None if none were kept.

    Corpus-level metrics (BLEU, chrF++) have a list of statistics per item instead of a score. The metric `cluster` gives
    the items that belong together the same name.

    Args:
        folder: evaluation folder.
        model: name in the results.
    """
    from emma.tools.evaluation.benchmarks.records import read_samples, samples_file, unit_file
    from emma.tools.evaluation.comparison import CLUSTER

    @functools.cache
    def samples(benchmark: str, language: str) -> list[tuple[str, dict[str, Any]]]:
        path = unit_file(folder, model, benchmark, language)
        if not samples_file(path).is_file():
            return []
        return [
            (str(sample["index"]), {**sample["scores"], CLUSTER: sample.get(CLUSTER)})
            for sample in read_samples(path)
        ]

    def items(benchmark: str, language: str, metric: str) -> dict[str, Any] | None:
        found = {
            index: scores[metric]
            for index, scores in samples(benchmark, language)
            if scores.get(metric) is not None
        }
        return found or None

    return items
