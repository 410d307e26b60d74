"""Intrinsic evaluation: the likelihood of held-out text per language under a model, and resumably so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.base.progress import progress
from emma.base.threads import in_order
from emma.tools.evaluation.heldout import HeldOut, read_documents
from emma.tools.evaluation.journal import LanguageScores, text_sha256
from emma.tools.evaluation.publish import publish_rows
from emma.tools.evaluation.results import Result, heldout_results
from emma.tools.evaluation.stored import journal_of
from emma.tools.evaluation.targets import Target, fingerprint
from emma.tools.inspection.models import loading, model_options, tokenizer_options

if TYPE_CHECKING:
    from tqdm import tqdm

    from emma.recipes.schema.data import Pack
    from emma.tools.evaluation.likelihood import Scorer

__all__ = ["Settings", "evaluate_model", "load_model", "publish"]


@dataclass(frozen=True)
class Settings:
    """How to score documents; see `tools.evaluation.likelihood.Scorer`.

    `limit` is the maximum number of documents per language, `pack` how sentence pairs become documents.
    """

    window: int
    stride: int | None = None
    score_end_of_text: bool = False
    batch_tokens: int = 8192
    device: str | None = None
    dtype: str | None = None
    limit: int | None = None
    pack: Pack | None = None


def load_model(folder: Path, settings: Settings) -> Scorer:
    """Loads model and tokenizer from `folder`, never from the network.

    The default device is the GPU if there is one, else the CPU; the default number format is the checkpoint's
    on a GPU, FP32 on a CPU.

    Raises:
        UserError: `transformers` cannot load them.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from emma.tools.evaluation.likelihood import Scorer

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = settings.dtype or ("float32" if device == "cpu" else "auto")
    logging.disable_progress_bar()
    with loading(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **model_options(folder))
    return Scorer(
        model.to(device).eval(),
        tokenizer,
        window=settings.window,
        stride=settings.stride,
        score_end_of_text=settings.score_end_of_text,
        batch_tokens=settings.batch_tokens,
    )


def evaluate_model(
    target: Target, heldout: Sequence[HeldOut], output: Path, settings: Settings
) -> dict[tuple[str, str], LanguageScores]:
    """Scores the languages that the journal in `output` lacks, and returns the scores of all in `heldout`.

    Args:
        target: the model.
        heldout: languages to score.
        output: evaluation folder; its journal is `heldout/<model>.jsonl`.
        settings: how to score.

    Raises:
        UserError: the model cannot be loaded, or no language has a validation document.
    """
    sha256 = fingerprint(target.folder)
    scorer = load_model(target.folder, settings)
    journal = journal_of(output, target.model)
    finished = journal.read(scorer.signature, sha256)

    def score(language: HeldOut) -> tuple[LanguageScores | None, bool]:
        """Scores of a language, and whether they are new; None if it has no document."""
        documents = read_documents(language, settings.limit, settings.pack)
        if not documents:
            return None, False
        key, text = (language.kind, language.language), text_sha256(documents)
        known = finished.get(key)
        if known is not None and known.text_sha256 == text:
            return known, False
        # Each language by itself: in which batch a document stands shows in its last digits, so batches must not depend
        # on what else is asked for or finished.
        scored = scorer.score([(document.id, document.text) for document in documents])
        return LanguageScores(*key, scorer.signature, sha256, text, tuple(scored)), True

    scores: dict[tuple[str, str], LanguageScores] = {}
    bar: tqdm[Any] = progress(total=len(heldout), desc=f"evaluate {target.model}", unit="language")
    with bar:
        for found, new in _at_once(score, heldout, scorer.at_once):
            if found is not None:
                if new:
                    journal.append(found)
                scores[found.kind, found.language] = found
            bar.update()
    if not scores:
        raise UserError(
            "no language has a validation document (see the column `split`); nothing was evaluated"
        )
    return scores


def _at_once[T, R](work: Callable[[T], R], things: Sequence[T], count: int) -> Iterator[R]:
    """Results in order, of `count` things at once that share torch's threads."""
    import torch

    if count == 1:
        yield from map(work, things)
        return
    threads = torch.get_num_threads()
    try:
        yield from in_order(work, things, count, partial(torch.set_num_threads, threads // count))
    finally:
        torch.set_num_threads(threads)


def publish(
    output: Path, models: Sequence[tuple[Target, str, dict[tuple[str, str], LanguageScores]]]
) -> list[Result]:
    """Writes `results.parquet`, `results.csv` and `models.json` from the scores of models.

    Args:
        output: evaluation folder.
        models: target, role (`trained` or `base`) and scores of each model.

    Returns:
        All rows of the table, including earlier ones of other models.
    """
    return publish_rows(
        output,
        [row for target, _, scores in models for row in heldout_results(target.model, scores.values())],
        [(target, role, next(iter(scores.values())).model_sha256) for target, role, scores in models],
    )
