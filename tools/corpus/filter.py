"""Stage `filtered`: the integrated parts without the documents that a rule removes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emma.recipes.corpus_tables import rules_sha256
from emma.recipes.schema.corpus import Corpus
from emma.tools.corpus.accounts import KEPT, Accounts, Samples, measures_of
from emma.tools.corpus.contamination import BenchmarkIndex, benchmark_files, build_index
from emma.tools.corpus.identification import Identifier, description, identifier
from emma.tools.corpus.layout import Part, PartWriter, part_path, read_row_groups, schema_of, text_columns
from emma.tools.corpus.own_limits import OwnLimit, limits_of_languages, measure_parts, own_limits, table_of
from emma.tools.corpus.pair_rules import pair_rules
from emma.tools.corpus.rules import Finding, text_rules, word_salad
from emma.tools.corpus.runner import Task
from emma.tools.corpus.stage import Build, Phase, Results, Stage, chunks_of_parts, close_with, settings_of
from emma.tools.corpus.statistics import write_table
from emma.tools.corpus.thresholds import thresholds_for
from emma.tools.languages.scripts import script_of

__all__ = ["batches", "filter_corpus", "findings"]

_BATCH_BYTES = 2 << 20
"""Text filtered at once; its code-point arrays roughly fit into the processor's cache."""

_CHUNK_MEGABYTES = 16
"""Part files per task, in megabytes."""


def filter_corpus(build: Build, previous: str) -> Stage:
    """The stage, after the one with the fingerprint `previous`.

    Raises:
        UserError: the recipe names a model or benchmarks that do not exist.
    """
    corpus = build.corpus
    identifier(corpus.identification)
    limits = corpus.own_limits
    settings = {
        "corpus": settings_of(
            corpus,
            {"filters", "language_filters", "identification", "samples", "decontamination", "own_limits"},
        ),
        "benchmarks": benchmark_files(corpus.decontamination) if corpus.decontamination else None,
    }
    if corpus.identification.fallback is not None:
        settings["identifier"] = description(corpus.identification)
    if rules := _rules(corpus):
        settings["rules"] = {name: rules_sha256(name) for name in rules}

    def plan_index(stage: Stage, _: Results) -> list[Task]:
        if corpus.decontamination is None:
            return []
        return [Task("benchmarks", build_index, (corpus.decontamination, str(stage.work / "benchmarks.npy")))]

    def chunks(stage: Stage) -> list[list[Part]]:
        return chunks_of_parts(build.root, "integrated", stage.previous_parts(), _CHUNK_MEGABYTES)

    def plan_measure(stage: Stage, _: Results) -> list[Task]:
        return [
            Task(
                f"chunk-{number:06d}",
                measure_parts,
                (corpus, str(build.root), str(stage.work), number, chunk),
            )
            for number, chunk in enumerate(chunks(stage))
        ]

    def plan_limits(stage: Stage, results: Results) -> list[Task]:
        measured = [part for result in results["measure"] for part in result]
        return [Task("limits", limits_of_languages, (corpus, str(stage.work), measured, _limits_path(stage)))]

    def plan_filter(stage: Stage, _: Results) -> list[Task]:
        index = str(stage.work / "benchmarks.npy")
        own = _limits_path(stage) if limits is not None else None
        return [
            Task(f"chunk-{number:06d}", filter_parts, (corpus, str(build.root), chunk, index, own))
            for number, chunk in enumerate(chunks(stage))
        ]

    def close(stage: Stage, results: Results) -> None:
        if limits is not None:
            write_table(table_of(results["limits"][0]), build.root / "statistics" / "limits")
        extra = {}
        if corpus.identification.backend != "none":
            extra["identification"] = description(corpus.identification)
        close_with("filter", extra)(stage, results)

    own = (
        [Phase("measure", plan_measure), Phase("limits", plan_limits, single=True)]
        if limits is not None
        else []
    )
    phases = [Phase("index", plan_index, single=True), *own, Phase("filter", plan_filter)]
    return Stage(build, "filtered", settings, previous, phases, close)


def _limits_path(stage: Stage) -> str:
    return str(stage.work / "own-limits.json")


def _rules(corpus: Corpus) -> list[str]:
    """Tables of rules that the recipe turns on."""
    every = (*corpus.filters.values(), *corpus.language_filters.values())
    spam = ["spam"] if any(each.max_spam_share is not None for each in every) else []
    return [*spam, *(["own_limits"] if corpus.own_limits is not None else [])]


