"""Proof that two folders hold the same model: parameters bit for bit, logits in FP32, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.base.manifest import now
from emma.base.progress import progress
from emma.checkpoints_conversion.parity.report import LanguageResult, LogitsResult, Report
from emma.checkpoints_conversion.parity.texts import Sequences, read_texts, sample_texts, tokenize
from emma.checkpoints_conversion.tokenizer_files import has_tokenizer

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

    from emma.checkpoints_conversion.parity.forward import LayerwiseForward
    from emma.checkpoints_conversion.weights import Weights

__all__ = ["TOLERANCE", "Report", "compare", "compare_weights", "read_texts", "sample_texts"]

TOLERANCE = 1e-4


def compare(
    a: Path,
    b: Path,
    texts: Mapping[str, Sequence[str]] | None = None,
    *,
    step: int | None = None,
    weights: str = "auto",
    text_only: bool = False,
    tokenizer: Path | None = None,
    tolerance: float = TOLERANCE,
    tensors: bool = True,
    logits: bool = True,
    length: int = 64,
    mixed_length: int = 512,
) -> Report:
    """Compares two folders, each a Hugging Face model or a Megatron checkpoint.

    Args:
        a: what was converted.
        b: the result.
        texts: language → texts for the logits; by default, the built-in sample.
        step: step to use in a folder with several checkpoints; by default, the latest complete one.
        weights: of a Megatron checkpoint, `model`, `optimizer` for its FP32 main weights, or `auto` for the latter
            where the run kept the former in FP8.
        text_only: take the text model out of a Hugging Face model of images and text.
        tokenizer: folder with `tokenizer.json`; by default, that of `a` or `b`; if neither has one, bytes are
            the ids.
        tolerance: largest allowed difference between two logits.
        tensors: compare parameters.
        logits: compare logits.
        length: maximum tokens per text.
        mixed_length: maximum tokens of the sequence that spans all languages.

    Raises:
        UserError: a folder is not a model, is damaged or incomplete, or the text cannot be used.
        CheckFailedError: a checkpoint's main weights do not round to its model's weights.
    """
    from emma.checkpoints_conversion.main_weights import Distance, release_record
    from emma.checkpoints_conversion.weights import MegatronWeights, open_weights

    if weights not in ("auto", "model", "optimizer"):
        raise UserError(f"unknown weights {weights!r}; use auto, model or optimizer")
    one, other = (open_weights(side, step, weights, text_only=text_only) for side in (a, b))  # type: ignore[arg-type]
    released = None
    for side in (other, one):
        if isinstance(side, MegatronWeights):
            distance = Distance([side])
            released = release_record([side], distance.measure() if tensors else distance)
    return compare_weights(
        one,
        other,
        texts,
        names=(str(a), str(b)),
        released=released,
        tokenizer=tokenizer,
        tolerance=tolerance,
        tensors=tensors,
        logits=logits,
        length=length,
        mixed_length=mixed_length,
    )


def _tokenizer(given: Path | None, *folders: Path) -> Path | None:
    if given is not None:
        if not has_tokenizer(given):
            raise UserError(f"{given}: has no tokenizer.json; name the tokenizer's folder")
        return given
    candidates = [folder for root in folders for folder in (root, root / "tokenizer")]
    return next((folder for folder in candidates if has_tokenizer(folder)), None)


def compare_weights(
    a: Weights,
    b: Weights,
    texts: Mapping[str, Sequence[str]] | None = None,
    *,
    names: tuple[str, str],
    released: dict[str, Any] | None = None,
    tokenizer: Path | None = None,
    tolerance: float = TOLERANCE,
    tensors: bool = True,
    logits: bool = True,
    length: int = 64,
    mixed_length: int = 512,
) -> Report:
    """`compare` for weights that are already open; `names` are their names in the report, `released` the record of
    which weights of a checkpoint they are."""
    from emma.checkpoints_conversion.config import shape_differences
    from emma.checkpoints_conversion.parameters import parameter_shapes
    from emma.checkpoints_conversion.parity.tensors import compare_tensors
    from emma.checkpoints_conversion.weights import rounded_alike

    started = now()
    differences = shape_differences(a.shape, b.shape)
    tensor_results, logits_result = None, None
    if parameter_shapes(a.shape) == parameter_shapes(b.shape):
        a, b = rounded_alike(a, b)
        if tensors:
            bar: tqdm[None]
            with progress(total=len(parameter_shapes(a.shape)), desc="parameters") as bar:
                tensor_results = compare_tensors(a, b, done=bar.update)
        if logits:
            folder = _tokenizer(tokenizer, a.folder, b.folder)
            chosen = sample_texts() if texts is None else texts
            vocabulary = a.shape.vocab_size
            sequences = tokenize(chosen, folder, vocabulary, length, mixed_length)
            # A folder that is being written still has its temporary name.
            origin = sequences.tokenizer.replace(str(a.folder), names[0]).replace(str(b.folder), names[1])
            sequences = dataclasses.replace(sequences, tokenizer=origin)
            logits_result = _compare_logits(a, b, sequences, tolerance)
    return Report(*names, differences, tensor_results, logits_result, started, now(), released)


def _compare_logits(a: Weights, b: Weights, sequences: Sequences, tolerance: float) -> LogitsResult:
    import torch

    from emma.checkpoints_conversion.parity.forward import device

    ids = [torch.tensor(one) for one in sequences.ids]
    bar: tqdm[None]
    with ExitStack() as stack, progress(total=a.shape.layers + 2, desc="logits") as bar:
        one, other = _forward(a, stack), _forward(b, stack)
        hidden_a, hidden_b = one.embed(ids), other.embed(ids)
        layers = [_largest(hidden_a, hidden_b)]
        bar.update()
        for index in range(a.shape.layers):
            hidden_a, hidden_b = one.layer(index, hidden_a), other.layer(index, hidden_b)
            layers.append(_largest(hidden_a, hidden_b))
            bar.update()
        logits_a, logits_b = one.logits(hidden_a), other.logits(hidden_b)
        bar.update()
        languages = []
        for language in dict.fromkeys(sequences.languages):
            rows = [i for i, name in enumerate(sequences.languages) if name == language]
            languages.append(_language(language, [logits_a[i] for i in rows], [logits_b[i] for i in rows]))
    libraries = one.library, other.library
    return LogitsResult(tolerance, sequences.tokenizer, *libraries, device().type, languages, layers)


def _forward(weights: Weights, stack: ExitStack) -> LayerwiseForward:
    if weights.layout == "huggingface":
        from emma.checkpoints_conversion.parity.transformers_forward import TransformersForward

        return TransformersForward(weights)
    from emma.checkpoints_conversion.parity.megatron_forward import MegatronForward, parallel_state_of_one

    stack.enter_context(parallel_state_of_one())
    return MegatronForward(weights)  # type: ignore[arg-type]


def _largest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max((a - b).abs().nan_to_num(float("inf")).max().item() for a, b in zip(one, other, strict=True))


def _language(language: str, one: list[torch.Tensor], other: list[torch.Tensor]) -> LanguageResult:
    import torch

    divergences, agreed, tokens = [], 0, 0
    for a, b in zip(one, other, strict=True):
        log_a, log_b = (torch.log_softmax(logits.double(), -1) for logits in (a, b))
        divergences.append((log_a.exp() * (log_a - log_b)).sum(-1))
        agreed += int((a.argmax(-1) == b.argmax(-1)).sum())
        tokens += len(a)
    divergence = torch.cat(divergences).clamp(min=0)  # rounding can make it slightly negative
    return LanguageResult(
        language,
        tokens,
        _largest(one, other),
        divergence.mean().item(),
        divergence.max().item(),
        agreed / tokens,
    )
