"""Sources of a mix: a language or pair of one component, with its size and resource category."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from emma.base.errors import UserError
from emma.recipes.schema.data import Category, Data, Mix, MixComponent
from emma.tools.mix.fertility import Fertility, ScriptSize, script_table, shipped_fertility
from emma.tools.pack.store import Component

__all__ = ["Source", "category_of", "sources_of_statistics", "sources_of_store"]

WHOLE_COMPONENT = "*"
"""`language` of the only source of a component that has just a declared size."""


@dataclass(frozen=True)
class Source:
    """What one language or pair of a component holds.

    `documents` and `tokens` count what training may see, `validation_documents`, `validation_tokens` and
    `validation_bytes` (UTF-8 text) what validation may; `words` are whitespace-separated words (both sides
    of a pair), `category` is None where the component has no categories.
    """

    component: str
    language: str
    category: str | None
    words: int
    documents: int
    tokens: int
    validation_documents: int = 0
    validation_tokens: int = 0
    validation_bytes: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.component, self.language


def _scripts(language: str) -> list[str]:
    return [code.partition("_")[2] or "*" for code in language.split("-")]


def _size(script: str) -> ScriptSize:
    table = script_table()
    return table.get(script, table["*"])


def estimated_words(language: str, text_bytes: int) -> int:
    """Estimated words in a text of this many bytes, from the bytes per word of the language's script (of a
    pair's two scripts)."""
    scripts = _scripts(language)
    per_word = sum(_size(script).bytes_per_word + 1 for script in scripts) / len(scripts)
    return round(text_bytes / per_word)


def category_of(categories: Mapping[str, Category], words: int) -> str | None:
    """Category with the largest threshold that `words` reaches; None if it reaches none."""
    reached = [name for name, category in categories.items() if words >= category.at_least]
    return max(reached, key=lambda name: categories[name].at_least, default=None)


def _takes_part(component: MixComponent, language: str) -> bool:
    if any(fnmatchcase(language, pattern) for pattern in component.exclude):
        return False
    return any(fnmatchcase(language, pattern) for pattern in component.include)


def sources_of_store(
    mix: Mix, components: Sequence[Component], words: Mapping[str, Mapping[str, int]] | None = None
) -> list[Source]:
    """Sources of a mix in a token store, by component and language.

    Args:
        mix: the recipe's `data.mix`.
        components: the store's components that the mix names.
        words: published word counts by kind of statistics (`language` or `pair`) that decide the categories
            instead of an estimate from the text's bytes.

    Sources below the smallest category, and those that the component's patterns exclude, are left out.
    """
    known = {language: count for counts in (words or {}).values() for language, count in counts.items()}
    sources = []
    for component in components:
        settings = mix.components[component.name]
        table = component.sources.to_pylist()
        by_language: dict[str, dict[str, tuple[int, int, int]]] = {}
        for row in table:
            counts = (row["documents"], row["tokens"], row["bytes"])
            by_language.setdefault(row["language"], {})[row["split"]] = counts
        for language, splits in sorted(by_language.items()):
            if not _takes_part(settings, language):
                continue
            train, validation = splits.get("train", (0, 0, 0)), splits.get("validation", (0, 0, 0))
            size = known.get(language, estimated_words(language, train[2]))
            category = category_of(settings.categories, size)
            if settings.categories and category is None:
                continue
            sources.append(Source(component.name, language, category, size, *train[:2], *validation))
    return sources