def filter_parts(
    corpus: Corpus, root: str, parts: Sequence[Part], index_path: str, limits_path: str | None = None
) -> dict[str, Any]:
    """Filters parts: `parts` (records), `rows` (read), `accounts`, `samples`."""
    accounts, samples = Accounts(), Samples(corpus.samples)
    judge = identifier(corpus.identification)
    settings = corpus.decontamination
    index = BenchmarkIndex.load(settings, Path(index_path)) if settings else None
    limits = own_limits(Path(limits_path)) if limits_path is not None else {}
    records, rows = [], 0
    for part in parts:
        own = limits.get((part.kind, part.language))
        path = part_path(Path(root), "filtered", part)
        with PartWriter(path, schema_of(part.kind), text_columns(part.kind)) as writer:
            for table in read_row_groups(part_path(Path(root), "integrated", part)):
                for batch in batches(table, text_columns(part.kind)):
                    rows += batch.num_rows
                    writer.write(_filter_batch(corpus, part, batch, judge, index, own, accounts, samples))
        records.append(writer.record(Path(root) / "filtered"))
    return {"parts": records, "rows": rows, "accounts": accounts.to_json(), "samples": samples.rows}


def batches(table: pa.Table, texts: Sequence[str]) -> Iterator[pa.Table]:
    """Slices of a table, each of about `_BATCH_BYTES` of text."""
    import pyarrow.compute as pc

    sizes = sum(pc.binary_length(table.column(name)).to_numpy().astype(np.int64) for name in texts)
    ends = np.cumsum(sizes)
    start = 0
    while start < table.num_rows:
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _BATCH_BYTES, side="right")))
        yield table.slice(start, stop - start)
        start = stop


def findings(
    corpus: Corpus,
    kind: str,
    language: str,
    texts: Sequence[Sequence[str]],
    judge: Identifier | None = None,
    index: BenchmarkIndex | None = None,
    own: OwnLimit | None = None,
) -> Iterator[Finding]:
    """Findings of all rules on documents of one kind and language; `texts` has one list per text column."""
    sides = language.split("-") if kind == "parallel" else [language]
    limits = [
        thresholds_for(
            corpus, kind, language, side if kind == "parallel" else None, own.limits if own else None
        )
        for side in sides
    ]
    for side, values, limit in zip(sides, texts, limits, strict=True):
        yield from text_rules(values, limit, "" if kind == "code" else script_of(side))
    if kind == "parallel":
        yield from pair_rules(texts[0], texts[1], thresholds_for(corpus, kind, language))
    if judge is not None and kind != "code":
        for side, values in zip(sides, texts, strict=True):
            found = [judge.mismatch(text, side) is not None for text in values]
            removed = np.array(found, np.bool_)
            yield Finding(
                "language_mismatch", removed, removed.astype(np.int64), "the model agrees with the label"
            )
    if own is not None:
        yield from word_salad(texts[0], limits[0], script_of(language), own.common)
    if index is not None and corpus.decontamination is not None:
        for side, values in zip(sides, texts, strict=True):
            overlaps = index.overlaps(values, script_of(side))
            removed = (overlaps > 0) & (corpus.decontamination.action == "remove")
            yield Finding("contaminated", removed, overlaps, "no n-gram of a benchmark")


def _filter_batch(
    corpus: Corpus,
    part: Part,
    batch: pa.Table,
    judge: Identifier | None,
    index: BenchmarkIndex | None,
    own: OwnLimit | None,
    accounts: Accounts,
    samples: Samples,
) -> pa.Table:
    names = text_columns(part.kind)
    columns = [batch.column(name).to_pylist() for name in names]
    reason: list[Finding | None] = [None] * batch.num_rows
    keep: NDArray[np.bool_] = np.ones(batch.num_rows, np.bool_)
    for finding in findings(corpus, part.kind, part.language, columns, judge, index, own):
        for row in np.flatnonzero(finding.removed & keep):
            reason[row] = finding
        keep &= ~finding.removed
    sources = batch.column("source").to_pylist()
    identifiers = batch.column("id")
    for row, (source, *texts) in enumerate(zip(sources, *columns, strict=True)):
        found = reason[row]
        accounts.add(part.kind, part.language, source, found.rule if found else KEPT, measures_of(*texts))
        if found:
            samples.add(
                part.kind,
                part.language,
                found.rule,
                id=identifiers[row].as_py(),
                detail=f"{found.values[row]:.4g}; limit: {found.limit}",
                text=texts[0],
                target=texts[1] if len(texts) > 1 else "",
            )
    return batch if keep.all() else batch.filter(pa.array(keep))
