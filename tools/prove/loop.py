"""The independent loop: transformers' model, torch's AdamW, masks and losses of its own; one device, FP32.

What it does at a step, in plain words:

1. read the global batch's samples in the mix's order;
2. let each position see its own document up to itself (the whole sample up to itself, without document
   masking), with positions counted from the document's start;
3. take the mean cross entropy over all labels of the global batch that are tokens, over the vocabulary without
   padding;
4. scale the gradient down to `optimizer.clip_grad` if its norm over all parameters is larger;
5. one step of AdamW at the step's rate, with decay for matrices (embedding and output layer are matrices too)
   and none for vectors (norms' weights, biases).

A skipped step reads its samples and does none of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from emma.recipes.schema import Recipe
from emma.tools.arithmetic.flops import flops_per_token
from emma.tools.arithmetic.parameters import total_parameters
from emma.tools.prove.begin import Begin
from emma.tools.prove.rates import learning_rate
from emma.tools.prove.samples import NOT_COUNTED, Sample, Samples

__all__ = [
    "Replay",
    "Step",
    "available_bytes",
    "bytes_needed",
    "operations",
    "positions",
    "recomputes",
    "seen",
    "speed",
]

# Positions that go through the model at once: enough to keep a device busy, few enough for an 8B model's logits.
_POSITIONS = 4096
_BYTES = 4  # of an FP32 number


@dataclass(frozen=True)
class Step:
    """What a step came to.

    Attributes:
        step: counted from 1.
        loss: mean over the labels that count, in nats.
        grad_norm: norm of the whole gradient before clipping.
        learning_rate: the rate that its update used.
        tokens: number of labels that count.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int


