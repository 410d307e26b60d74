"""Stands in for vLLM 0.20.0, which needs a GPU: its signatures and refusals, over `transformers` on the CPU.

Recorded is what lm-eval and this project use: the parameters of `LLM`, `LLM.generate`, `SamplingParams` and their
defaults, which values and prompt lengths are refused, the form of the answers. `test_vllm_record.py` compares the
signatures with vLLM's sources where it is installed.

It cannot show what happens on a GPU: vLLM's kernels and number formats, batching, tensor parallelism, memory, speed, nor
other versions.
"""

from __future__ import annotations

from vllm.engine import LLM
from vllm.outputs import CompletionOutput, Logprob, RequestOutput
from vllm.sampling_params import SamplingParams, TokensPrompt

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput", "SamplingParams", "TokensPrompt"]
