"""Every architecture with Transformer Engine's modules on real GPUs, against the local implementation on the CPU. Each
test prints what it measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from emma.checkpoints_conversion import megatron_to_hf
from tests.checkpoints_conversion.tiny_models import read_tensors
from tests.gpu import require_gpus
from tests.tools.prove.small import Small, make_small, train_faulty
from tests.tools.training.test_gpu_training import BF16, TOLERANCE, train
from tests.training_run import losses

pytestmark = pytest.mark.gpu

STEPS = 4
# One case a switch: biases; norms of queries and keys; windows; layers without RoPE; norms after, and over all heads;
# RoPE by kind; 1 + weight, four norms, tanh GELU; xIELU.
CASES = ["qwen2", "qwen3", "mistral, window", "smollm3", "olmo2", "olmo3", "gemma3", "apertus"]
FP8 = "{name: fp8, compute: bf16, fp8: %s, fp8_params: true, first_last_layers_bf16: 1}"


def _small(folder: Path, case: str) -> Small:
    return make_small(folder, steps=STEPS, length=64, family=case)


def _on_gpus(small: Small, name: str, ranks: int, *overrides: str) -> dict[int, float]:
    cluster = f"cluster={{name: test, gpus_per_node: {ranks}, device: {require_gpus(ranks)}}}"
    return losses(train(small.recipe(name, cluster, *overrides)))


@pytest.mark.parametrize("case", CASES)
def test_transformer_engine_follows_the_local_implementation(case: str, tmp_path: Path) -> None:
    """Masked documents, from an import that holds no extra states; and what it saves can be released."""
    require_gpus()
    small = _small(tmp_path, case)
    local = losses(train_faulty(small.recipe("local")))
    found = _on_gpus(small, "gpu", 1, BF16)
    worst = max(abs(found[step] - loss) for step, loss in local.items())
    print(f"{case}: largest difference of loss, Transformer Engine BF16 − local FP32: {worst:.4f}")
    assert found == pytest.approx(local, abs=TOLERANCE)
    megatron_to_hf.convert(small.recipe("gpu").run_folder, tmp_path / "released")
    base, released = read_tensors(small.huggingface), read_tensors(tmp_path / "released")
    assert {name: tensor.shape for name, tensor in base.items()} == {
        name: tensor.shape for name, tensor in released.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_tensor_parallelism_computes_the_same_loss(case: str, tmp_path: Path) -> None:
    require_gpus(2)
    small = _small(tmp_path, case)
    whole = _on_gpus(small, "gpu-1", 1, BF16)
    cut = _on_gpus(small, "gpu-2", 2, BF16, "parallelism={tensor: 2, sequence: true}")
    assert cut == pytest.approx(whole, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["tensorwise", "delayed"])
@pytest.mark.parametrize("case", ["qwen3", "olmo3", "gemma3", "apertus"])
def test_fp8_learns_as_bf16(case: str, kind: str, tmp_path: Path) -> None:
    """FP8's products are rounded to 3 bits, so the losses are only near."""
    require_gpus(hopper=True)
    small = _small(tmp_path, case)
    plain = _on_gpus(small, "gpu-bf16", 1, BF16)
    precision = (
        FP8 % kind if kind == "tensorwise" else "{name: fp8, compute: bf16, fp8: delayed, fp8_params: true}"
    )
    found = _on_gpus(small, "gpu-fp8", 1, f"precision={precision}")
    worst = max(abs(found[step] - loss) for step, loss in plain.items())
    print(f"{case}, {kind}: largest difference of loss, FP8 − BF16: {worst:.4f}")
    assert all(map(math.isfinite, found.values())) and worst < 0.2
