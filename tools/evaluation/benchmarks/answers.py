"""The part of a generated answer that is scored, and signs that it is not an answer at all."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from emma.tools.evaluation.benchmarks.definitions import Benchmark
from emma.tools.evaluation.benchmarks.scores import Score, mean_score

__all__ = ["answer_number", "empty_rate", "exact_match", "is_empty", "off_target_rate", "processed"]

_DOTS = re.compile(r"\.*")
_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_INVALID = "[invalid]"


def processed(benchmark: Benchmark, text: str) -> str:
    """The part of a generated text that is scored."""
    if benchmark.output == "raw":
        return text
    if benchmark.output == "stripped":
        return text.strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def is_empty(text: str) -> bool:
    """Whether an output is empty or consists only of dots."""
    return _DOTS.fullmatch(text.strip()) is not None


def empty_rate(texts: Sequence[str]) -> Score:
    """Share of outputs that are empty or consist only of dots."""
    return mean_score([float(is_empty(text)) for text in texts])


def off_target_rate(texts: Sequence[str], language: str) -> Score | None:
    """Share of outputs in a script other than the language's, among those with enough letters to tell.

    It cannot detect another language in the same script. None if the code names no script, or no output has
    enough letters.
    """
    from emma.tools.languages.scripts import compatible, measure

    script = next(iter(language.split("_")[1:]), "")
    if not script or not texts:
        return None
    items = [
        None if found is None else float(not compatible(found, script)) for found, _ in measure(list(texts))
    ]
    score = mean_score(items)
    return score if score.n else None


def answer_number(text: str, pattern: str | None = None) -> str:
    """The number an answer gives: the first match of `pattern` or, without one, the last number.

    `[invalid]` if there is none.
    """
    if pattern is not None:
        found = re.findall(pattern, text)
        return found[0].strip() if found else _INVALID
    found = _NUMBER.findall(text)
    return next(part for part in found[-1] if part).strip() if found else _INVALID


def exact_match(answers: Sequence[str], references: Sequence[str]) -> Score:
    """Share of answers equal to their references, ignoring case and ASCII punctuation."""
    remove = str.maketrans("", "", string.punctuation)

    def plain(text: str) -> str:
        return text.lower().translate(remove)

    return mean_score([float(plain(a) == plain(b)) for a, b in zip(answers, references, strict=True)])
