"""vLLM's engine reads what is exported of each architecture, and computes what the source computes."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from emma.checkpoints_conversion import hf_to_megatron, megatron_to_hf
from tests.checkpoints_conversion.families import CASES, build

pytestmark = pytest.mark.vllm

# Longer than the windows and than the contexts that RoPE was scaled from.
IDS = [(7 * place * place + 3 * place) % 300 + 3 for place in range(90)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Of each case the exported folder, and the log-probability of each id but the first by transformers, in nats.

    All are computed before vLLM starts, which changes classes of transformers in its process. Heads are 32 wide: vLLM's
    attention on the CPU has no narrower ones.
    """
    root = tmp_path_factory.mktemp("vllm")
    result = {}
    for number, (case, (_, values)) in enumerate(CASES.items()):
        model = build(case, hidden_size=128, **({"head_dim": 32} if "head_dim" in values else {}))
        model.set_attn_implementation("eager")
        with torch.no_grad():
            logits = model(torch.tensor([IDS])).logits[0, :-1].double()
        wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
        model.save_pretrained(root / f"{number}-source")
        hf_to_megatron.convert(root / f"{number}-source", root / f"{number}-megatron")
        megatron_to_hf.convert(root / f"{number}-megatron", root / f"{number}")
        result[case] = (root / f"{number}", wanted)
    return result


@pytest.mark.parametrize("case", CASES)
def test_the_engine_computes_what_the_source_does(
    exported: dict[str, tuple[Path, torch.Tensor]], case: str
) -> None:
    vllm: Any = pytest.importorskip("vllm", reason="vLLM is not installed here (make test-vllm brings it)")
    folder, wanted = exported[case]
    engine = vllm.LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=1,
    )
    options = vllm.SamplingParams(prompt_logprobs=0, max_tokens=1, detokenize=False)
    (answer,) = engine.generate([{"prompt_token_ids": IDS}], options, use_tqdm=False)
    found = torch.tensor(
        [scores[token].logprob for scores, token in zip(answer.prompt_logprobs[1:], IDS[1:], strict=True)],
        dtype=torch.float64,
    )
    del engine
    gc.collect()
    # vLLM computes xIELU's two numbers in BF16 whatever the model's format.
    assert (found - wanted).abs().max() < (1e-2 if case.startswith("apertus") else 1e-4)
