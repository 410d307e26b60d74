"""Carries out `emma evaluate quality`: scores saved outputs again, by learned metrics and by language identification."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from emma.base.errors import UserError
from emma.base.progress import progress
from emma.tools.evaluation.benchmarks.answers import is_empty
from emma.tools.evaluation.benchmarks.scores import Score, mean_score
from emma.tools.evaluation.quality.confusion import KEYS, Confusion
from emma.tools.evaluation.quality.seen import UNSEEN, Encoder, listed_encoder, quality_table
from emma.tools.evaluation.quality.texts import Generated, Translation, add_scores, generated_units
from emma.tools.evaluation.results import merge_results, read_results, write_results

__all__ = ["Plan", "Request", "plan", "run"]


class Learned(Protocol):
    """A learned metric of translations."""

    key: str
    encoder: Encoder
    worst: float

    @property
    def signature(self) -> str: ...

    def score(self, rows: Sequence[Translation]) -> list[float]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Request:
    """The user's request; see `emma evaluate quality --help`. Folders and files are by the metric's key."""

    metrics: dict[str, Path] = field(default_factory=dict)
    encoders: dict[str, Path] = field(default_factory=dict)
    seen: dict[str, Path] = field(default_factory=dict)
    glotlid: Path | None = None
    english_words: Path | None = None
    comet_python: Path | None = None
    benchmarks: frozenset[str] | None = None
    languages: frozenset[str] | None = None
    batch: int = 16
    device: str | None = None
    trusted: bool = False


@dataclass(frozen=True)
class Plan:
    """A checked request and the units that it is about, by model."""

    folder: Path
    learned: list[Learned]
    confusion: Confusion | None
    units: dict[str, list[Generated]]

    def facts(self) -> list[dict[str, Any]]:
        """By model and metric: how many languages are scored, and how many of them the metric can judge."""
        rows = []
        for model, units in self.units.items():
            translations = [unit for unit in units if unit.source is not None]
            for metric in self.learned:
                valid = sum(_is_seen(metric.encoder, unit) for unit in translations)
                rows.append(
                    {
                        "model": model,
                        "metric": metric.key,
                        "languages": len(translations),
                        "valid": valid,
                        "by": metric.encoder.name,
                    }
                )
            if self.confusion is not None:
                known = sum(self.confusion.knows(unit.asked) for unit in units)
                rows.append(
                    {
                        "model": model,
                        "metric": "in_language",
                        "languages": len(units),
                        "valid": known,
                        "by": self.confusion.signature,
                    }
                )
        return rows


def plan(folder: Path, request: Request) -> Plan:
    """Checks a request.

    Raises:
        UserError: nothing is asked for, a model or package is missing or something else, or there is nothing to score.
    """
    from emma.tools.evaluation.stored import evaluated_models

    if not request.metrics and request.glotlid is None:
        raise UserError("nothing to do: give --metric NAME=FOLDER or --glotlid FILE")
    if request.english_words is not None and request.glotlid is None:
        raise UserError("--english-words belongs to --glotlid FILE, which is missing")
    known = quality_table()["metrics"]
    for option, names in (
        ("--metric", request.metrics),
        ("--encoder", request.encoders),
        ("--seen", request.seen),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"{option} {name}=…: unknown metric; known are {', '.join(known)}")
            if name not in request.metrics:
                raise UserError(f"{option} {name}=…: without --metric {name}=FOLDER it has no meaning")
    models = evaluated_models(folder)
    if not models:
        raise UserError(f"{folder}: no models.json; run `emma evaluate run` first")
    units = {
        model.name: list(generated_units(folder, model.name, request.benchmarks, request.languages))
        for model in models
    }
    if not any(units.values()):
        raise UserError(
            f"{folder}: no finished language of a benchmark whose answers are texts"
            + (" among those asked for" if request.benchmarks or request.languages else "")
        )
    confusion = Confusion(request.glotlid, request.english_words) if request.glotlid is not None else None
    return Plan(folder, [_learned(key, request) for key in request.metrics], confusion, units)


def _learned(key: str, request: Request) -> Learned:
    folder, encoder = request.metrics[key], request.encoders.get(key)
    metric: Any
    if quality_table()["metrics"][key]["package"] == "comet":
        from emma.tools.evaluation.quality.comet import Comet

        metric = Comet(
            key,
            folder,
            request.comet_python,
            encoder_folder=encoder,
            batch=request.batch,
            device=request.device,
            trusted=request.trusted,
        )
    else:
        from emma.tools.evaluation.quality.metricx import MetricX

        metric = MetricX(key, folder, tokenizer=encoder, batch=request.batch, device=request.device)
    if key in request.seen:
        from emma.tools.evaluation.groups import read_seen

        path = request.seen[key]
        metric.encoder = listed_encoder(metric.encoder.name, read_seen(path), str(path))
    found: Learned = metric
    return found


def run(planned: Plan) -> list[str]:
    """Scores what is not scored yet, writes the units and the long table, and says what a reader must know.

    The units are scored metric by metric, since several metrics may not fit into memory. One that has the scores of this
    model of the metric already is left as it is.
    """
    notes: list[str] = []
    for metric in planned.learned:
        with closing(metric):
            for units in planned.units.values():
                translations = [place for place, unit in enumerate(units) if unit.source is not None]
                for place in progress(translations, desc=metric.key, unit="language"):
                    units[place] = _score(metric, units[place])
    for model, units in planned.units.items():
        if planned.confusion is not None:
            unknown = []
            for place in progress(range(len(units)), desc=f"languages of {model}", unit="language"):
                if planned.confusion.knows(units[place].asked):
                    units[place] = _identify(planned.confusion, units[place])
                else:
                    unknown.append(units[place].name)
            if unknown:
                notes.append(f"{model}: the fastText model has no label for {', '.join(unknown)}")
    rows = [
        row for model, units in planned.units.items() for found in units for row in found.unit.results(model)
    ]
    write_results(planned.folder, merge_results(read_results(planned.folder), rows))
    return notes


def _is_seen(encoder: Encoder, unit: Generated) -> bool:
    return encoder.has_seen(unit.asked) and encoder.has_seen(unit.source or unit.asked)


def _score(metric: Learned, unit: Generated) -> Generated:
    seen = _is_seen(metric.encoder, unit)
    key, signature = (
        metric.key if seen else metric.key + UNSEEN,
        f"{metric.signature}|seen:{'yes' if seen else 'no'}",
    )
    both = (metric.key, metric.key + UNSEEN)
    if [unit.unit.scores[name]["signature"] for name in both if name in unit.unit.scores] == [signature]:
        return unit
    samples = unit.samples()
    rows = unit.translations(samples)
    # Learned metrics give silence a score as they please.
    spoken = [place for place, row in enumerate(rows) if not is_empty(row.output)]
    values: list[float | None] = [metric.worst] * len(rows)
    for place, value in zip(
        spoken, metric.score([rows[place] for place in spoken]) if spoken else [], strict=True
    ):
        values[place] = value
    written = add_scores(unit, samples, {key: mean_score(values, signature)}, instead_of=both)
    return Generated(**{**vars(unit), "unit": written})


def _identify(confusion: Confusion, unit: Generated) -> Generated:
    present = [unit.unit.scores[key]["signature"] for key in KEYS if key in unit.unit.scores]
    if present and set(present) == {confusion.signature}:
        return unit
    samples = unit.samples()
    references = [str(sample.get("reference", "")) for sample in samples]
    scores: dict[str, Score] = confusion.scores(unit.asked, unit.outputs(samples), references)
    if not scores and not present:
        return unit
    written = add_scores(unit, samples, scores, instead_of=KEYS)
    return Generated(**{**vars(unit), "unit": written})
