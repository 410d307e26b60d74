"""Limits of filter rules from each language's own text, and its most frequent words.

A phase measures documents of each chunk; another takes each language's measurements together. A limit is the median and so
many robust standard deviations (1.4826 × the median absolute deviation, Rousseeuw and Croux 1993), within bounds.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from emma.base.files import atomic_write, read_json, write_json
from emma.recipes.corpus_tables import table
from emma.recipes.schema.corpus import Corpus, OwnLimits, Thresholds
from emma.tools.corpus.identification import identifier
from emma.tools.corpus.layout import Part, part_path, read_row_groups
from emma.tools.corpus.rules import text_rules
from emma.tools.corpus.shingles import word_shingles
from emma.tools.corpus.thresholds import thresholds_for
from emma.tools.languages.scripts import MIN_SHARE, SPACELESS, script_of

__all__ = ["OwnLimit", "limits_of_languages", "measure_parts", "own_limits", "table_of"]

_COMMON = 100
"""Most frequent words of a language."""
_WORDS = 400
"""Words of a document that count."""
_A_PART = 2000
"""Documents of a part that are measured."""
_MOST_PAGES = 0.25
"""Share of documents that may have a line that is no header, menu or notice."""

_KEYS = {
    "few_letters": ("min_letter_share",),
    "many_digits": ("max_digit_share",),
    "many_symbols": ("max_symbol_share",),
    "word_length": ("min_mean_word_length", "max_mean_word_length"),
    "repeated_lines": ("max_repeated_line_share",),
    "repeated_ngrams": ("max_repeated_ngram_share",),
}
"""Rules whose measurements set limits, and the limits' keys."""

_MEASURED = Thresholds(
    min_letter_share=0,
    max_digit_share=1,
    max_symbol_share=1,
    min_mean_word_length=0,
    max_repeated_line_share=1,
    max_repeated_ngram_share=1,
)

_OWN_SCRIPT = Thresholds(min_script_share=MIN_SHARE)


@dataclass(frozen=True)
class OwnLimit:
    """Limits of a language by key, and hashes of its most frequent words, ascending (uint64)."""

    limits: dict[str, float]
    common: NDArray[np.uint64]


def measure_parts(
    corpus: Corpus, root: str, folder: str, chunk: int, parts: Sequence[Part]
) -> list[list[Any]]:
    """Measures documents of a chunk's parts, evenly over their rows; not those in another script, or in what `identification`
    takes for another language.

    Returns:
        Kind, language, and the file of each part that was measured.
    """
    assert corpus.own_limits is not None
    judge = identifier(corpus.identification)
    found: list[list[Any]] = []
    for number, part in enumerate(parts):
        if part.kind not in corpus.own_limits.kinds:
            continue
        texts: list[str] = []
        for group in read_row_groups(part_path(Path(root), "integrated", part), ["text"]):
            most = min(_A_PART, corpus.own_limits.documents)
            rows = np.unique(np.linspace(0, group.num_rows - 1, min(most, group.num_rows)).astype(np.int64))
            texts += group.column("text").take(pa.array(rows)).to_pylist()
        texts = [texts[row] for row in np.linspace(0, len(texts) - 1, min(_A_PART, len(texts))).astype(int)]
        name = f"measured-{chunk:06d}-{number:04d}.npz"
        script = script_of(part.language)
        texts = [
            text
            for text, foreign in zip(texts, _foreign(texts, script).tolist(), strict=True)
            if not foreign and (judge is None or judge.mismatch(text, part.language) is None)
        ]
        if not texts:
            continue
        measured = {f.rule: f.values.astype(np.float64) for f in text_rules(texts, _MEASURED, script)}
        words, ends = _words(texts, script)
        content, content_ends = _words(_content(texts, script), script)
        with atomic_write(Path(folder) / name) as handle:
            arrays: dict[str, Any] = {**measured, "words": words, "ends": ends}
            arrays |= {"content": content, "content_ends": content_ends}
            np.savez(handle, **arrays)
        found.append([part.kind, part.language, name])
    return found


def _foreign(texts: Sequence[str], script: str) -> NDArray[np.bool_]:
    """Which of them the rule `wrong_script` would remove."""
    found = (finding.removed for finding in text_rules(texts, _OWN_SCRIPT, script))
    return functools.reduce(np.logical_or, found, np.zeros(len(texts), np.bool_))


def _content(texts: Sequence[str], script: str) -> list[str]:
    """Texts without lines in another script, and with those that more than `_MOST_PAGES` of them have in the first alone:
    words of headers, menus and notices, which each page of a site has, are not what a language's text is made of."""
    lines = [list(dict.fromkeys(text.split("\n"))) for text in texts]
    pages = Counter(line for each in lines for line in each)
    different = list(pages)
    foreign = dict(zip(different, _foreign(different, script).tolist(), strict=True))
    left = {line: count if count <= _MOST_PAGES * len(texts) else 1 for line, count in pages.items()}
    kept = []
    for each in lines:
        mine = [line for line in each if left[line] > 0 and not foreign[line]]
        for line in mine:
            left[line] -= 1
        kept.append("\n".join(mine))
    return kept


