"""The model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm.outputs import CompletionOutput, Logprob, RequestOutput
from vllm.sampling_params import SamplingParams, TokensPrompt

__all__ = ["LLM"]

_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
_ENGINE_ARGS = {"max_model_len", "max_num_seqs", "enable_lora", "max_lora_rank"}
"""Names among the many of `EngineArgs` that lm-eval passes through `**kwargs`; any other is refused, as there."""


class LLM:
    """A model that answers requests."""

    def __init__(
        self,
        model: str,
        *,
        runner: str = "auto",
        convert: str = "auto",
        tokenizer: str | None = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        chat_template: Path | str | None = None,
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        cpu_offload_gb: float = 0,
        offload_group_size: int = 0,
        offload_num_in_group: int = 1,
        offload_prefetch_step: int = 1,
        offload_params: set[str] | None = None,
        enforce_eager: bool = False,
        enable_return_routed_experts: bool = False,
        disable_custom_all_reduce: bool = False,
        hf_token: bool | str | None = None,
        hf_overrides: Any = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        pooler_config: Any = None,
        structured_outputs_config: Any = None,
        profiler_config: Any = None,
        attention_config: Any = None,
        kv_cache_memory_bytes: int | None = None,
        compilation_config: Any = None,
        quantization_config: Any = None,
        logits_processors: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in kwargs.keys() - _ENGINE_ARGS:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument '{name}'")
        if dtype not in _DTYPES:
            raise ValueError(f"Unknown dtype: {dtype!r}")
        self.tensor_parallel_size, self.seed = tensor_parallel_size, seed
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer or model)
        derived = self._model.config.max_position_embeddings
        longest = kwargs.get("max_model_len") or derived
        if longest > derived:
            raise ValueError(
                f"User-specified max_model_len ({longest}) is greater than the derived max_model_len ({derived})"
            )
        config = SimpleNamespace(max_model_len=longest, trust_remote_code=trust_remote_code, dtype=dtype)
        self.llm_engine = SimpleNamespace(model_config=config)
        # What requests without their own seed draw from, in turn.
        self._shared = torch.Generator().manual_seed(seed)

    def generate(
        self,
        prompts: Sequence[TokensPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        priority: list[int] | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to prompts, in their order."""
        params = sampling_params or SamplingParams()
        paired = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(paired) != len(prompts):
            raise ValueError(
                f"The lengths of prompts ({len(prompts)}) and params ({len(paired)}) must be the same."
            )
        return [
            self._answer(str(number), prompt["prompt_token_ids"], one)
            for number, (prompt, one) in enumerate(zip(prompts, paired, strict=True))
        ]

    def _answer(self, request: str, ids: list[int], params: SamplingParams) -> RequestOutput:
        longest = self.llm_engine.model_config.max_model_len
        if not ids:
            raise ValueError("The decoder prompt cannot be empty")
        if len(ids) > longest:
            raise ValueError(
                f"The decoder prompt (length {len(ids)}) is longer than the maximum model length of {longest}."
            )
        if len(ids) == longest:
            raise ValueError(
                f"The decoder prompt (length {len(ids)}) plus the number of requested output tokens (at least 1) is "
                f"longer than the maximum model length of {longest}."
            )
        if max(ids) >= self._model.config.vocab_size:
            raise ValueError(f"Token id {max(ids)} is out of vocabulary")
        logprobs = None
        if params.prompt_logprobs is not None:
            logprobs = self._prompt_logprobs(ids, params.prompt_logprobs)
        return RequestOutput(request, ids, logprobs, [self._completion(ids, params)])

    def _logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self._model(torch.tensor([ids])).logits[0].float()

    def _prompt_logprobs(self, ids: list[int], count: int) -> list[dict[int, Logprob] | None]:
        rows: list[dict[int, Logprob] | None] = [None]
        for token, row in zip(ids[1:], self._logits(ids)[:-1].log_softmax(-1), strict=True):
            best = row.topk(count).indices.tolist() if count else []
            rows.append(
                {one: Logprob(float(row[one]), int((row > row[one]).sum()) + 1) for one in [token, *best]}
            )
        return rows

    def _completion(self, ids: list[int], params: SamplingParams) -> CompletionOutput:
        room = self.llm_engine.model_config.max_model_len - len(ids)
        generator = self._shared if params.seed is None else torch.Generator().manual_seed(params.seed)
        made: list[int] = []
        text, end = "", self._tokenizer.eos_token_id
        for _ in range(min(room, params.max_tokens or room)):
            made.append(self._next(self._logits(ids + made)[-1], params, generator))
            if params.detokenize:
                text = self._tokenizer.decode(made, skip_special_tokens=params.skip_special_tokens)
            found = [place for stop in params.stop or () if (place := text.find(stop)) >= 0]
            if found:
                return CompletionOutput(0, text[: min(found)], made, "stop")
            if made[-1] == end and not params.ignore_eos:
                return CompletionOutput(0, text, made, "stop")
        return CompletionOutput(0, text, made, "length")

    def _next(self, logits: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> int:
        if params.temperature == 0:
            return int(logits.argmax())
        shares, order = (logits / params.temperature).softmax(-1).sort(descending=True)
        shares[shares.cumsum(0) - shares >= params.top_p] = 0
        return int(order[torch.multinomial(shares, 1, generator=generator)])
