"""How similar the generated texts of a language are to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from emma.tools.evaluation.benchmarks.scores import Score, mean_score
from emma.tools.evaluation.benchmarks.summaries import UnicodeTokenizer

__all__ = ["distinct", "self_bleu", "self_bleu_first"]


def self_bleu(texts: Sequence[str]) -> Score:
    """Mean BLEU of each text against all others as references, 0 to 100; lower is more diverse.

    Equals sacrebleu's sentence BLEU (13a tokens, effective order), but is linear in the number of texts: the
    two highest counts of each n-gram determine its highest count among the other texts.
    """
    from sacrebleu.metrics import BLEU
    from sacrebleu.metrics.helpers import extract_all_word_ngrams

    metric = BLEU(effective_order=True, force=True)
    if len(texts) < 2:
        return Score(0.0, None, 0)
    counts: list[tuple[Counter[Any], int]] = [
        extract_all_word_ngrams(metric._preprocess_segment(text), 1, metric.max_ngram_order) for text in texts
    ]
    highest: dict[Any, tuple[int, int, int]] = {}
    for number, (ngrams, _) in enumerate(counts):
        for ngram, count in ngrams.items():
            best, owner, second = highest.get(ngram, (0, -1, 0))
            if count > best:
                highest[ngram] = (count, number, best)
            elif count > second:
                highest[ngram] = (best, owner, count)
    lengths = Counter(length for _, length in counts)
    items = []
    for number, (ngrams, length) in enumerate(counts):
        correct, total = [0] * metric.max_ngram_order, [0] * metric.max_ngram_order
        for ngram, count in ngrams.items():
            best, owner, second = highest[ngram]
            correct[len(ngram) - 1] += min(count, second if owner == number else best)
            total[len(ngram) - 1] += count
        items.append(
            metric._compute_score_from_stats([length, _closest(lengths, length), *correct, *total]).score
        )
    return mean_score(items, f"self-bleu|refs:others|eff:yes|{_version()}")


def _closest(lengths: Counter[int], own: int) -> int:
    """The length of another text that is closest to `own`; in a tie, the shorter one."""
    others = [length for length, count in lengths.items() if length != own or count > 1]
    return min(others, key=lambda length: (abs(length - own), length))


def self_bleu_first(texts: Sequence[str]) -> Score:
    """Mean corpus BLEU of each text against the first of the others, 0 to 100.

    This is what `corpus_score([text], [others])` computes, the call used to score the EMMA-500 models: of a
    stream of references, only the first belongs to the single hypothesis.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(force=True)
    if len(texts) < 2:
        return Score(0.0, None, 0)
    items = [metric.corpus_score([text], [[texts[1 if n == 0 else 0]]]).score for n, text in enumerate(texts)]
    return mean_score(items, f"self-bleu|refs:first|{_version()}")


def distinct(texts: Sequence[str], order: int) -> Score:
    """Share of distinct n-grams among those of all texts, 0 to 1 (Li et al. 2016); higher is more diverse."""
    from nltk.util import ngrams

    tokenizer = UnicodeTokenizer()
    found = [ngram for text in texts for ngram in ngrams(tokenizer.tokenize(text), order)]
    return Score(len(set(found)) / len(found) if found else 0.0, None, len(texts))


def _version() -> str:
    import sacrebleu

    return f"sacrebleu:{sacrebleu.__version__}"
