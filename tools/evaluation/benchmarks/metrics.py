"""Computes a language's scores from items and a model's responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks import answers, choices, diversity
from emma.tools.evaluation.benchmarks.definitions import Benchmark
from emma.tools.evaluation.benchmarks.items import Item, final_pattern
from emma.tools.evaluation.benchmarks.scores import Response, Score

if TYPE_CHECKING:
    from emma.tools.evaluation.benchmarks.similarity import BertScore
    from emma.tools.evaluation.benchmarks.translation import SentencePiece
    from emma.tools.evaluation.sandbox.toolchains import Executor

__all__ = ["NEEDS_SPBLEU", "Resources", "bertscore_folder", "measure"]

NEEDS_SPBLEU = "spbleu"
"""The metric that needs the FLORES-200 sentencepiece model."""


@dataclass(frozen=True)
class Resources:
    """What metrics need: spBLEU's tokenizer, BERTScore's encoder (None: the metric is left out), what runs programs."""

    spbleu: SentencePiece | None = None
    bertscore: BertScore | None = None
    executor: Executor | None = None


def measure(
    benchmark: Benchmark,
    language: str,
    items: Sequence[Item],
    responses: Sequence[Response],
    resources: Resources,
) -> dict[str, Score]:
    """Scores of a language by each of the benchmark's metrics and, if items have choices, the baselines.

    Args:
        benchmark: the benchmark.
        language: the language's code in results.
        items: what the model was asked.
        responses: the model's responses, in the order of the items.
        resources: models that metrics need.

    Raises:
        UserError: a metric is unknown, or a model that it needs is missing.
    """
    if benchmark.kind == "generation":
        return _generation(benchmark, language, items, responses, resources)
    table: dict[str, Callable[[], Score]] = {
        "acc": lambda: choices.accuracy(items, responses),
        "acc_norm": lambda: choices.accuracy(items, responses, by_length=True),
        "macro_f1": lambda: choices.macro_f1(items, responses),
        "label_collapse": lambda: choices.label_collapse(items, responses),
        "bits_per_byte": lambda: choices.bits_per_byte(items, responses),
        "nll_per_token": lambda: choices.nll_per_token(items, responses),
        "nll_per_document": lambda: choices.nll_per_document(items, responses),
    }
    scores = {name: _lookup(benchmark, table, name)() for name in benchmark.metrics}
    return scores | (choices.baselines(items) if benchmark.kind == "choice" else {})


def _generation(
    benchmark: Benchmark,
    language: str,
    items: Sequence[Item],
    responses: Sequence[Response],
    resources: Resources,
) -> dict[str, Score]:
    from emma.tools.evaluation.benchmarks import summaries, translation

    raw = [response.text or "" for response in responses]
    texts = [answers.processed(benchmark, text) for text in raw]
    references = [item.reference or "" for item in items]
    empty = [answers.is_empty(text) for text in texts]
    # Outputs without content score 0, or are left out if the authors left them out.
    if benchmark.drop_empty:
        scored: list[str | None] = [None if none else text for none, text in zip(empty, texts, strict=True)]
    else:
        scored = list(texts)
    kept = [(text, reference) for text, reference in zip(scored, references, strict=True) if text is not None]
    corpus, corpus_references = [text for text, _ in kept], [reference for _, reference in kept]
    pattern = final_pattern(benchmark, benchmark.code(language))

    def spbleu() -> Score:
        if resources.spbleu is None:
            raise UserError(f"{benchmark.name}: spBLEU needs its sentencepiece model (--spbleu-model)")
        return translation.spbleu(resources.spbleu, corpus, corpus_references)

    table: dict[str, Callable[[], Score | None]] = {
        "spbleu": spbleu,
        "bleu": lambda: translation.bleu(corpus, corpus_references),
        "chrf++": lambda: translation.chrf(corpus, corpus_references),
        "rougeL_ws": lambda: summaries.rouge_whitespace(scored, references),
        "rougeL_uni": lambda: summaries.rouge_unicode(scored, references),
        "rougeL_ascii": lambda: summaries.rouge_ascii(scored, references),
        "bertscore": lambda: resources.bertscore.score(scored, references) if resources.bertscore else None,
        "self_bleu": lambda: diversity.self_bleu(corpus),
        "self_bleu_first": lambda: diversity.self_bleu_first(corpus),
        "distinct_2": lambda: diversity.distinct(corpus, 2),
        "exact_match": lambda: answers.exact_match([answers.answer_number(text) for text in raw], references),
        "exact_match_strict": lambda: answers.exact_match(
            [answers.answer_number(text, pattern) for text in raw], references
        ),
        "exact_match_whole": lambda: answers.exact_match([text.lstrip() for text in raw], references),
        "empty_rate": lambda: answers.empty_rate(texts),
        "off_target_rate": lambda: answers.off_target_rate(texts, benchmark.output_language(language)),
    }
    found = {name: _lookup(benchmark, table, name)() for name in benchmark.metrics}
    return {name: score for name, score in found.items() if score is not None}


def _lookup[F](benchmark: Benchmark, table: dict[str, F], name: str) -> F:
    if name not in table:
        raise UserError(
            f"{benchmark.name}: no metric {name} for a {benchmark.kind}; known metrics: {', '.join(table)}"
        )
    return table[name]


def bertscore_folder(path: Path | None) -> Path | None:
    """Folder of BERTScore's encoder, checked.

    Raises:
        UserError: it is not a model folder.
    """
    if path is not None and not (path / "config.json").is_file():
        raise UserError(f"{path}: contains no config.json; give a folder with bert-base-multilingual-cased")
    return path
