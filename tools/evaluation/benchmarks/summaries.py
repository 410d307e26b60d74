"""ROUGE-L of summaries, with three tokenizers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import regex

from emma.tools.evaluation.benchmarks.scores import Score, mean_score

__all__ = ["UnicodeTokenizer", "rouge_ascii", "rouge_unicode", "rouge_whitespace", "rouge_whitespace_item"]

# Scripts that don't separate words with spaces: each character is a token, together with its marks.
_SPACELESS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}"
)
_TOKEN = regex.compile(
    rf"(?V1)[[{_SPACELESS}]&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--[{_SPACELESS}]]+"
)


class UnicodeTokenizer:
    """Case-folded words of letters, marks and digits; single characters in scripts without spaces."""

    def tokenize(self, text: str) -> list[str]:
        """Tokens of a text."""
        return _TOKEN.findall(text.casefold())


def rouge_unicode(outputs: Sequence[str | None], references: Sequence[str]) -> Score:
    """ROUGE-L F1 over Unicode tokens, 0 to 1; skips outputs of None."""
    return _rouge_score(outputs, references, "unicode")


def rouge_ascii(outputs: Sequence[str | None], references: Sequence[str]) -> Score:
    """ROUGE-L F1 with rouge_score's stemming tokenizer, which keeps only [a-z0-9]; skips outputs of None."""
    return _rouge_score(outputs, references, "ascii")


@functools.cache
def _scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    if kind == "unicode":
        return RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer())
    return RougeScorer(["rougeL"], use_stemmer=True)


def _rouge_score(outputs: Sequence[str | None], references: Sequence[str], kind: str) -> Score:
    items = [
        None if output is None else float(_scorer(kind).score(reference, output)["rougeL"].fmeasure)
        for output, reference in zip(outputs, references, strict=True)
    ]
    return mean_score(items, f"rougeL|tok:{kind}|rouge_score:{metadata.version('rouge_score')}")


def rouge_whitespace(outputs: Sequence[str | None], references: Sequence[str]) -> Score:
    """Summary-level ROUGE-L F1 over whitespace tokens, 0 to 1; skips outputs of None."""
    items = [
        None if output is None else rouge_whitespace_item(output, reference)
        for output, reference in zip(outputs, references, strict=True)
    ]
    return mean_score(items, "rougeL|tok:whitespace|level:summary|words:distinct")


def rouge_whitespace_item(output: str, reference: str) -> float:
    """ROUGE-L F1 as computed by the `rouge` package (1.0.1), which was used to score the EMMA-500 models.

    Sentences end at full stops. The score uses the union of the distinct words in the longest common
    subsequences of each reference sentence with each output sentence (Lin 2004, section 3.2). A text without
    words scores 0.
    """
    hypothesis, wanted = _sentences(output), _sentences(reference)
    words = {word for sentence in hypothesis for word in sentence}
    wanted_words = {word for sentence in wanted for word in sentence}
    if not words or not wanted_words:
        return 0.0
    union: set[str] = set()
    for target in wanted:
        for sentence in hypothesis:
            union |= _common(target, sentence)
    recall, precision = len(union) / len(wanted_words), len(union) / len(words)
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(left: Sequence[str], right: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence; among equally long ones, the one that keeps more of `left`."""
    table = [[0] * (len(right) + 1)]
    for word in left:
        above, row = table[-1], [0]
        for column, other in enumerate(right):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        table.append(row)
    found = set()
    i, j = len(left), len(right)
    while i and j:
        if left[i - 1] == right[j - 1]:
            found.add(left[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
