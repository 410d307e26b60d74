"""Negative log-likelihood of documents under a causal language model, exact to the token.

A document's ids are `[prefix] + tokens (+ [end of text])`. The prefix is the tokenizer's begin-of-text token
or, if it has none, its end-of-text token. It is context only, never scored, and occurs exactly once: the
tokenizer adds no special tokens of its own. Text that spells a control token is encoded as text.

Windows that begin `stride` tokens apart cover documents longer than the window. Each scores only the tokens
that no earlier window scored, so each token is scored exactly once, with at least `window - stride` tokens of
context if the document has that many before it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from emma.base.errors import UserError
from emma.tools.evaluation.journal import DocumentScore

__all__ = ["DocumentScore", "Scorer", "Window", "cut_windows"]

_LOGITS_AT_ONCE = 64 << 20
"""Logits (4 bytes each) held at once; on a CPU, `_LOGITS_IN_CACHE` or those of `_LEAST_POSITIONS`."""

_LOGITS_IN_CACHE, _LEAST_POSITIONS = 2 << 20, 256

_SMALL, _MOST_AT_ONCE = 100_000_000, 8
"""A model of at most so many parameters does not keep several cores busy with one batch; so many languages do."""


_LEAST_FILLED = 0.75
"""Shorter windows than this share of a batch's longest go into the next one: what pads them would cost as much as text."""


@dataclass(frozen=True)
class Window:
    """Ids `[start, end)` are the model's input; ids `[first, end]` are scored, the last beyond the input."""

    document: int
    start: int
    end: int
    first: int


def cut_windows(document: int, length: int, window: int, stride: int) -> Iterator[Window]:
    """Windows over `length` ids (including the prefix) that score ids 1 … length-1 once each.

    Args:
        document: index to give the windows.
        length: number of ids, at least 2.
        window: maximum number of ids in one input.
        stride: ids between the starts of consecutive windows, at most `window`.
    """
    start, first = 0, 1
    while first < length:
        end = min(start + window, length - 1)
        yield Window(document, start, end, first)
        start, first = start + stride, end + 1


