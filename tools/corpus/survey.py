"""What raw sources hold before anything is done to them: documents, bytes and words by language, and samples of the text.

Labels and scripts are read as `integrate` reads them, so that the codes are those of the corpus.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from emma.base.errors import UserError
from emma.base.processes import process_pool, result_of
from emma.base.progress import progress
from emma.recipes.schema.corpus import Corpus
from emma.tools.corpus.labelling import Labeller
from emma.tools.corpus.reading import Fault, Row, read_rows
from emma.tools.corpus.rendering import texts_of
from emma.tools.corpus.source_files import SourceFile, source_files
from emma.tools.languages.scripts import compatible, measure, script_of

__all__ = ["Size", "Survey", "survey"]

_BATCH_ROWS, _BATCH_BYTES = 2048, 8 << 20
_LONGEST = 20_000
"""Characters of a document in a sample."""


class Size(NamedTuple):
    """Documents (or pairs), bytes of UTF-8 text (of both sides) and words between white space."""

    documents: int = 0
    bytes: int = 0
    words: int = 0

    def plus(self, other: Size) -> Size:
        """The sum."""
        return Size(*(one + more for one, more in zip(self, other, strict=True)))


@dataclass
class Sample:
    """Texts of a language (or pair), those with the lowest hashes: as good as random, in whatever order they are read.

    Args:
        limit: characters to keep, at least.
    """

    limit: int
    held: int = 0
    heap: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    def add(self, texts: Sequence[str]) -> None:
        """Offers a document."""
        number = xxhash.xxh3_64_intdigest("\n".join(texts).encode("utf-8", "surrogatepass"))
        if self.held < self.limit or number < -self.heap[0][0]:
            self._keep(number, tuple(text[:_LONGEST] for text in texts))

    def _keep(self, number: int, texts: tuple[str, ...]) -> None:
        heapq.heappush(self.heap, (-number, texts))
        self.held += sum(map(len, texts))
        while self.held - sum(map(len, self.heap[0][1])) >= self.limit:
            self.held -= sum(map(len, heapq.heappop(self.heap)[1]))

    def join(self, other: Sample) -> None:
        """Takes in another sample of the language."""
        for number, texts in other.heap:
            if self.held < self.limit or -number < -self.heap[0][0]:
                self._keep(-number, texts)

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """What is kept, in an order that depends on the texts alone."""
        return [texts for _, texts in sorted(self.heap, reverse=True)]


@dataclass
class Survey:
    """What was found.

    Attributes:
        sizes: by kind, and language (or pair, `xxx_Ssss-yyy_Ssss`).
        samples: of the same, for wanted languages.
        others: documents in languages that nobody asked for, by label; pairs by their two labels.
        unknown: documents by labels that name no language.
        unusable: rows that cannot be used, with the first one's place and reason, by source.
    """

    sizes: dict[tuple[str, str], Size] = field(default_factory=dict)
    samples: dict[tuple[str, str], Sample] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    unusable: dict[str, tuple[int, str]] = field(default_factory=dict)

    def join(self, other: Survey) -> None:
        """Takes in what another file holds."""
        for key, size in other.sizes.items():
            self.sizes[key] = self.sizes.get(key, Size()).plus(size)
        for key, sample in other.samples.items():
            self.samples.setdefault(key, Sample(sample.limit)).join(sample)
        self.others += other.others
        self.unknown += other.unknown
        self.foreign += other.foreign
        for source, (count, first) in other.unusable.items():
            before = self.unusable.get(source, (0, first))
            self.unusable[source] = (before[0] + count, before[1])


def survey(
    corpus: Corpus, languages: Collection[str], *, characters: int = 200_000, workers: int = 1
) -> Survey:
    """Reads all sources once.

    Args:
        corpus: for its sources and how labels are read.
        languages: ISO 639-3 codes to look at; documents in others are only counted.
        characters: size of a language's sample.
        workers: processes; any number gives the same.

    Raises:
        UserError: a source has no files, or a file cannot be read.
    """
    files = source_files(corpus)
    found = Survey()
    tasks = [(corpus, file, frozenset(languages), characters) for file in files]
    with process_pool(min(workers, len(tasks)), preload=["emma.tools.corpus.survey"]) as pool:
        running = [pool.submit(_survey_file, *task) for task in tasks]
        with progress(running, desc="raw text", unit="file") as bar:
            for task in bar:
                found.join(result_of(task))
    return found


def _survey_file(corpus: Corpus, file: SourceFile, wanted: frozenset[str], characters: int) -> Survey:
    reader = _Reader(corpus, file, wanted, characters)
    rows: list[Row] = []
    size = 0
    for row in read_rows(file, corpus.sources[file.source], int(corpus.max_document_megabytes * 1e6)):
        if isinstance(row, Fault):
            if not row.oversized:
                reader.unusable(row.number, row.reason)
            continue
        rows.append(row)
        size += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if len(rows) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            reader.add(rows)
            rows, size = [], 0
    reader.add(rows)
    return reader.found


class _Reader:
    """Counts the rows of one file."""

    def __init__(self, corpus: Corpus, file: SourceFile, wanted: frozenset[str], characters: int) -> None:
        self.file, self.source, self.wanted, self.characters = (
            file,
            corpus.sources[file.source],
            wanted,
            characters,
        )
        self.labeller = Labeller(corpus.languages, file, self.source)
        self.found = Survey()
        self._languages: dict[str, str | None] = {}

    def unusable(self, number: int, reason: str) -> None:
        count, first = self.found.unusable.get(
            self.file.source, (0, f"{self.file.path}: line {number}: {reason}")
        )
        self.found.unusable[self.file.source] = (count + 1, first)

    def _language(self, label: str) -> str | None:
        """The language that a label names; None if it names none."""
        if label not in self._languages:
            try:
                self._languages[label] = self.labeller.resolver.resolve(label).language
            except UserError:
                self._languages[label] = None
        return self._languages[label]

    def add(self, rows: Iterable[Row]) -> None:
        kept: list[tuple[list[str], list[str]]] = []
        for row in rows:
            try:
                labels = self.labeller.given(row)
                found = [self._language(label) for label in labels]
                if None in found:
                    self.found.unknown.update(
                        {label for label, one in zip(labels, found, strict=True) if one is None}
                    )
                elif not self.wanted.issuperset(found):
                    self.found.others["-".join(labels)] += 1
                elif all(texts := texts_of(row, self.source)):
                    kept.append((texts, labels))
            except ValueError as error:
                self.unusable(row.number, str(error))
        scripts = iter([script for script, _ in measure([text for texts, _ in kept for text in texts])])
        for texts, labels in kept:
            measured = [next(scripts) for _ in labels]
            codes = [self.labeller.code(*side) for side in zip(labels, measured, strict=True)]
            if wrong := [
                code
                for code, script in zip(codes, measured, strict=True)
                if script is not None and not compatible(script, script_of(code))
            ]:
                self.found.foreign.update(dict.fromkeys(wrong, 1))
                continue
            key = (self.source.kind, "-".join(codes))
            size = Size(
                1,
                sum(len(text.encode("utf-8", "replace")) for text in texts),
                sum(len(text.split()) for text in texts),
            )
            self.found.sizes[key] = self.found.sizes.get(key, Size()).plus(size)
            self.found.samples.setdefault(key, Sample(self.characters)).add(texts)