def _words(texts: Sequence[str], script: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the documents' first words, and where each document's end; none in scripts without spaces."""
    if script in SPACELESS or not texts:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    words = word_shingles(texts, 1)
    pieces = [words.of(row)[:_WORDS] for row in range(len(words))]
    return np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces])


def limits_of_languages(
    corpus: Corpus, folder: str, measured: Sequence[Sequence[str]], path: str
) -> list[dict[str, Any]]:
    """Writes each language's limits and words to `path`; returns the rows of the report.

    Args:
        corpus: settings.
        folder: of the measurements.
        measured: kind, language and file of each part.
        path: of the limits.
    """
    settings = corpus.own_limits
    assert settings is not None
    files: dict[tuple[str, str], list[Path]] = {}
    for kind, language, name in measured:
        files.setdefault((kind, language), []).append(Path(folder) / name)
    limits: dict[str, Any] = {}
    report = []
    for (kind, language), paths in sorted(files.items()):
        found, rows = _of_language(corpus, settings, kind, language, paths)
        report += rows
        if found is not None:
            limits[f"{kind}/{language}"] = {"limits": found.limits, "common": found.common.tolist()}
    write_json(path, limits)
    return report


def _of_language(
    corpus: Corpus, settings: OwnLimits, kind: str, language: str, paths: Sequence[Path]
) -> tuple[OwnLimit | None, list[dict[str, Any]]]:
    values: dict[str, list[NDArray[np.float64]]] = {}
    words: list[NDArray[np.uint64]] = []
    content: list[NDArray[np.uint64]] = []
    # As many of each part, so that all of the text has its say.
    most = max(1, settings.documents // len(paths))
    for path in paths[: settings.documents]:
        with np.load(path) as arrays:
            for rule in _KEYS.keys() & set(arrays.files):
                values.setdefault(rule, []).append(arrays[rule][:most])
            if len(arrays["ends"]):
                words += np.split(arrays["words"], arrays["ends"][:-1])[:most]
                content += np.split(arrays["content"], arrays["content_ends"][:-1])[:most]
    documents = sum(map(len, next(iter(values.values()), [])))
    if documents < settings.min_documents:
        return None, []
    tables = thresholds_for(corpus, kind, language).model_dump()
    measured = {
        key: (np.concatenate(values[rule]), tables[key])
        for rule, keys in _KEYS.items()
        if rule in values
        for key in keys
        if tables[key] is not None
    }
    common = _common(content)
    if len(common) and tables["min_common_share"] is not None:
        measured["min_common_share"] = (
            np.array([np.isin(each, common).mean() for each in words if len(each)]),
            tables["min_common_share"],
        )
    limits, rows = {}, []
    for key, (sample, before) in measured.items():
        median = float(np.median(sample))
        spread = 1.4826 * float(np.median(np.abs(sample - median)))
        own = median + settings.spread * spread * (1 if key.startswith("max") else -1)
        low, high = table("rules/own_limits")["bounds"][key]
        limits[key] = float(f"{min(max(own, low), high):.4g}")
        over = sample > limits[key] if key.startswith("max") else sample < limits[key]
        rows.append(
            {
                "kind": kind,
                "language": language,
                "limit": key,
                "documents": len(sample),
                "median": median,
                "deviation": spread,
                "own": own,
                "table": float(before),
                "used": limits[key],
                "beyond": float(over.mean()),
            }
        )
    return OwnLimit(limits, common), rows


def _common(words: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The words that most documents have, ascending: a list that repeats a word a thousand times counts once."""
    if not words:
        return np.zeros(0, np.uint64)
    every, counts = np.unique(np.concatenate([np.unique(each) for each in words]), return_counts=True)
    order = np.lexsort((every, -counts))[:_COMMON]
    return np.sort(every[order])


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The report: by kind, language and limit, how many documents were measured, what they gave, the table's limit, the one
    that is used, and the share of the documents beyond it."""
    texts, numbers = ("kind", "language", "limit"), ("median", "deviation", "own", "table", "used", "beyond")
    schema = pa.schema(
        [
            *((name, pa.string()) for name in texts),
            ("documents", pa.int64()),
            *((n, pa.float64()) for n in numbers),
        ]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


@functools.lru_cache(maxsize=1)
def own_limits(path: Path) -> dict[tuple[str, str], OwnLimit]:
    """Limits by kind and language."""
    found = {}
    for key, value in read_json(path).items():
        kind, _, language = key.partition("/")
        found[kind, language] = OwnLimit(value["limits"], np.array(value["common"], np.uint64))
    return found
