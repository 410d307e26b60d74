"""Main weights in FP8 and with 16-bit moments on a real GPU: those of the import at the start, those of the run in its
checkpoints, and the uninterrupted losses after a resume. Each test prints what it measured."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emma.recipes.schema import Recipe
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import IDENTITY, RunFolder
from tests.gpu import require_gpus, run_on_gpus
from tests.tools.training.conftest import Small
from tests.tools.training.test_gpu_training import BF16, on_gpus, train
from tests.training_run import losses

pytestmark = pytest.mark.gpu

PRECISIONS = {
    "bf16": BF16,
    "tensorwise": "precision={name: fp8, compute: bf16, fp8: tensorwise, fp8_params: true, first_last_layers_bf16: 1}",
    "delayed": "precision={name: fp8, compute: bf16, fp8: delayed, fp8_params: true}",
    "blockwise": "precision={name: fp8, compute: bf16, fp8: blockwise, fp8_format: e4m3, first_last_layers_bf16: 1}",
    "mxfp8": "precision={name: fp8, compute: bf16, fp8: mxfp8, fp8_format: e4m3, fp8_params: true}",
}
MOMENTS = "optimizer={exp_avg_dtype: bf16, exp_avg_sq_dtype: bf16}"
# FP8 in blocks wants multiples of 128.
SHAPE = ("model.hidden_size=128", "model.ffn_hidden_size=256", "batch.micro=4")
EXACT = "environment={NVTE_ALLOW_NONDETERMINISTIC_ALGO: '0'}"


@pytest.fixture(scope="module")
def wide(make_small: Callable[[int], Small], tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, Path]:
    """A base model of `SHAPE` in FP32, imported, with the mix of the other tests; and its Hugging Face folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from emma.checkpoints_conversion.hf_to_megatron import convert

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(config).save_pretrained(folder / "hf")
    convert(folder / "hf", folder / "megatron")
    return Small(make_small(10).folder, folder / "megatron"), folder / "hf"


def recipe_in(small: Small, name: str, precision: str, *overrides: str) -> Recipe:
    import torch

    require_gpus(hopper=precision != "bf16")
    if precision == "mxfp8" and torch.cuda.get_device_capability(0) < (10, 0):
        pytest.skip("needs Blackwell for MXFP8")
    return on_gpus(small, f"gpu-main-{name}-{precision}", 1, PRECISIONS[precision], *SHAPE, *overrides)


def saved_before_the_first_step(folder: str) -> str:
    """In a process of its own: a launch that saves in place of training; returns what FP8 parameters there are."""
    from megatron.core.fp8_utils import is_float8tensor
    from megatron.training import training

    from emma.tools.training.main_weights import main_weights
    from emma.tools.training.worker import train as run_worker

    kinds: list[str] = []

    @functools.wraps(training.train)
    def save(forward: Any, model: Any, optimizer: Any, scheduler: Any, *rest: Any, **named: Any) -> None:
        for share in main_weights(model, optimizer):
            inner = share.owner.optimizer
            if not inner.state[share._inner]:
                inner.initialize_state(share._inner, False)
            if is_float8tensor(share.parameter):
                kinds.append(type(share.parameter).__name__)
        training.save_checkpoint_and_time(
            0, model, optimizer, scheduler, 0, rest[4], train_data_iterator=rest[0]
        )
        raise SystemExit(0)

    training.train = save
    run_worker(Path(folder))
    return ", ".join(sorted(set(kinds))) or "none"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_a_run_stopped_before_its_first_step_is_the_base_model(
    moments: str,
    precision: str,
    wide: tuple[Small, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from safetensors.torch import load_file

    from emma.checkpoints_conversion import megatron_to_hf

    states = [MOMENTS] if moments == "bf16" else []
    recipe = recipe_in(wide[0], f"zero-{moments}", precision, *states)
    run = RunFolder(recipe.run_folder)
    monkeypatch.setenv(IDENTITY, run.prepare(recipe).identity)
    (kinds,) = run_on_gpus(saved_before_the_first_step, 1, tmp_path, str(run.path))
    print(f"{precision}, moments in {moments}: parameters in FP8: {kinds}")
    assert (kinds != "none") == (precision in ("tensorwise", "delayed", "mxfp8"))
    megatron_to_hf.convert(run.path, tmp_path / "hf", step=0, weights="optimizer")
    base = load_file(wide[1] / "model.safetensors")
    released: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "hf").glob("*.safetensors"):
        released |= load_file(file)
    assert base.keys() == released.keys()
    assert not [name for name in base if not torch.equal(base[name].float(), released[name].float())]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_resuming_goes_on_with_the_uninterrupted_losses(
    moments: str, precision: str, wide: tuple[Small, Path]
) -> None:
    small, states = wide[0], [MOMENTS] if moments == "bf16" else []
    whole = train(recipe_in(small, f"whole-{moments}", precision, EXACT, *states))
    start = f"start={{mode: resume, checkpoint: '{whole.path}', step: 5}}"
    again = train(recipe_in(small, f"again-{moments}", precision, EXACT, start, *states))
    peaks = [max(row["memory_gib"] for row in read_metrics(run.metrics_file)[0]) for run in (whole, again)]
    print(f"{precision}, moments in {moments}: peak {peaks[0]:.3f} GiB, after a resume {peaks[1]:.3f} GiB")
    expected = {step: loss for step, loss in losses(whole).items() if step > 5}
    worst = max(abs(losses(again)[step] - loss) for step, loss in expected.items())
    print(f"{precision}, moments in {moments}: largest difference of a loss after the resume {worst:.3g}")
    assert losses(again) == expected
