"""The report of what tokenizers cost each language: tables, JSON, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import atomic_write, write_json, write_text
from emma.base.manifest import FileRecord, Manifest
from emma.base.staging import staged_folder
from emma.recipes.schema import Recipe
from emma.recipes.vocabulary import report_folder
from emma.tools.arithmetic.flops import flops_per_token
from emma.tools.charts.svg import marked_bars
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.bpe import open_tokenizer
from emma.tools.tokenizer.measures import Cost, Pairs, Summary, measure, summary
from emma.tools.tokenizer.words import ENGLISH, aligned_texts, by_language, documents

__all__ = ["Report", "make_report", "summary_lines", "write_report", "write_tables"]

_CHARACTERS = 200_000
"""Most text of a language, in characters: figures don't change with more."""
_SHOWN = 40

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #444; }
table { border-collapse: collapse; } td, th { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } .scroll { overflow-x: auto; }
"""

_COLUMNS = {
    "premium": "premium",
    "low": "from",
    "high": "to",
    "floor": "floor",
    "cost": "cost",
    "pairs": "pairs",
    "bytes_per_token": "bytes a token",
    "context": "context",
    "fertility": "fertility",
    "retention": "retention",
    "partial": "partial",
    "one_byte": "one byte",
    "documents": "documents",
    "not_nfc": "not NFC",
}

_NOTES = (
    "premium: tokens of sentences by the tokens of their English side, with a 95 % interval below 100 sentences; floor: "
    "pre-tokens by English tokens, which no vocabulary under the same pattern goes below; cost: FLOPs for a sentence by "
    "the first tokenizer's for its English side; context: bytes that a context holds, by those of English; fertility: "
    "tokens a word (empty where no spaces separate words); retention: share of frequent words that are one token; "
    "partial: share of tokens that are no whole characters; not NFC: documents in another form, counted in NFC."
)


@dataclass(frozen=True)
class Report:
    """Costs of tokenizers on one corpus.

    Attributes:
        names: tokenizers, the run's first.
        files: the same.
        costs, pairs: by tokenizer and language.
        summaries: of premiums; None without pairs.
        split: which documents were read.
        pair_set: source of the pairs; "" if there are none.
        other_sets: other sources with English pairs, whose premiums would have another denominator.
    """

    names: list[str]
    files: list[TokenizerFile]
    costs: list[dict[str, Cost]]
    pairs: list[dict[str, Pairs]]
    summaries: list[Summary | None]
    split: str
    pair_set: str
    other_sets: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON of the report."""
        return {
            "split": self.split,
            "pair_set": self.pair_set,
            "other_sets": self.other_sets,
            "tokenizers": [
                {
                    "name": name,
                    "sha256": file.sha256,
                    "tokens": max(file.ids.values()) + 1,
                    "premiums": None if found is None else asdict(found),
                    "not_nfc": sorted(language for language, cost in costs.items() if cost.not_nfc),
                    "languages": [asdict(cost) for cost in costs.values()],
                }
                for name, file, found, costs in zip(
                    self.names, self.files, self.summaries, self.costs, strict=True
                )
            ],
        }


def make_report(
    recipe: Recipe,
    against: Sequence[Path] = (),
    *,
    split: str = "validation",
    pair_set: str | None = None,
    characters: int = _CHARACTERS,
) -> Report:
    """Measures the run's tokenizer, and others, on the run's corpus.

    Args:
        recipe: the run.
        against: folders of other tokenizers.
        split: `validation`, or `all` for training documents too.
        pair_set: source of the pairs; by default the one with most languages.
        characters: most text of a language.

    Raises:
        UserError: the corpus is not built, there is no such set, or a tokenizer cannot be read.
    """
    corpus = Path(recipe.paths.corpus)
    files = [TokenizerFile(recipe.model.tokenizer, recipe.model.vocab_size), *map(open_tokenizer, against)]
    texts = _texts(corpus, split, characters)
    chosen, aligned, others = _aligned(corpus, split, pair_set)
    names = [str(Path(file.settings.path)) for file in files]
    costs, counts = [], []
    first = None
    for place, file in enumerate(files):
        rows = recipe.model.vocab_size if place == 0 else max(file.ids.values()) + 1
        flops = flops_per_token(
            recipe.model.model_copy(update={"vocab_size": rows}), recipe.batch.sequence_length
        )
        own, pairs = measure(file, texts, aligned, flops=flops, first=first)
        first = first or (flops, pairs)
        costs.append(own)
        counts.append(pairs)
    summaries = [summary(own, pairs) for own, pairs in zip(costs, counts, strict=True)]
    return Report(names, files, costs, counts, summaries, split, chosen, others)


def _texts(corpus: Path, split: str, characters: int) -> dict[str, list[str]]:
    """Monolingual text by language."""
    found: dict[str, list[str]] = {}
    for language, parts in by_language(corpus).items():
        size = 0
        texts = found.setdefault(language, [])
        for part, column in parts:
            if part.kind == "parallel":
                continue
            for name in ("validation", "train")[: 1 + (split == "all")]:
                for text in documents(corpus, part, column, name):
                    if size >= characters:
                        break
                    texts.append(text)
                    size += len(text)
    return found


