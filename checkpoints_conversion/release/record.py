"""What a model's card is made of, released with it, so that every figure of the card can be computed again.

`record/` holds the run's logged steps, its mix and its environment as far as the card uses them; the evaluation's
document-level scores of both models are in `evaluation/heldout/`.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from emma.base.errors import UserError
from emma.base.files import read_json, write_json, write_text
from emma.base.manifest import Manifest

if TYPE_CHECKING:
    from emma.recipes.vocabulary import Growth
    from emma.tools.evaluation.gains import Gains
    from emma.tools.evaluation.groups import LanguageFacts
    from emma.tools.evaluation.journal import LanguageScores
    from emma.tools.evaluation.results import Result
    from emma.tools.report.records import RunRecord

__all__ = ["figure_faults", "write_record"]

FOLDER = "record"
_STEP_KEYS = ("step", "consumed_tokens", "loss", "tokens_per_second_per_gpu")
_ENVIRONMENT_KEYS = ("commit", "versions", "written")


def write_record(record: RunRecord, step: int, staging: Path) -> None:
    """Writes `record/` up to a step: nothing that names machines, people or paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = staging / FOLDER
    folder.mkdir()
    rows = [{key: row.get(key) for key in _STEP_KEYS} for row in record.steps if row["step"] <= step]
    write_text(folder / "metrics.jsonl", "".join(orjson.dumps(row).decode() + "\n" for row in rows))
    environment = {key: record.environment[key] for key in _ENVIRONMENT_KEYS if key in record.environment}
    write_json(folder / "environment.json", environment)
    growth = None if record.growth is None else asdict(record.growth)
    write_json(folder / "vocabulary.json", {"growth": growth, "cost": record.token_cost})
    if record.mix:
        pq.write_table(pa.Table.from_pylist([asdict(part) for part in record.mix]), folder / "plan.parquet")


def _read_record(folder: Path) -> RunRecord:
    from emma.recipes.load import load_recipe
    from emma.tools.report.records import RunRecord, read_mix_parts

    record = folder / FOLDER
    gains = folder / "evaluation" / "gains.json"
    try:
        lines = (record / "metrics.jsonl").read_bytes().splitlines()
        steps = [orjson.loads(line) for line in lines]
    except (OSError, orjson.JSONDecodeError) as error:
        raise UserError(
            f"{record / 'metrics.jsonl'}: cannot be read ({error}); write the release again"
        ) from None
    growth, cost = _read_vocabulary(record / "vocabulary.json")
    return RunRecord(
        folder,
        load_recipe(folder / "recipe.yaml"),
        steps,
        environment=read_json(record / "environment.json"),
        mix=read_mix_parts(record / "plan.parquet"),
        gains=read_json(gains) if gains.is_file() else None,
        growth=growth,
        token_cost=cost,
    )


def _read_vocabulary(path: Path) -> tuple[Growth | None, str | None]:
    """How the vocabulary grew, and what its tokens cost."""
    from emma.recipes.vocabulary import Growth

    value = read_json(path)
    try:
        return Growth(**value["growth"]) if value["growth"] else None, value["cost"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); write the release again") from None


def figure_faults(folder: Path) -> list[str]:
    """Figures of a release that are not what its own records give.

    The gains are computed again from every document's likelihood under both models, the tables' rows from the same and
    from the benchmarks' samples, and the card from all of it: it has to be the same text, line by line.

    Args:
        folder: the release.

    Raises:
        UserError: a record is missing or damaged.
    """
    from emma.checkpoints_conversion.release.card import render_card
    from emma.checkpoints_conversion.release.facts import card_facts
    from emma.checkpoints_conversion.release.merged_card import RECORD, merged_card

    written = Manifest.read(folder)
    manifest = written.extra
    text = (folder / "README.md").read_text(encoding="utf-8")
    if (folder / RECORD).is_file():
        parts = (read_json(folder / name) for name in (RECORD, "parity.json"))
        return _card_differences(text, merged_card(folder, str(manifest["model"]), *parts))
    record = _read_record(folder)
    faults = []
    if record.recipe.sha256 != written.recipe_sha256:
        faults.append(f"{folder / 'recipe.yaml'}: is not the recipe that the release was made with")
    if record.gains is not None:
        found, differing = _gains_again(folder, record)
        faults += differing
        record = replace(record, gains=found.to_dict())
        faults += _table_faults(folder, found)
    step, title = int(manifest["step"]), str(manifest["model"])
    year = re.search(r"^  year = \{(\d{4})\}", text, re.MULTILINE)
    facts = card_facts(record, step, read_json(folder / "parity.json"), title)
    wanted = render_card(facts, year[1] if year else "")
    return faults + _card_differences(text, wanted)


