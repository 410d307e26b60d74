"""Metrics for choices and for likelihoods, and the baselines: chance and majority."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emma.tools.evaluation.benchmarks.items import Item
from emma.tools.evaluation.benchmarks.scores import Response, Score, mean_score, resample, statistics_score
from emma.tools.evaluation.bootstrap import error_of

__all__ = [
    "accuracy",
    "baselines",
    "bits_per_byte",
    "f1_of",
    "label_collapse",
    "macro_f1",
    "nll_per_document",
    "nll_per_token",
    "predictions",
]


def predictions(
    items: Sequence[Item], responses: Sequence[Response], *, by_length: bool = False
) -> list[int]:
    """Index of each item's likeliest choice; ties go to the text that sorts last, as in the authors' code.

    Args:
        items: the items.
        responses: hold the likelihoods of the items' choices.
        by_length: divide log-likelihoods by the choices' lengths in characters.
    """
    chosen = []
    for item, response in zip(items, responses, strict=True):
        values = [
            value / max(1, len(choice)) if by_length else value
            for value, choice in zip(response.likelihoods, item.choices, strict=True)
        ]
        chosen.append(max(range(len(values)), key=lambda n, v=values, c=item.choices: (v[n], c[n])))  # type: ignore[misc]
    return chosen


def accuracy(items: Sequence[Item], responses: Sequence[Response], *, by_length: bool = False) -> Score:
    """Share of items whose likeliest choice is correct."""
    chosen = predictions(items, responses, by_length=by_length)
    return mean_score([float(number == item.gold) for number, item in zip(chosen, items, strict=True)])


def macro_f1(items: Sequence[Item], responses: Sequence[Response]) -> Score:
    """F1 averaged over all labels that occur as an answer or a prediction, with equal weights."""
    return f1_of([item.gold for item in items], predictions(items, responses))


def f1_of(answers: Sequence[int | None], given: Sequence[int]) -> Score:
    """The same, from the index of the right and of the chosen label of each item."""
    gold, chosen = np.array(answers), np.array(given)
    labels = np.unique(np.concatenate([gold, chosen]))

    def value_of(weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Macro-F1 for each row of weights [rows, items]."""
        scores, present = [], []
        for label in labels:
            right = weights @ ((gold == label) & (chosen == label))
            total = weights @ (gold == label) + weights @ (chosen == label)
            scores.append(np.divide(2 * right, total, out=np.zeros(len(weights)), where=total > 0))
            present.append(total > 0)
        mean: NDArray[np.float64] = np.sum(scores, axis=0) / np.maximum(1, np.sum(present, axis=0))
        return mean

    value = float(value_of(np.ones((1, len(gold)), np.int64))[0])
    error = error_of(value_of(resample(len(gold), "items")), len(gold))
    pairs = [[int(a), int(b)] for a, b in zip(gold, chosen, strict=True)]
    return Score(value, error, len(gold), pairs)


def label_collapse(items: Sequence[Item], responses: Sequence[Response]) -> Score:
    """Share of the most frequent prediction: near 1 if a model gives the same label whatever it reads."""
    counts = Counter(predictions(items, responses))
    return Score(counts.most_common(1)[0][1] / len(items), None, len(items))


def baselines(items: Sequence[Item]) -> dict[str, Score]:
    """Expected accuracy of guessing (`chance`) and of always giving the most frequent answer (`majority`)."""
    counts = Counter(item.gold for item in items)
    count = len(items)
    return {
        "chance": Score(math.fsum(1 / len(item.choices) for item in items) / count, None, count),
        "majority": Score(counts.most_common(1)[0][1] / count, None, count),
    }


def bits_per_byte(items: Sequence[Item], responses: Sequence[Response]) -> Score:
    """Bits per UTF-8 byte over all texts of a language."""
    return _ratio(
        [(response.nll or 0.0) / math.log(2) for response in responses], [r.bytes for r in responses]
    )


def nll_per_token(items: Sequence[Item], responses: Sequence[Response]) -> Score:
    """Nats per token over all texts of a language; depends on the tokenizer."""
    return _ratio([response.nll or 0.0 for response in responses], [r.tokens for r in responses])


def nll_per_document(items: Sequence[Item], responses: Sequence[Response]) -> Score:
    """Nats per text; depends on what counts as a text."""
    return mean_score([response.nll or 0.0 for response in responses])


def _ratio(top: Sequence[float], bottom: Sequence[float]) -> Score:
    return statistics_score(list(zip(top, bottom, strict=True)), lambda row: float(row[0] / row[1]))
