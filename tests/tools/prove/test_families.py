"""Every architecture in Megatron's real loop, at tensor 2 × pipeline 2 with sequence parallelism and masked documents,
proven step by step by transformers' model: losses, gradients' norms and updates; then resumed to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.checkpoints_conversion import megatron_to_hf
from tests.checkpoints_conversion.families import CASES
from tests.checkpoints_conversion.tiny_models import read_tensors, same_bits
from tests.tools.prove.small import make_small, train_faulty
from tests.tools.prove.test_proof import proof

LAYOUT = (
    "cluster.gpus_per_node=4",
    "parallelism={tensor: 2, pipeline: 2, sequence: true}",
    "checkpoint.interval=2",
    # One sample's documents are shorter than it, windows are shorter than documents.
    "batch.micro=1",
)
STEPS = 4
# Tensor parallelism needs as many query groups.
TWO_GROUPS = {name: {"num_key_value_heads": 2} for name in ("qwen3 tied, head width",)}
FAST = "gemma3"


@pytest.mark.parametrize(
    "case", [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_the_real_loop_is_transformers_model(case: str, tmp_path: Path) -> None:
    small = make_small(tmp_path, steps=STEPS, length=64, family=case, **TWO_GROUPS.get(case, {}))
    train_faulty(small.recipe("run", *LAYOUT))
    verdict = proof(small, "run", *LAYOUT, steps=STEPS)
    assert verdict.passed, verdict
    assert max(abs(row.loss_difference) for row in verdict.rows) < 1e-5
    assert max(abs(row.norm_difference) for row in verdict.rows) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["smollm3", "olmo3", "gemma3"])
def test_interleaved_pipelines_know_which_layer_is_which(case: str, tmp_path: Path) -> None:
    """Kinds of layers follow the number in the whole model, not in a rank's part of it."""
    layout = (*LAYOUT, "parallelism.virtual_pipeline=2")
    small = make_small(tmp_path, steps=STEPS, length=64, family=case)
    train_faulty(small.recipe("run", *layout))
    verdict = proof(small, "run", *layout, steps=STEPS)
    assert verdict.passed, verdict
    assert max(abs(row.loss_difference) for row in verdict.rows) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen2", "smollm3", "olmo3", "gemma3", "apertus"])
def test_resuming_repeats_the_unbroken_run(case: str, tmp_path: Path) -> None:
    """One case a switch; the released weights are the same bit for bit."""
    small = make_small(tmp_path, steps=STEPS, length=64, family=case)
    whole = train_faulty(small.recipe("whole", *LAYOUT))
    start = f"start={{mode: resume, checkpoint: '{whole.path}', step: 2}}"
    again = train_faulty(small.recipe("again", *LAYOUT, start))
    exported = []
    for run in (whole, again):
        megatron_to_hf.convert(run.path, tmp_path / f"{run.path.name}-hf", step=STEPS)
        exported.append(read_tensors(tmp_path / f"{run.path.name}-hf"))
    assert same_bits(*exported)