def read_statistics(path: Path) -> tuple[str, dict[str, dict[str, int]]]:
    """Published counts: a csv with `lang_code, num_texts, num_tokens` or with `lang_pair, src_num_texts,
    src_num_tokens, tgt_num_tokens`, where tokens are whitespace-separated words.

    Returns:
        `language` or `pair`, and by language or pair `texts`, `words` (and for pairs `src_words`,
        `tgt_words`).

    Raises:
        UserError: missing file or column, or a count that is not a number; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    columns = set(rows[0]) if rows else set()
    if "lang_code" in columns:
        kind, key, numbers = "language", "lang_code", {"texts": "num_texts", "words": "num_tokens"}
    elif "lang_pair" in columns:
        kind, key = "pair", "lang_pair"
        numbers = {"texts": "src_num_texts", "src_words": "src_num_tokens", "tgt_words": "tgt_num_tokens"}
    else:
        raise UserError(
            f"{path}: not statistics of a corpus; expected a column lang_code or lang_pair, found "
            f"{', '.join(sorted(columns)) or 'nothing'}"
        )
    if missing := [name for name in numbers.values() if name not in columns]:
        raise UserError(f"{path}: lacks the column {missing[0]}")
    counts: dict[str, dict[str, int]] = {}
    for line, row in enumerate(rows, start=2):
        try:
            values = {name: int(row[column]) for name, column in numbers.items()}
        except (TypeError, ValueError):
            raise UserError(f"{path}:{line}: {dict(row)}: counts must be whole numbers") from None
        if row[key] in counts:
            raise UserError(f"{path}:{line}: {row[key]} is listed twice")
        if kind == "pair":
            values["words"] = values["src_words"] + values["tgt_words"]
        counts[row[key]] = values
    return kind, counts


def sources_of_statistics(
    data: Data, files: Sequence[Path], fertility: Fertility | None = None, foreign: str | None = None
) -> list[Source]:
    """Sources of a mix as published statistics describe them, before anything is packed.

    Counts of languages describe the mix's components of monolingual text, counts of pairs those of kind
    `bilingual`; a component that no file describes needs `declared_tokens`. Words become tokens by their
    language's or script's fertility: the recipe's, else `fertility`'s.

    Args:
        data: the recipe.
        files: published statistics.
        fertility: of the tokenizer in whose tokens the budget counts; by default the shipped one.
        foreign: why `fertility` is another tokenizer's, if it is; then only the recipe's values are taken.

    Raises:
        UserError: a component is described twice or not at all; a fertility is needed that is another tokenizer's.
    """
    fertility = fertility or shipped_fertility()
    foreign = foreign or fertility.foreign(data.mix.counted_in)
    statistics: dict[str, dict[str, dict[str, int]]] = {}
    for path in files:
        kind, counts = read_statistics(path)
        if kind in statistics:
            raise UserError(f"{path}: a second file with counts of {kind}s; give one of each kind")
        statistics[kind] = counts
    described = _described_components(data, statistics)
    sources = []
    for name, component in data.mix.components.items():
        if name not in described:
            if component.declared_tokens is None:
                raise UserError(
                    f"data.mix.components.{name}: no statistics describe it; give declared_tokens, or a csv "
                    "with its counts"
                )
            sources.append(Source(name, WHOLE_COMPONENT, None, 0, 0, component.declared_tokens))
            continue
        for language, published in sorted(statistics[described[name]].items()):
            if not _takes_part(component, language):
                continue
            category = category_of(component.categories, published["words"])
            if component.categories and category is None:
                continue
            tokens = _tokens(data.mix, language, published, fertility, foreign)
            sources.append(Source(name, language, category, published["words"], published["texts"], tokens))
    return sources


def _described_components(data: Data, statistics: Mapping[str, object]) -> dict[str, str]:
    """Component → kind of statistics that describes it."""
    kinds = {name: data.pack.components[name].kind for name in data.mix.components}
    described = {name: "pair" for name, kind in kinds.items() if kind == "bilingual" and "pair" in statistics}
    if "language" in statistics:
        # Only web text has categories of languages; papers, books and code have none.
        texts = [
            name
            for name, component in data.mix.components.items()
            if kinds[name] == "text" and component.declared_tokens is None
        ]
        if len(texts) != 1:
            raise UserError(
                f"counts of languages describe one text component, but {', '.join(texts) or 'none'} could be "
                "meant; give declared_tokens to the others"
            )
        described[texts[0]] = "language"
    return described


def _tokens(
    mix: Mix, language: str, counts: Mapping[str, int], fertility: Fertility, foreign: str | None
) -> int:
    words = [counts["src_words"], counts["tgt_words"]] if "src_words" in counts else [counts["words"]]
    total = 0.0
    for side, count in zip(language.split("-"), words, strict=True):
        script = side.partition("_")[2] or "*"
        if script not in mix.fertility and foreign is not None:
            raise UserError(
                f"{side}: its words cannot be planned: the fertility of {fertility.source} is {foreign}. Measure that of "
                "the run's tokenizer on the run's text (`emma corpus stats RUN --tokens`) and give it with "
                f"--fertility .../statistics/tokens-STAGE.parquet, or set data.mix.fertility.{script}"
            )
        total += count * mix.fertility.get(script, fertility.tokens_per_word(side))
    return round(total)