def _card_differences(text: str, wanted: str) -> list[str]:
    """Lines in which a card differs from the one that its records give: the first three, and how many more."""
    import difflib

    changed = [
        line
        for line in difflib.ndiff(wanted.splitlines(), text.splitlines())
        if line.startswith(("- ", "+ ")) and line[2:].strip()
    ]
    faults = [
        f"README.md: “{line[2:].strip()}” is not what the released records give"
        if line.startswith("+")
        else f"README.md: lacks “{line[2:].strip()}”, which the released records give"
        for line in changed[:6]
    ]
    if len(changed) > 6:
        faults.append(f"README.md: {len(changed) - 6} more lines differ from what the released records give")
    return faults


def _scores(folder: Path, model: str, signature: str) -> dict[tuple[str, str], LanguageScores]:
    from emma.tools.evaluation.stored import journal_of

    journal = journal_of(folder / "evaluation", model)
    if not journal.path.is_file():
        raise UserError(
            f"{journal.path}: missing, so the gains cannot be computed again; write the release with the run's evaluation"
        )
    models = {orjson.loads(line)["model_sha256"] for line in journal.path.read_bytes().splitlines()}
    found: dict[tuple[str, str], LanguageScores] = {}
    for sha256 in sorted(models):
        found |= journal.read(signature, sha256)
    return found


def _gains_again(folder: Path, record: RunRecord) -> tuple[Gains, list[str]]:
    """The gains from all released scores of documents, and where the stored ones differ."""
    from emma.tools.evaluation.gains import compare, gains_of

    path = folder / "evaluation" / "gains.json"
    known = gains_of(record.gains or {}, path)
    scores = [_scores(folder, model, known.signature) for model in (known.base, known.trained)]
    listed = {(row.kind, row.language) for row in known.languages}
    if missing := sorted(listed - scores[0].keys() | listed - scores[1].keys()):
        kind, language = missing[0]
        raise UserError(
            f"{path}: holds {kind}/{language}, but no released score of a document in it ({len(missing)} such)"
        )
    again = compare(known.base, known.trained, scores[0], scores[1], _facts(folder, record, known))
    stored_rows, found_rows = ({_name(row): asdict(row) for row in _rows(gains)} for gains in (known, again))
    faults = [
        f"{path}: holds {name}, which the released scores do not give"
        for name in stored_rows.keys() - found_rows
    ]
    for name, row in found_rows.items():
        if name not in stored_rows:
            faults.append(f"{path}: leaves out {name}, which the released scores give")
            continue
        before = stored_rows[name]
        for key, value in row.items():
            if not _equal(before.get(key), value):
                faults.append(
                    f"{path}: {name}: {key} is {before.get(key)}, but the released scores give {value}"
                )
    return again, faults


def _facts(folder: Path, record: RunRecord, known: Gains) -> LanguageFacts:
    """Categories, and what was trained on, from the released plan; of kinds of text without categories there, and what
    the base has seen, as the gains have it."""
    from emma.tools.evaluation.groups import LanguageFacts, kind_of, language_facts, order_categories

    rows, settings = known.languages, record.recipe.data.mix
    planned = language_facts(folder / FOLDER, None, None, settings)
    kinds = {kind for kind, _ in planned.category}
    category = {
        (kind_of(row.kind), row.language): row.category
        for row in rows
        if row.category and kind_of(row.kind) not in kinds
    }
    trained = planned.trained
    if trained is None and any(row.trained_on is not None for row in rows):
        trained = frozenset((kind_of(row.kind), row.language) for row in rows if row.trained_on)
    seen = None
    if any(row.seen_by_base is not None for row in rows):
        seen = frozenset(code for row in rows if row.seen_by_base for code in row.language.split("-"))
    category |= planned.category
    return LanguageFacts(category, order_categories(category.values(), settings), trained, seen)