class Scorer:
    """Scores documents with a `transformers` causal language model.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: of the same model.
        window: maximum tokens of a document in one forward pass, up to the model's `max_position_embeddings`.
        stride: tokens between the starts of windows; default half the window.
        score_end_of_text: also score the end-of-text token after the document.
        batch_tokens: tokens in one forward pass over several documents, including padding.

    Raises:
        UserError: window or stride is out of range, or the tokenizer lacks a token that is needed.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        window: int,
        stride: int | None = None,
        score_end_of_text: bool = False,
        batch_tokens: int = 8192,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        longest = getattr(model.config, "max_position_embeddings", None) or window
        self.window = window
        self.stride = max(1, window // 2) if stride is None else stride
        if not 1 <= self.window <= longest:
            raise UserError(f"window is {self.window}, but this model takes 1 to {longest} tokens")
        if not 1 <= self.stride <= self.window:
            raise UserError(
                f"stride is {self.stride}, but must be from 1 to the window's {self.window} tokens"
            )
        self.batch_tokens = batch_tokens
        self.score_end_of_text = score_end_of_text
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        if begin is None and end is None:
            raise UserError(
                "the tokenizer has neither a begin-of-text nor an end-of-text token to put before a document"
            )
        if score_end_of_text and end is None:
            raise UserError("the tokenizer has no end-of-text token to score")
        self.prefix = begin if begin is not None else end
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        self._plain_head = self._head_is_plain()
        # A tokenizer must not be called twice at once.
        self._encoding = threading.Lock()

    @property
    def at_once(self) -> int:
        """Calls of `score` that together are faster than one after another: as many as cores, for a small model on a CPU.

        Models whose positions depend on what they have read before take one at a time.
        """
        stateful = any(
            kind in str(getattr(module, "rope_type", ""))
            for module in self.model.modules()
            for kind in ("dynamic", "longrope")
        )
        small = sum(weight.numel() for weight in self.model.parameters()) <= _SMALL
        if self.model.device.type != "cpu" or not small or stateful:
            return 1
        return min(_MOST_AT_ONCE, torch.get_num_threads())

    @property
    def signature(self) -> str:
        """Everything besides model and text that determines a score."""
        prefix = self.tokenizer.convert_ids_to_tokens(self.prefix)
        dtype = str(self.model.dtype).removeprefix("torch.")
        return (
            f"nll:1|prefix:{prefix}|end_of_text:{int(self.score_end_of_text)}"
            f"|window:{self.window}|stride:{self.stride}|dtype:{dtype}"
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of documents, with prefix (and end of text, if it is scored).

        Raises:
            UserError: the tokenizer produces an id for which the model has no embedding.
        """
        if not texts:
            return []
        with self._encoding:
            encoded = self.tokenizer(
                list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False
            )["input_ids"]
        suffix = [self.tokenizer.eos_token_id] if self.score_end_of_text else []
        ids = [[self.prefix, *tokens, *suffix] for tokens in encoded]
        highest = max(max(row) for row in ids)
        if highest >= self._vocabulary:
            raise UserError(
                f"the tokenizer produces id {highest}, but the model has {self._vocabulary} embeddings; "
                "tokenizer and model do not belong together"
            )
        return ids

    @torch.inference_mode()
    def score(self, documents: Sequence[tuple[str, str]]) -> list[DocumentScore]:
        """Scores of `(id, text)` documents, in order.

        Raises:
            UserError: a likelihood is not finite.
        """
        ids = self.encode([text for _, text in documents])
        windows = [
            window
            for index, row in enumerate(ids)
            for window in cut_windows(index, len(row), self.window, self.stride)
        ]
        windows.sort(key=lambda window: window.start - window.end)
        nll = [0.0] * len(documents)
        begin = 0
        while begin < len(windows):
            longest = windows[begin].end - windows[begin].start
            batch = [
                window
                for window in windows[begin : begin + max(1, self.batch_tokens // longest)]
                if window.end - window.start >= _LEAST_FILLED * longest
            ]
            for window, value in zip(batch, self._batch_nll(ids, batch), strict=True):
                nll[window.document] += value
            begin += len(batch)
        scores = []
        for (name, text), row, value in zip(documents, ids, nll, strict=True):
            if not math.isfinite(value):
                raise UserError(
                    f"document {name}: its likelihood is {value}; the model's weights or logits are broken"
                )
            scores.append(DocumentScore(name, len(text.encode()), len(row) - 1, value))
        return scores

    def _batch_nll(self, ids: list[list[int]], batch: list[Window]) -> list[float]:
        """Sum of the negative log-likelihoods of each window, in nats.

        Windows are padded on the right, where a causal model's earlier positions don't see the padding.
        """
        width = max(window.end - window.start for window in batch)
        inputs = torch.zeros(len(batch), width, dtype=torch.long)
        rows, columns, targets = [], [], []
        for index, window in enumerate(batch):
            inputs[index, : window.end - window.start] = torch.tensor(
                ids[window.document][window.start : window.end]
            )
            scored = range(window.first, window.end + 1)
            rows += [index] * len(scored)
            columns += [position - 1 - window.start for position in scored]
            targets += ids[window.document][window.first : window.end + 1]
        where = torch.tensor(rows, device=self.model.device), torch.tensor(columns, device=self.model.device)
        states = self._states(inputs.to(self.model.device))[where]
        losses = self._losses(states, torch.tensor(targets, device=self.model.device))
        sums = torch.zeros(len(batch), dtype=torch.float64)
        return sums.index_add_(0, torch.tensor(rows), losses.double().cpu()).tolist()

    def _states(self, inputs: torch.Tensor) -> torch.Tensor:
        """Last hidden states [rows, width, hidden] if only the output layer follows them, else logits."""
        if self._plain_head:
            hidden: torch.Tensor = self.model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
            return hidden
        logits: torch.Tensor = self.model(input_ids=inputs, use_cache=False).logits
        return logits

    def _losses(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each position, computed in FP32 on one slice of positions at a time."""
        step = max(1, _LOGITS_AT_ONCE // self._vocabulary)
        if states.device.type == "cpu":
            step = min(step, max(_LEAST_POSITIONS, _LOGITS_IN_CACHE // self._vocabulary))
        parts = []
        for begin in range(0, len(targets), step):
            logits = states[begin : begin + step]
            if self._plain_head:
                logits = self.model.get_output_embeddings()(logits)
            parts.append(
                torch.nn.functional.cross_entropy(
                    logits.float(), targets[begin : begin + step], reduction="none"
                )
            )
        return torch.cat(parts)

    @torch.inference_mode()
    def _head_is_plain(self) -> bool:
        """Whether logits are just the output layer of the last hidden state: no soft-capping, no scaling.

        If so, only the scored positions need logits.
        """
        if self.model.get_output_embeddings() is None:
            return False
        inputs = torch.tensor([[self.prefix] * min(4, self.window)], device=self.model.device)
        hidden = self.model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        logits = self.model(input_ids=inputs, use_cache=False).logits
        return bool(torch.equal(self.model.get_output_embeddings()(hidden), logits))
