"""What an FP8 run releases, on a real GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints_conversion.tiny_models import read_tensors, same_bits
from tests.tools.training.conftest import Small
from tests.tools.training.test_gpu_training import on_gpus, train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "precision",
    [
        "{name: fp8, compute: bf16, fp8: tensorwise, fp8_params: true, first_last_layers_bf16: 1}",
        "{name: fp8, compute: bf16, fp8: delayed, fp8_params: true}",
    ],
)
def test_before_the_first_update_the_base_model_is_released(
    precision: str, make_small: Callable[[int], Small], base_model: Path, tmp_path: Path
) -> None:
    """Warm-up begins at a learning rate of zero, so the first checkpoint holds the weights that the run started from:
    its export is the base model, bit for bit, though the model's own weights are rounded to FP8."""
    from emma.checkpoints_conversion import megatron_to_hf

    kind = precision.split("fp8: ")[1].split(",")[0]
    overrides = (f"precision={precision}", "schedule.warmup_steps=5", "checkpoint.interval=1")
    run = train(on_gpus(make_small(10), f"gpu-release-{kind}", 1, *overrides))
    manifest = megatron_to_hf.convert(run.path, tmp_path / "out", step=1)
    assert manifest.extra["released"]["weights"] == "optimizer"
    assert same_bits(read_tensors(base_model), read_tensors(tmp_path / "out"))
    distance = manifest.extra["released"]["distance"]["kinds"]
    print(f"{kind}: relative RMS of down_proj {distance['down_proj']['relative_rms']:.4f}")
    assert 0.01 < distance["down_proj"]["relative_rms"] < 0.04
    assert distance["embed_tokens"]["not_rounded"] == 0
    megatron_to_hf.convert(run.path, tmp_path / "model", step=1, weights="model")
    rounded = read_tensors(tmp_path / "model")["model.layers.1.mlp.down_proj.weight"]
    assert not torch.equal(rounded.float(), read_tensors(base_model)["model.layers.1.mlp.down_proj.weight"])
