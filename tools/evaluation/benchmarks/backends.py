"""Models for lm-eval by `transformers` or vLLM, with two request types that lm-eval gets wrong or lacks.

`exact_rolling` scores a text after exactly one begin-of-text token: lm-eval (`loglikelihood_rolling`) lets the tokenizer add
another one after the prefix and scores it (lm-evaluation-harness #3333). `last_token` compares the last
tokens of labels at one position.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emma.base.errors import UserError
from emma.tools.evaluation.likelihood import cut_windows
from emma.tools.inspection.models import loading, model_options

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

__all__ = ["LAST_TOKEN", "ROLLING", "SAMPLE", "ModelSettings", "load_backend"]

LAST_TOKEN = "last_token"
ROLLING = "exact_rolling"
SAMPLE = "sample"
"""Option of a generation: its number among the samples for a prompt."""

_LONGEST = 4096
"""Maximum window for likelihoods, in tokens, so that models with longer contexts stay comparable."""


_GPU_TOKENS, _CPU_TOKENS = 32768, 4096


@dataclass(frozen=True)
class ModelSettings:
    """How to run a model.

    Attributes:
        backend: `hf` or `vllm`.
        device: torch device (hf); default the GPU if there is one, else the CPU.
        dtype: number format; default the checkpoint's on a GPU, float32 on a CPU.
        batch_size: requests per batch (hf); None: as many as fit a budget of tokens.
        tensor_parallel: GPUs that share the model (vllm).
        max_length: tokens of context; default what the model takes, at most 8192.
        seed: seed of sampled answers.
    """

    backend: str = "hf"
    device: str | None = None
    dtype: str | None = None
    batch_size: int | None = 8
    tensor_parallel: int = 1
    max_length: int | None = None
    seed: int = 42

    @property
    def place(self) -> str:
        """The torch device that is meant."""
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def budget(self) -> int:
        """Tokens of an automatic batch, padding included."""
        return _GPU_TOKENS if self.place.startswith("cuda") else _CPU_TOKENS


class Exact:
    """Additional requests for lm-eval's `TemplateLM`, built on its tokenizer and token-level scoring."""

    # Provided by lm-eval's class.
    tokenizer: Any
    max_length: int
    prefix_token_id: int
    tok_encode: Callable[..., list[int]]
    _loglikelihood_tokens: Callable[..., list[tuple[float, bool]]]

    @property
    def window(self) -> int:
        """Tokens per window of rolling likelihoods."""
        return min(self.max_length, _LONGEST)

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, none added by the tokenizer; text that spells a control token stays text."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        )["input_ids"]
        return ids

    def exact_rolling(self, requests: list[Instance]) -> list[Any]:
        """(negative log-likelihood in nats, scored tokens) of each text, scoring each token once.

        The prefix is never scored.

        Windows begin half a window apart, so that each token has at least half a window of context, if the
        text has that much before it.
        """
        pieces: list[Any] = []
        owners: list[int] = []
        tokens = []
        for number, plain in enumerate(self.plain_ids([request.args[0] for request in requests])):
            ids = [self.prefix_token_id, *plain]
            tokens.append(len(ids) - 1)
            for window in cut_windows(number, len(ids), self.window, max(1, self.window // 2)):
                pieces.append((None, ids[window.start : window.first], ids[window.first : window.end + 1]))
                owners.append(number)
        nll = [0.0] * len(requests)
        for owner, (value, _) in zip(
            owners, self._loglikelihood_tokens(pieces, disable_tqdm=True) if pieces else (), strict=True
        ):
            nll[owner] -= value
        return list(zip(nll, tokens, strict=True))

    def last_token(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of the last token of each request's label, right after the prompt.

        A request's arguments are the prompt, the label (with its delimiter) and the maximum number of prompt
        tokens; longer prompts are cut at the end (None: never cut).
        """
        pieces = []
        for request in requests:
            prompt, label, longest = request.args
            ids = self.tok_encode(prompt)[:longest]
            pieces.append(((prompt, label), ids, [self.tokenizer(label)["input_ids"][-1]]))
        return [value for value, _ in self._loglikelihood_tokens(pieces, disable_tqdm=True)]


def load_backend(folder: Path, settings: ModelSettings, longest: int) -> Any:
    """Loads a folder as an lm-eval language model, never from the network.

    Args:
        folder: holds config, weights and tokenizer.
        settings: how to run the model.
        longest: maximum tokens of context that the model takes.

    Raises:
        UserError: the context is too long, or the backend is not installed or cannot load the model.
    """
    window = settings.max_length or min(longest, 8192)
    if window > longest:
        raise UserError(f"--max-length {window}: this model takes at most {longest} tokens")
    with loading(folder, settings.backend):
        return (_vllm if settings.backend == "vllm" else _hf)(folder, settings, window)


def _hf(folder: Path, settings: ModelSettings, window: int) -> Any:
    dtype = settings.dtype or ("float32" if settings.place == "cpu" else "auto")
    return _hf_class()(
        pretrained=str(folder.resolve()),
        **model_options(folder),
        device=settings.place,
        dtype=dtype,
        # Log-likelihoods in FP32, whatever the format of the weights.
        softmax_dtype="float32",
        batch_size=settings.batch_size or 1,
        max_length=window,
        automatic=settings.batch_size is None,
        budget=settings.budget,
    )


@functools.cache
def _hf_class() -> Any:
    from lm_eval.models.huggingface import HFLM

    class HuggingFace(Exact, HFLM):
        """Runs a model with `transformers`; likelihoods read what requests share once (`prefixes.Reader`).

        With `automatic`, batches are filled up to a budget of tokens, by length.
        """

        def __init__(self, *, automatic: bool, budget: int, **options: Any) -> None:
            super().__init__(**options)
            from emma.tools.evaluation.benchmarks.prefixes import Reader

            self.automatic, self.budget = automatic, budget
            self.reader = Reader(self.model, self.budget, None if automatic else options["batch_size"])

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            from emma.tools.evaluation.benchmarks.prefixes import Row

            rows = []
            for number, (_, context, continuation) in enumerate(requests):
                # Too long requests lose their beginning, as lm-eval cuts them.
                ids = (*context, *continuation)[-(self.max_length + 1) :]
                rows.append(Row(number, tuple(ids), max(1, len(ids) - len(continuation))))
            return self.reader.score(rows)

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            if self.automatic and requests:
                longest = max(len(self.tok_encode(request.args[0])) for request in requests)
                new = max(int(request.args[1].get("max_gen_toks", 256)) for request in requests)
                self.batch_size_per_gpu = max(1, self.budget // min(self.max_length, longest + new))
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop(SAMPLE, None)  # torch's generator goes on from one sample to the next
            found = super()._model_generate(context, *args, **kwargs)
            # Every row of a batch goes on until its last answer ends; the last token is never read.
            rows, new = context.shape[0], found.shape[1] - context.shape[1]
            self.reader.forwarded += int(kwargs["attention_mask"].sum()) + rows * (new - 1)
            return found

    return HuggingFace


def _vllm(folder: Path, settings: ModelSettings, window: int) -> Any:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError("vllm is not installed: install it in this environment, or use --backend hf")
    model_options(folder)  # vLLM takes its own, and loads by file name what these refuse
    return _vllm_class(settings.seed)(
        pretrained=str(folder.resolve()),
        trust_remote_code=False,
        dtype=settings.dtype or "auto",
        tensor_parallel_size=settings.tensor_parallel,
        max_model_len=window,
        seed=settings.seed,
        batch_size="auto",
    )


@functools.cache
def _vllm_class(sampling_seed: int) -> Any:
    from lm_eval.models.vllm_causallms import VLLM

    class Vllm(Exact, VLLM):
        """Runs a model with vLLM. Sampled answers get a seed, so that none depends on its batch."""

        @property
        def window(self) -> int:
            # vLLM reserves a position for the token it generates, and the last input is context for nothing.
            return min(self.max_length - 2, _LONGEST)

        @staticmethod
        def modify_gen_kwargs(*args: Any, **kwargs: Any) -> Any:
            values, until, longest = VLLM.modify_gen_kwargs(*args, **kwargs)
            number = int(values.pop(SAMPLE, 0))
            if values.get("temperature"):
                # Each sample its own, or all answers to a prompt were the same.
                values["seed"] = sampling_seed + number
            return values, until, longest

    return Vllm


def shorten(lm: Any, texts: Sequence[str], longest: Sequence[int]) -> list[str]:
    """Beginnings of texts, with at most `longest` tokens each; no character is cut in two."""
    cut = []
    for text, ids, most in zip(texts, lm.plain_ids(texts), longest, strict=True):
        if len(ids) > most:
            text = lm.tokenizer.decode(ids[: max(0, most)], skip_special_tokens=False).rstrip("\ufffd")
        cut.append(text)
    return cut
