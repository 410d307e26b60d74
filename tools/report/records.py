"""What a run folder records about its run. Missing parts are empty, not errors; damaged parts are errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.vocabulary import Growth, cost_sentence, growth_of
from emma.tools.evaluation.results import Result, read_results
from emma.tools.evaluation.stored import EvaluatedModel, evaluated_models
from emma.tools.evaluation.targets import exported_steps, resolve_run
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.safety import recorded_skips

if TYPE_CHECKING:
    from emma.recipes.schema import Recipe

__all__ = ["MixPart", "RunRecord", "read_mix_parts", "read_run"]


@dataclass(frozen=True)
class MixPart:
    """One source of the mix: a language (or pair) of a component.

    `store_tokens` counts its tokens in the token store, `tokens` those that the run trains on; `epochs` is
    their ratio.
    """

    component: str
    language: str
    category: str | None
    store_tokens: int
    tokens: int

    @property
    def epochs(self) -> float:
        return self.tokens / self.store_tokens if self.store_tokens else 0.0


@dataclass(frozen=True)
class RunRecord:
    """Everything the report knows about a run. `steps` and `validations` are rows of metrics.jsonl;
    `checkpoint` is the step at which everything was cut off, None for the whole run."""

    folder: Path
    recipe: Recipe
    steps: list[dict[str, Any]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    mix: list[MixPart] = field(default_factory=list)
    mix_facts: dict[str, Any] = field(default_factory=dict)
    models: list[EvaluatedModel] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    gains: dict[str, Any] | None = None
    exports: list[int] = field(default_factory=list)
    parity: dict[str, Any] | None = None
    alerts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    growth: Growth | None = None
    """How the base's vocabulary was extended."""
    token_cost: str | None = None
    """What the tokenizer costs the corpus's languages, in a sentence."""
    checkpoint: int | None = None

    @property
    def name(self) -> str:
        return self.recipe.name if self.checkpoint is None else f"{self.recipe.name}@{self.checkpoint}"

    @property
    def parity_step(self) -> int | None:
        """Step of the export that the parity report covers: the latest that has a report."""
        with_report = [step for step in self.exports if parity_file(self.folder, step).is_file()]
        return with_report[-1] if with_report else None

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, where logged."""
        rows = [row for row in self.steps if row.get(key) is not None]
        return [float(row["step"]) for row in rows], [float(row[key]) for row in rows]

    @property
    def groups(self) -> list[str]:
        """Validation groups, in the order in which they were first logged."""
        return list(dict.fromkeys(group for row in self.validations for group in row["validation"]))

    def validation(self, group: str) -> tuple[list[float], list[float]]:
        """Steps and losses of a validation group."""
        rows = [row for row in self.validations if group in row["validation"]]
        return [float(row["step"]) for row in rows], [float(row["validation"][group]) for row in rows]


def parity_file(folder: Path, step: int) -> Path:
    """An export's parity report."""
    return folder / "hf" / f"step-{step}" / "parity.json"


def read_run(run: str | Path) -> RunRecord:
    """Reads a run folder.

    Raises:
        UserError: the run does not exist, or one of its files is damaged.
    """
    folder, recipe = resolve_run(run)
    steps, validations = read_metrics(folder / "metrics.jsonl")
    evaluation = folder / "evaluation"
    exports = exported_steps(folder)
    with_parity = [step for step in exports if parity_file(folder, step).is_file()]
    mix = recipe.mix_folder
    mix_facts = _json(mix / "mix.json") or {}
    return RunRecord(
        folder,
        recipe,
        steps,
        validations,
        _json(folder / "environment.json") or {},
        read_mix_parts(mix / "plan.parquet"),
        mix_facts,
        evaluated_models(evaluation),
        read_results(evaluation),
        _json(evaluation / "gains.json"),
        exports,
        _json(parity_file(folder, with_parity[-1])) if with_parity else None,
        _lines(folder / "alerts.jsonl"),
        recorded_skips(folder / "skipped.json"),
        growth_of(recipe.model.tokenizer.path),
        cost_sentence(recipe.paths.corpus, mix_facts.get("tokenizer_sha256")),
    )


def _json(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _lines(path: Path) -> list[dict[str, Any]]:
    """Objects of an append-only jsonl file; a last line without a newline is still being written."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    try:
        return [orjson.loads(line) for line in lines if line.endswith(b"\n")]
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}: a line is not valid JSON ({error}). Fix: remove the line") from None


def read_mix_parts(path: Path) -> list[MixPart]:
    """A mix's sources from its `plan.parquet`; none if the file is missing.

    Raises:
        UserError: the file is damaged or has another schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return []
    try:
        columns = ["component", "language", "category", "store_tokens", "tokens"]
        rows = pq.read_table(path, columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Fix: plan the mix again") from None
    return [
        MixPart(
            row["component"],
            row["language"],
            row["category"] or None,
            row["store_tokens"] or 0,
            row["tokens"] or 0,
        )
        for row in rows
    ]
