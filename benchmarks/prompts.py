"""What reading shared prompts once saves, against lm-eval's own batching, interleaved on one model.

    python -m benchmarks.prompts [--items 24] [--rounds 3]

The model is an untrained Llama of about 30 million parameters with 32,768 tokens, on one thread. The items have the
shapes of the benchmarks: prompts of 250 to 320 tokens and labels of one to four (SIB-200, seven; Taxi-1500, six), a
passage with four answers of ten tokens (Belebele with the answers' texts), and with four letters of one token, for which
lm-eval has a short cut of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SHAPES", "measure"]

SHAPES = {
    "SIB-200, 7 labels of 1 to 4 tokens": (270, (3, 1, 1, 2, 1, 2, 4)),
    "Taxi-1500, 6 labels of 1 to 4 tokens": (300, (4, 1, 1, 1, 2, 2)),
    "Belebele, 4 answers of 10 tokens": (260, (10, 9, 12, 10)),
    "Belebele, 4 letters": (260, (1, 1, 1, 1)),
}


def _requests(draw: np.random.Generator, prompt: int, labels: tuple[int, ...], items: int) -> list[Any]:
    requests = []
    for _ in range(items):
        ids = draw.integers(10, 32000, prompt + int(draw.integers(-20, 21))).tolist()
        for count in labels:
            requests.append((("", ""), ids, draw.integers(10, 32000, count).tolist()))
    return requests


def measure(model: Any, items: int, rounds: int) -> dict[str, tuple[float, float, float, float]]:
    """Processor seconds of lm-eval's own rows and of shared prompts (the best of the rounds), and the largest difference of
    a log-likelihood in nats: from rows that were read one by one, and from lm-eval, which adds in FP32."""
    from lm_eval.models.huggingface import HFLM

    found = {}
    for name, (prompt, labels) in SHAPES.items():
        requests = _requests(np.random.default_rng(len(labels)), prompt, labels, items)
        ways: dict[str, Callable[[], list[tuple[float, bool]]]] = {
            "rows": lambda given=requests: HFLM._loglikelihood_tokens(
                model, given, disable_tqdm=True, override_bs=8
            ),
            "shared": lambda given=requests: model._loglikelihood_tokens(given),
        }
        best: dict[str, float] = {}
        values: dict[str, list[float]] = {}
        for _ in range(rounds):
            for way, run in ways.items():
                begin = time.process_time()
                values[way] = [value for value, _ in run()]
                taken = time.process_time() - begin
                best[way] = min(taken, best.get(way, taken))
        alone = [value for request in requests for value, _ in model._loglikelihood_tokens([request])]
        apart = [
            max(abs(a - b) for a, b in zip(others, values["shared"], strict=True))
            for others in (alone, values["rows"])
        ]
        found[name] = best["rows"], best["shared"], *apart
    return found


def main() -> None:
    """Prints a table."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from emma.tools.evaluation.benchmarks.backends import ModelSettings, load_backend
    from tests.tools.evaluation.tiny_model import write_tokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=24, help="items of each benchmark")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repetitions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tokenizer(folder)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32768,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        model = load_backend(folder, ModelSettings(device="cpu", batch_size=None), 1024)
    print(
        "| items | lm-eval's rows, s | shared prompts, s | times faster | from single rows, nats | from lm-eval, nats |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, (rows, shared, *apart) in measure(model, options.items, options.rounds).items():
        differences = " | ".join(f"{each:.1e}" for each in apart)
        print(f"| {name} | {rows:.2f} | {shared:.2f} | {rows / shared:.1f} | {differences} |", flush=True)


if __name__ == "__main__":
    main()