def _rows(gains: Gains) -> list[Any]:
    return [*gains.languages, *gains.groups, *gains.pooled]


def _name(row: Any) -> str:
    language = getattr(row, "language", None)
    # Pooled groups also have a dimension: `high` is a category, and may be a group of averages too.
    return f"{row.kind}/{language or ' '.join(filter(None, ('group', getattr(row, 'dimension', ''), row.group)))}"


def _equal(stored: Any, found: Any) -> bool:
    if isinstance(stored, float) and isinstance(found, float):
        return math.isclose(stored, found, rel_tol=1e-9, abs_tol=1e-12)
    return bool(stored == found)


def _table_faults(folder: Path, gains: Gains) -> list[str]:
    """Rows of results.csv that differ from the released documents' scores, or from the benchmarks' samples."""
    import csv

    from emma.tools.evaluation.results import BENCHMARK, heldout_results

    path = folder / "evaluation" / "results.csv"
    if not path.is_file():
        return []
    wanted = {
        (row.model, row.benchmark, row.language, row.metric): row
        for model in (gains.base, gains.trained)
        for row in heldout_results(model, _scores(folder, model, gains.signature).values())
    }
    faults, met = [], set()
    with path.open(encoding="utf-8", newline="") as handle:
        for number, cells in enumerate(csv.DictReader(handle), start=2):
            key = (cells["model"], cells["benchmark"], cells["language"], cells["metric"])
            place = f"{path}:{number}: {'/'.join(key)}"
            if key in met:
                faults.append(f"{place} is there twice")
            met.add(key)
            found = wanted.get(key)
            heldout = key[1].startswith(f"{BENCHMARK}/")
            if found is None and not heldout and cells["model"] != gains.base:
                found = _benchmark_again(folder / "evaluation", *key)
            if found is None:
                # (Of the base's benchmarks only the table is released.)
                if heldout or cells["model"] != gains.base:
                    faults.append(f"{place} is not among the released outputs")
                continue
            for name in ("value", "n", "error"):
                value = getattr(found, name)
                if not _close(cells[name], value):
                    shown = f"{value:.6g}" if value is not None else "none"
                    faults.append(f"{place}: {name} is {cells[name]}, but the released outputs give {shown}")
    faults += [
        f"{path}: lacks {'/'.join(key)}, which the released outputs give"
        for key in sorted(wanted.keys() - met)
    ]
    return faults


def _benchmark_again(
    evaluation: Path, model: str, benchmark: str, language: str, metric: str
) -> Result | None:
    """A score of a benchmark, from its items: their mean, or what their statistics give together; None if it was not
    released."""
    import numpy as np

    from emma.tools.evaluation.benchmarks.choices import f1_of
    from emma.tools.evaluation.benchmarks.records import read_samples, read_unit, unit_file
    from emma.tools.evaluation.comparison import value_of

    path = unit_file(evaluation, model, benchmark, language)
    unit = read_unit(path)
    stored = next((row for row in unit.results(model) if row.metric == metric), None) if unit else None
    if stored is None:
        return None
    items = [item for sample in read_samples(path) if (item := sample["scores"].get(metric)) is not None]
    if not items:
        return stored
    if all(isinstance(item, int | float) for item in items):
        return replace(stored, value=sum(items) / len(items))
    if metric == "macro_f1":
        return replace(stored, value=f1_of(*zip(*items, strict=True)).value)
    if (score := value_of(metric)) is not None:
        return replace(stored, value=score(np.sum(items, axis=0, dtype=np.float64)))
    return stored


def _close(cell: str, value: float | None) -> bool:
    if value is None or not cell:
        return value is None and not cell
    return math.isclose(float(cell), value, rel_tol=1e-6, abs_tol=1e-9)
