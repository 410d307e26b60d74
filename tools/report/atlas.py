"""One structure for everything that is known of each language of a run: `languages.json` beside the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from emma.tools.evaluation.groups import kind_of
from emma.tools.languages.codes import language, subject
from emma.tools.languages.labels import language_name
from emma.tools.languages.places import place
from emma.tools.report.records import RunRecord
from emma.tools.report.tokens import tokenizer_costs
from emma.tools.report.verdicts import Judged, interval

__all__ = ["atlas", "facts", "heldout_cells"]

_HELDOUT = (
    *("kind", "category", "trained_on", "seen_by_base", "n", "bytes", "base", "trained", "difference"),
    *("error", "test", "p", "adjusted", "verdict", "pooled", "pooled_low", "pooled_high"),
)


def atlas(run: RunRecord, judged: Judged) -> dict[str, Any]:
    """Everything by language. What a run does not have is absent: no field is guessed, and none is empty.

    Args:
        run: the run, as judged.
        judged: the verdicts of its page.

    Returns:
        `run`, `verdicts` (`significance.Tally`), and `languages`, a list ordered by code. Each has `code`, `name` (English),
        and where known `script` (ISO 15924), `family` (Glottolog), `category` (the papers'), `speakers`, `latitude` and
        `longitude` in degrees; `heldout`, one entry per kind
        of text (bits per byte of both models, difference, error, its 95 % `interval`, verdict, pooled difference with
        interval); `benchmarks`,
        one per benchmark and direction (value and error; `base`, `difference`, its 95 % `interval` by its standard error,
        p, `verdict` if the base was evaluated); `tokenizer` (premium over English with its interval, bytes a token,
        fertility); `mix`, one entry per component (tokens, share of the mix, epochs). Pairs stand with the language other
        than English; pairs of two others stand with both.
    """
    found: dict[str, dict[str, Any]] = {}

    def entry(code: str) -> dict[str, Any]:
        return found.setdefault(code, facts(code))

    for code, held in heldout_cells(run.gains["languages"] if run.gains else ()):
        entry(code).setdefault("heldout", []).append(held)
    for (name, benchmark), compared in judged.benchmarks.items():
        if name != run.name:
            continue
        tests = {test.language: test for test in compared.rows}
        for where, score in compared.scores.scores.items():
            cell: dict[str, Any] = {
                "benchmark": benchmark,
                "language": where,
                "metric": compared.scores.metric.key,
                "n": score.n,
                "value": score.value,
                "error": score.error,
            }
            if test := tests.get(where):
                cell |= {"base": test.base, "difference": test.difference, "difference_error": test.error}
                cell |= {"test": test.test, "p": test.p, "adjusted": test.adjusted, "verdict": test.verdict}
                if between := interval(test.difference, test.error, test.units):
                    cell["interval"] = between
            kept = {key: value for key, value in cell.items() if value is not None}
            entry(subject(where)).setdefault("benchmarks", []).append(kept)
    total = sum(part.tokens for part in run.mix)
    for part in run.mix:
        # Only natural languages have a script in their code; programming languages and the like don't.
        if "_" in part.language:
            row = {"kind": kind_of(part.component), "language": part.language, "tokens": part.tokens}
            row |= {"share": part.tokens / total if total else 0.0, "epochs": part.epochs}
            for code in _subjects(part.language):
                entry(code).setdefault("mix", []).append(row)
    for code, cost in tokenizer_costs(run).items():
        entry(code)["tokenizer"] = cost
    return {
        "run": run.name,
        "verdicts": asdict(judged.tally),
        "languages": [found[code] for code in sorted(found)],
    }


def facts(code: str) -> dict[str, Any]:
    """What is known of a language apart from any run: the first fields of its entry."""
    known, where = language(code), place(code)
    rest = {
        "script": known.script,
        "family": where.branches[0][1] if where.branches else None,
        "category": known.category,
        "speakers": where.speakers,
        "latitude": where.latitude,
        "longitude": where.longitude,
    }
    # Benchmarks also write codes that are none of ISO 639-3, such as `sw`.
    name = next((one for one in map(language_name, (code, where.of)) if one not in (code, where.of)), code)
    return {"code": code, "name": name, **{k: v for k, v in rest.items() if v is not None}}


def heldout_cells(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of `gains.json` by the language that they are about; what is None is left out."""
    for row in rows:
        held = {key: row[key] for key in _HELDOUT if row[key] is not None}
        if between := interval(row["difference"], row["error"], row["n"]):
            held["interval"] = between
        for code in _subjects(row["language"]):
            yield code, {"language": row["language"], **held}


def _subjects(name: str) -> list[str]:
    """Languages that a language or pair of text is about; none for what is not a natural language."""
    if "_" not in name:
        return []
    codes = name.split("-")
    return codes if len(codes) == 1 else [code for code in codes if not language(code).is_english]