class Replay:
    """Trains from a beginning; the model is on the CPU until the first call.

    Args:
        recipe: the run's recipe; its model is the one to build.
        samples: the mix.
        begin: weights, moments, and the step before the first.
        device: `cpu` or `cuda`.
    """

    def __init__(self, recipe: Recipe, samples: Samples, begin: Begin, device: str) -> None:
        torch.set_float32_matmul_precision("highest")
        self.recipe, self.samples, self.begin, self.device = recipe, samples, begin, device
        self.model = begin.model(recipe).to(device).train()
        if recomputes(recipe, device):
            for layer in self.model.base_model.layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        self.optimizer = self._adamw()

    def _adamw(self) -> torch.optim.AdamW:
        settings, parameters = self.recipe.optimizer, list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas = (settings.beta1, settings.beta2)
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=settings.epsilon, foreach=False)
        for name, parameter in self.model.named_parameters() if self.begin.has_moments else ():
            first, second = self.begin.moments(name)
            optimizer.state[parameter] = {
                "step": torch.tensor(float(self.begin.adam_updates)),
                "exp_avg": first.to(self.device),
                "exp_avg_sq": second.to(self.device),
            }
        return optimizer

    def steps(
        self, last: int, skip: Collection[int], done: Callable[[int], object] = lambda positions: None
    ) -> Iterator[Step]:
        """Trains to step `last` and yields each step that is not skipped.

        Args:
            last: the last step.
            skip: steps whose samples are passed over.
            done: called with the number of positions just computed.
        """
        updates = self.begin.schedule_updates
        for number in range(self.begin.step + 1, last + 1):
            if number in skip:
                continue
            rate = learning_rate(self.recipe.schedule, updates)
            self.optimizer.zero_grad(set_to_none=True)
            loss, tokens = self.loss(number, backward=True, done=done)
            norm = self._update(rate)
            updates += 1
            yield Step(number, loss, norm, rate, tokens)

    def _update(self, rate: float) -> float:
        """Clips, updates, and returns the gradient's norm before clipping."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        # In double precision: FP32 sums over a million numbers lose what the comparison looks at.
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        bound = self.recipe.optimizer.clip_grad
        if bound and norm > bound:
            for gradient in gradients:
                gradient.mul_(bound / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return norm

    def loss(
        self,
        step: int,
        *,
        backward: bool = False,
        done: Callable[[int], object] = lambda positions: None,
    ) -> tuple[float, int]:
        """Mean loss over the labels of a step's global batch that count, and their number.

        With `backward`, its gradient is added to the parameters'.
        """
        batch = self.recipe.batch.global_
        samples = [self.samples[index] for index in range((step - 1) * batch, step * batch)]
        count = sum(int((sample.labels != NOT_COUNTED).sum()) for sample in samples)
        at_once = max(1, _POSITIONS // self.recipe.batch.sequence_length)
        total = 0.0
        with nullcontext() if backward else torch.no_grad():
            for first in range(0, len(samples), at_once):
                part = samples[first : first + at_once]
                summed = self._summed(part)
                if backward:
                    (summed / count).backward()
                total += float(summed.detach())
                done(len(part) * self.recipe.batch.sequence_length)
        return total / count, count

    def _summed(self, samples: list[Sample]) -> torch.Tensor:
        """Sum of the losses of samples' labels, a scalar."""
        tokens, labels, documents = (
            torch.from_numpy(np.stack([getattr(sample, name) for sample in samples])).to(self.device)
            for name in ("tokens", "labels", "documents")
        )
        if not self.recipe.batch.document_masking:
            documents = torch.zeros_like(documents)
        logits = self.model(
            input_ids=tokens,
            attention_mask=self._masks(documents),
            position_ids=positions(documents),
            use_cache=False,
        ).logits
        return functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=NOT_COUNTED, reduction="sum"
        )

    def _masks(self, documents: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """What each position sees; by kind of layer, under transformers' names, where kinds differ in it."""
        model = self.recipe.model
        kinds, window = set(model.kinds), model.sliding_window
        if "sliding" not in kinds:
            return seen(documents)
        if "layer_kinds" not in model.design.huggingface.keys:
            return seen(documents, window)
        return {"full_attention": seen(documents), "sliding_attention": seen(documents, window)}


def seen(documents: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """Which positions (last axis) each position sees: those of its own document, up to itself.

    Args:
        documents: int64 [samples, length], equal within a document.
        window: how many of them at most, itself included.

    Returns:
        bool [samples, 1, length, length].
    """
    length = documents.shape[1]
    same = documents[:, None, :, None] == documents[:, None, None, :]
    before = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    if window is not None:
        before = before.triu(1 - window)
    return same & before


def positions(documents: torch.Tensor) -> torch.Tensor:
    """Positions counted from each document's start, int64 [samples, length]."""
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def bytes_needed(recipe: Recipe, *, recompute: bool = True) -> int:
    """Memory of the loop at its fullest: weights, gradients and two moments in FP32, and the activations of the
    positions that go through the model at once.

    Args:
        recipe: the run's recipe.
        recompute: whether only each layer's input is kept for the backward pass.
    """
    model, length = recipe.model, recipe.batch.sequence_length
    at_once = min(max(1, _POSITIONS // length), recipe.batch.global_) * length
    # Logits, their softmax and its gradient; the layers' inputs; the insides of layers, forward and backward; masks.
    inside = 2 * (8 * model.hidden_size + 4 * model.ffn_hidden_size)
    numbers = 3 * model.vocab_size + model.layers * model.hidden_size + 2 * length
    numbers += inside * (1 if recompute else model.layers)
    return 4 * _BYTES * total_parameters(model) + _BYTES * at_once * numbers


def recomputes(recipe: Recipe, device: str) -> bool:
    """Whether memory is short enough for layers to be computed again in the backward pass."""
    return bytes_needed(recipe, recompute=False) > available_bytes(device) / 2


def operations(recipe: Recipe, steps: int, device: str) -> float:
    """Floating-point operations of the loop: forward and backward over whole squares of attention scores, the
    recomputed forward pass, and that of one batch before the first step."""
    forward = flops_per_token(recipe.model, recipe.batch.sequence_length, "full") / 3
    return forward * recipe.tokens_per_step * ((4 if recomputes(recipe, device) else 3) * steps + 1)


def speed(device: str) -> float:
    """Operations per second of an FP32 matrix product on the device, measured for a moment."""
    size = 2048 if device == "cuda" else 512
    square = torch.ones(size, size, device=device)
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for _ in range(5):
        finish()
        begun = time.perf_counter()
        (square @ square).sum().item()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def available_bytes(device: str) -> int:
    """Free memory of the device."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    with open("/proc/meminfo", encoding="ascii") as facts:  # noqa: PTH123  not a file on a disk
        lines: dict[str, Any] = dict(line.split(":", 1) for line in facts)
    return int(lines["MemAvailable"].split()[0]) * 1024
