"""Decides the language of each document from its label and the script of its text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from emma.base.errors import UserError
from emma.recipes.schema.corpus import Languages, Source
from emma.tools.corpus.reading import Row
from emma.tools.corpus.source_files import SourceFile
from emma.tools.languages.labels import LanguageResolver, Resolved
from emma.tools.languages.scripts import compatible, measure

__all__ = ["Labeller", "choose_script"]

NO_SCRIPT = "Zyyy"
"""ISO 15924 code for undetermined script, used for text without letters in a language of unknown script."""


def choose_script(resolved: Resolved, known: Sequence[str], measured: str | None) -> tuple[str, str]:
    """Script of a document, and how it was decided.

    A measured script overrides the label's only if the language is written in it. Otherwise the text is not
    in the language at all, and the rule `wrong_script` removes it later.

    Args:
        resolved: the label.
        known: scripts in customary use for the language, most common first.
        measured: the script of the text (see `scripts.measure`).
    """
    given = resolved.script
    fitting = None if measured is None else _fitting(measured, known)
    if given is not None:
        if measured is None or compatible(measured, given):
            return given, "label"
        return (
            (fitting, f"measured, label says {given}")
            if fitting
            else (given, f"label, text shows {measured}")
        )
    if fitting:
        return fitting, "measured"
    if known:
        return known[0], "usual script" if measured is None else f"usual script, text shows {measured}"
    return (measured, "measured") if measured else (NO_SCRIPT, "no letters")


def _fitting(measured: str, known: Sequence[str]) -> str | None:
    """The first known script that is compatible with a measured one."""
    if measured in known:
        return measured
    return next((script for script in known if compatible(measured, script)), None)


class Labeller:
    """Reads the labels of one file's rows and decides their codes.

    Attributes:
        counts: documents (or sides of pairs) by source, label, code and decision.
    """

    def __init__(self, languages: Languages, file: SourceFile, source: Source) -> None:
        self.languages, self.file, self.source = languages, file, source
        self.resolver = LanguageResolver(languages.labels, languages.spelling)
        self.counts: Counter[tuple[str, str, str, str]] = Counter()
        self._codes: dict[tuple[str, str | None], tuple[str, str, str, str]] = {}
        self.where: tuple[tuple[str | None, str | None, str], ...]
        if source.kind == "parallel":
            self.where = (
                (source.src_lang, source.src_lang_column, "src"),
                (source.tgt_lang, source.tgt_lang_column, "tgt"),
            )
        else:
            self.where = ((source.language, source.language_column, "language"),)
        self.tmx = source.format_of(file.path) == "tmx"
        # Programming languages are no choice of `only`.
        self._only = frozenset(languages.only if source.kind != "code" else ())
        self._languages = frozenset(code.split("_")[0] for code in self._only)
        self._left_out = frozenset(label for label, code in languages.labels.items() if code == "und")

    def labels(self, row: Row) -> list[str]:
        """Labels of a row, as the source gives them.

        Raises:
            ValueError: a label is not text.
            UserError: a label names no language; the message names file and line.
        """
        labels = self.given(row)
        if self.source.kind != "code":
            for label in labels:
                self._check(label, row.number)
        return labels

    def given(self, row: Row) -> list[str]:
        """The same, whatever they name.

        Raises:
            ValueError: a label is not text.
        """
        labels = []
        for fixed, column, name in self.where:
            label = fixed
            if column is not None or self.tmx:
                label = row.values[column if column is not None else f"{name}_lang"]
                if not isinstance(label, str):
                    raise ValueError(f"`{column}` is of type {type(label).__name__}, not a language code")
            elif fixed is None:
                label = self.file.captured[name]
            labels.append(str(label))
        return labels

    def may_be_wanted(self, labels: Sequence[str]) -> bool:
        """Whether a row with these labels can be in the languages to keep, whatever its script."""
        return not self._only or all(
            label not in self._left_out and self.resolver.resolve(label).language in self._languages
            for label in labels
        )

    def wanted(self, codes: Sequence[str]) -> bool:
        """Whether a row with these codes is in the languages to keep."""
        return not self._only or self._only.issuperset(codes)

    def _check(self, label: str, number: int) -> None:
        if label in self._left_out:
            return
        try:
            self.resolver.resolve(label)
        except UserError as error:
            raise UserError(f"{self.file.path}: line {number}: {error}") from None

    def decide(self, texts: Sequence[Sequence[str]], labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Codes of rows, one per side.

        Args:
            texts: normalised texts of each row.
            labels: labels of each row.
        """
        if self.source.kind == "code":
            return [[self._programming_language(label) for label in row] for row in labels]
        flat = [text for row in texts for text in row]
        measured = (
            [script for script, _ in measure(flat)] if self.languages.measure_script else [None] * len(flat)
        )
        scripts = iter(measured)
        return [[self.code(label, next(scripts)) for label in row] for row in labels]

    def code(self, label: str, measured: str | None) -> str:
        """Code of a text with a label and a measured script."""
        seen = self._codes.get((label, measured))
        if seen is None:
            resolved = self.resolver.resolve(label)
            script, how = choose_script(resolved, self.resolver.scripts(resolved.language), measured)
            code = self.resolver.spell(resolved.language, script)
            seen = (self.file.source, label, code, f"{resolved.decision}; script: {how}")
            self._codes[label, measured] = seen
        self.counts[seen] += 1
        return seen[2]

    def _programming_language(self, label: str) -> str:
        name = re.sub(r"[^a-z0-9+#.]+", "_", label.lower()).strip("_") or "unknown"
        self.counts[self.file.source, label, name, "programming language"] += 1
        return name
