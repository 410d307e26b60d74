"""BLEU, spBLEU and chrF++ by sacrebleu, with statistics per segment for errors and paired tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_base import BaseTokenizer

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.tools.evaluation.benchmarks.definitions import SpBleu
from emma.tools.evaluation.benchmarks.scores import Score, statistics_score

__all__ = ["SentencePiece", "bleu", "chrf", "find_spbleu_model", "spbleu"]


class SentencePiece(BaseTokenizer):
    """A sentencepiece model as sacrebleu's tokenizer.

    Args:
        path: the model.
        expected: SHA-256 of the model that defines spBLEU. Signatures name any other model by its own hash,
            so that its scores are never mistaken for spBLEU.
    """

    def __init__(self, path: Path, expected: str) -> None:
        import sentencepiece

        self.sha256 = sha256_file(path)
        self.is_flores200 = self.sha256 == expected
        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path}: not a sentencepiece model ({error})") from None

    def signature(self) -> str:
        """`flores200` for spBLEU's model; for others, a name with their hash."""
        return "flores200" if self.is_flores200 else f"spm-{self.sha256[:12]}"

    def __call__(self, line: str) -> str:
        return " ".join(self.model.encode(line, out_type=str))


def find_spbleu_model(
    known: SpBleu, given: Path | None, mirrored: Path | None, *, allow_other: bool
) -> SentencePiece:
    """The tokenizer of spBLEU.

    Args:
        known: file name, URL and hash of the right model.
        given: path that the user gave.
        mirrored: path in the mirror, if it exists.
        allow_other: accept a model with another hash, under its own name.

    Raises:
        UserError: there is no model, or it has another hash and `allow_other` is false.
    """
    path = given or mirrored
    if path is None:
        raise UserError(
            f"spBLEU needs the FLORES-200 sentencepiece model: put {known.file} (from {known.address}) in the mirror, "
            "or give its path with --spbleu-model"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should be the FLORES-200 sentencepiece model")
    model = SentencePiece(path, known.sha256)
    if not model.is_flores200 and not allow_other:
        raise UserError(
            f"{path}: SHA-256 {model.sha256} is not that of the FLORES-200 sentencepiece model ({known.sha256}), so its "
            f"scores would not be spBLEU. Get the file from {known.address}, or use this one under its own name with "
            "--spbleu-other"
        )
    return model


def spbleu(tokenizer: SentencePiece, outputs: Sequence[str], references: Sequence[str]) -> Score:
    """Corpus spBLEU, 0 to 100: BLEU over sentencepiece tokens."""
    metric = BLEU(tokenize="none", force=True)
    metric.tokenizer, metric.tokenizer_signature = tokenizer, tokenizer.signature()
    return _corpus(metric, outputs, references)


def bleu(outputs: Sequence[str], references: Sequence[str]) -> Score:
    """Corpus BLEU with sacrebleu's defaults (13a tokens), 0 to 100."""
    return _corpus(BLEU(force=True), outputs, references)


def chrf(outputs: Sequence[str], references: Sequence[str]) -> Score:
    """Corpus chrF++ (character n-grams up to 6, word n-grams up to 2), 0 to 100."""
    return _corpus(CHRF(word_order=2), outputs, references)


def _corpus(metric: Any, outputs: Sequence[str], references: Sequence[str]) -> Score:
    if not outputs:
        return Score(0.0, None, 0)
    statistics = metric._extract_corpus_statistics(list(outputs), [list(references)])
    signature = metric.get_signature().format()
    return statistics_score(
        statistics,
        lambda row: float(metric._compute_score_from_stats([round(n) for n in row]).score),
        signature,
    )