def _aligned(
    corpus: Path, split: str, wanted: str | None
) -> tuple[str, dict[str, list[tuple[str, str]]], list[str]]:
    """Pairs with English of one source, and the names of the other sources."""
    sets: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for language, source, text, english in aligned_texts(corpus, split):
        sets.setdefault(source, {}).setdefault(language, []).append((text, english))
    if wanted is not None and wanted not in sets:
        raise UserError(
            f"{corpus}: no {split} pairs with English of the source {wanted!r}; it has {', '.join(sorted(sets)) or 'none'}"
        )
    if not sets:
        return "", {}, []
    chosen = wanted or min(
        sets, key=lambda name: (-len(sets[name]), -sum(map(len, sets[name].values())), name)
    )
    found = dict(sorted(sets[chosen].items()))
    sentences = dict.fromkeys(other for pairs in found.values() for _, other in pairs)
    found[ENGLISH] = [(text, text) for text in sentences]
    return chosen, found, sorted(set(sets) - {chosen})


def write_report(report: Report, recipe: Recipe, overwrite: bool = True) -> Path:
    """Writes `report.json`, `report.parquet` and `index.html` beside the corpus's statistics; returns the folder."""
    folder = report_folder(recipe.paths.corpus, report.files[0].sha256)
    folder.parent.mkdir(parents=True, exist_ok=True)
    manifest = Manifest("tokenizer.report", recipe.sha256)
    with staged_folder(folder, overwrite=overwrite) as staging:
        write_json(staging / "report.json", report.to_dict())
        write_tables(report, staging, "index.html")
        manifest.inputs = [FileRecord.of(file.path) for file in report.files]
        manifest.outputs = [FileRecord.of(path, staging) for path in sorted(staging.iterdir())]
        manifest.write(staging)
    return folder


def write_tables(report: Report, folder: Path, page: str) -> None:
    """Writes `report.parquet`, a row per tokenizer and language, and the page."""
    rows = [
        {"tokenizer": name, "sha256": file.sha256, **asdict(cost)}
        for name, file, costs in zip(report.names, report.files, report.costs, strict=True)
        for cost in costs.values()
    ]
    with atomic_write(folder / "report.parquet") as handle:
        pq.write_table(pa.Table.from_pylist(rows), handle, compression="zstd")
    write_text(folder / page, _page(report))


def summary_lines(report: Report) -> list[str]:
    """The summary for a terminal, one line a tokenizer, and what a reader must know."""
    lines = []
    for name, found, costs in zip(report.names, report.summaries, report.costs, strict=True):
        if found is None:
            lines.append(
                f"{name}: no pairs with English in this corpus, so no premiums; bytes a token are in the table"
            )
        else:
            lines.append(
                f"{name}: premium over English in {found.languages} languages: median {found.median:.2f}, mean "
                f"{found.mean:.2f}, 90th percentile {found.p90:.2f}, largest {found.maximum:.2f}, Gini {found.gini:.3f}"
            )
        odd = sorted(language for language, cost in costs.items() if cost.not_nfc)
        if odd and name == report.names[0]:
            lines.append(
                f"text that is not in NFC (counted in it): {', '.join(odd[:12])}{', …' if len(odd) > 12 else ''}"
            )
    if report.other_sets:
        lines.append(
            f"pairs of {report.pair_set}; others have another denominator (--set): {', '.join(report.other_sets)}"
        )
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _page(report: Report) -> str:
    sections = []
    for name, costs in zip(report.names, report.costs, strict=True):
        ordered = sorted(
            costs.values(), key=lambda cost: (-(cost.premium or 0.0), cost.bytes_per_token or 0.0)
        )
        header = "".join(f"<th>{escape(label)}</th>" for label in ("language", *_COLUMNS.values()))
        rows = "".join(
            f"<tr><td>{escape(cost.language)}</td>"
            + "".join(f"<td>{_cell(getattr(cost, key))}</td>" for key in _COLUMNS)
            + "</tr>"
            for cost in ordered
        )
        worst = [cost for cost in ordered if cost.premium is not None][:_SHOWN]
        chart = _bars(worst)
        sections.append(
            f"<h2>{escape(name)}</h2>{chart}<div class=scroll tabindex=0 role=region aria-label='{escape(name)}, every "
            f"language'><table><thead><tr>{header}</tr></thead><tbody>{rows}"
            "</tbody></table></div>"
        )
    lines = "".join(f"<p>{escape(line)}</p>" for line in summary_lines(report))
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>What a tokenizer costs each language</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>What a tokenizer costs each language</h1>{lines}<p>{escape(_NOTES)}</p>{''.join(sections)}</main></body></html>"
    )


def _bars(worst: Sequence[Cost]) -> str:
    if not worst:
        return ""
    rows = [(cost.language, cost.premium or 0.0, cost.floor) for cost in worst]
    return "<p>Premium, and the floor as a line:</p>" + marked_bars(rows, "premium and floor by language")
