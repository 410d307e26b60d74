"""The trainer on real GPUs with Transformer Engine: layouts, context parallelism, FP8, 16-bit states, saving
in the background. Each test prints what it measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from emma.base.files import read_json
from emma.recipes.schema import Recipe
from emma.tools.runs.checkpoints import complete_steps
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from emma.tools.training.launch import train_here
from tests.gpu import require_gpus
from tests.tools.training.conftest import Small
from tests.tools.training.samples import validation_samples
from tests.training_run import losses, train_run, validation

pytestmark = pytest.mark.gpu

BF16 = "precision={name: bf16, compute: bf16}"
# Loss in BF16 against another order of the same sums; the differences seen between layouts in FP32 are below
# 1e-5.
TOLERANCE = 0.03


def on_gpus(small: Small, name: str, ranks: int, *overrides: str, start: str = "weights") -> Recipe:
    cluster = f"cluster={{name: test, gpus_per_node: {ranks}, device: {require_gpus(ranks)}}}"
    return small.recipe(name, cluster, BF16, *overrides, start=start)


def train(recipe: Recipe) -> RunFolder:
    """`emma train`: torchrun and real processes."""
    run = RunFolder(recipe.run_folder)
    train_here(recipe, run, run.prepare(recipe))
    return run


@pytest.fixture(scope="module")
def one_gpu(make_small: Callable[[int], Small]) -> RunFolder:
    return train(on_gpus(make_small(10), "gpu-1", 1))


def test_transformer_engine_follows_the_local_implementation(
    one_gpu: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """Packed sequences in BF16 on a GPU against dense masks in FP32 on the CPU, same weights and samples."""
    local = train_run(make_small(10).recipe("local"))
    worst = max(abs(losses(one_gpu)[step] - loss) for step, loss in losses(local).items())
    print(f"largest difference of loss, Transformer Engine BF16 − local FP32: {worst:.4f}")
    assert losses(one_gpu) == pytest.approx(losses(local), abs=TOLERANCE)
    assert validation(one_gpu)[0] == pytest.approx(validation(local)[0], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("ranks", "parallelism"),
    [
        (2, "{tensor: 2, sequence: true}"),
        (2, "{pipeline: 2}"),
        (2, "{overlap_grad_reduce: true, overlap_param_gather: true}"),
        (2, "{pipeline: 2, virtual_pipeline: 2}"),
        (4, "{tensor: 2, pipeline: 2, sequence: true}"),
    ],
)
def test_layouts_agree(
    ranks: int, parallelism: str, one_gpu: RunFolder, make_small: Callable[[int], Small]
) -> None:
    require_gpus(ranks)
    name = "gpu-" + "".join(letter if letter.isalnum() else "-" for letter in parallelism)
    run = train(on_gpus(make_small(10), name, ranks, f"parallelism={parallelism}"))
    assert losses(run) == pytest.approx(losses(one_gpu), abs=TOLERANCE)


def test_context_parallelism_computes_the_same_loss(make_small: Callable[[int], Small]) -> None:
    require_gpus(2)
    small = make_small(10)
    whole = train(on_gpus(small, "gpu-cp1", 1, "batch.document_masking=false"))
    cut = train(on_gpus(small, "gpu-cp2", 2, "batch.document_masking=false", "parallelism={context: 2}"))
    assert losses(cut) == pytest.approx(losses(whole), abs=TOLERANCE)


@pytest.mark.parametrize(
    ("ranks", "parallelism"),
    [
        (2, "{context: 2}"),
        (4, "{context: 4}"),
        (4, "{context: 2, tensor: 2, sequence: true}"),
        (4, "{context: 2, pipeline: 2}"),
    ],
)
def test_masked_documents_have_the_loss_of_one_rank(
    ranks: int, parallelism: str, one_gpu: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """The launch itself compares attention and its gradients before the first step (`session/context.py`)."""
    require_gpus(ranks)
    name = "gpu-masked-" + "".join(letter if letter.isalnum() else "-" for letter in parallelism)
    run = train(on_gpus(make_small(10), name, ranks, "batch.micro=1", f"parallelism={parallelism}"))
    worst = max(abs(losses(run)[step] - loss) for step, loss in losses(one_gpu).items())
    print(f"{parallelism}: largest difference of loss from one GPU's {worst:.4f}")
    assert losses(run) == pytest.approx(losses(one_gpu), abs=TOLERANCE)
    assert validation(run)[10] == pytest.approx(validation(one_gpu)[10], abs=TOLERANCE)


def test_resuming_repeats_the_losses(one_gpu: RunFolder, make_small: Callable[[int], Small]) -> None:
    """From the checkpoint of step 5, to the last digit: flash attention is run in its deterministic form."""
    environment = "environment={NVTE_ALLOW_NONDETERMINISTIC_ALGO: '0'}"
    small = make_small(10)
    first = train(on_gpus(small, "gpu-whole", 1, environment))
    start = f"start={{mode: resume, checkpoint: '{first.path}', step: 5}}"
    again = train(on_gpus(small, "gpu-resumed", 1, environment, start))
    assert losses(again) == {step: loss for step, loss in losses(first).items() if step > 5}


def test_16_bit_states_and_saving_in_the_background(
    one_gpu: RunFolder, make_small: Callable[[int], Small]
) -> None:
    states = "optimizer={exp_avg_dtype: bf16, exp_avg_sq_dtype: bf16}"
    run = train(on_gpus(make_small(10), "gpu-states", 1, states, "checkpoint.asynchronous=true"))
    assert losses(run) == pytest.approx(losses(one_gpu), abs=TOLERANCE)
    assert complete_steps(run.checkpoints) == [5, 10]


def transformers_losses(
    model_folder: Path, samples: dict[str, list[dict[str, object]]], end: int
) -> dict[str, float]:
    """Mean loss of each group, document by document, in FP32."""
    import torch
    from transformers import AutoModelForCausalLM

    from emma.tools.training.reference import _token_losses

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    found = {}
    for group, members in samples.items():
        total = count = 0.0
        for sample in members:
            with torch.no_grad():
                loss = _token_losses(model, sample, end, "cpu")
            total += float((loss * sample["loss_mask"]).sum())
            count += float(sample["loss_mask"].sum())  # type: ignore[attr-defined]
        found[group] = total / count
    return found


@pytest.mark.parametrize(
    "precision",
    [
        "{name: fp8, compute: bf16, fp8: tensorwise, fp8_params: true, first_last_layers_bf16: 1}",
        "{name: fp8, compute: bf16, fp8: delayed, fp8_params: true}",
        "{name: fp8, compute: bf16, fp8: blockwise, fp8_format: e4m3, first_last_layers_bf16: 1}",
    ],
)
def test_an_fp8_trained_checkpoint_becomes_a_hugging_face_model(
    precision: str, make_small: Callable[[int], Small], tmp_path: Path
) -> None:
    """The exported model has the loss that the run measured at its end, within what FP8 products differ from
    FP32's."""
    from emma.checkpoints_conversion import megatron_to_hf
    from emma.tools.training.dataset import read_mix

    require_gpus(hopper=True)
    kind = precision.split("fp8: ")[1].split(",")[0].rstrip("}")
    # FP8 in blocks wants multiples of 128.
    shape = ("model.hidden_size=128", "model.ffn_hidden_size=256", "batch.micro=4", "validation.samples=null")
    recipe = on_gpus(
        make_small(10),
        f"gpu-{kind}",
        1,
        *shape,
        f"precision={precision}",
        "start.mode=scratch",
        start="scratch",
    )
    run = train(recipe)
    mix = read_mix(recipe.mix_folder)
    samples = validation_samples(recipe.mix_folder, mix.sequence_length)
    for weights in ("model", "optimizer"):
        out = tmp_path / weights
        megatron_to_hf.convert(run.path, out, weights=weights)
        exported = transformers_losses(out, samples, mix.end_id)
        measured = validation(run)[10]
        worst = max(abs(exported[group] - measured[group]) for group in measured)
        print(f"{kind}, {weights} weights: largest difference of a group's loss {worst:.4f}")
        assert worst < 0.05


def test_the_metrics_are_a_gpus(one_gpu: RunFolder) -> None:
    rows = read_metrics(one_gpu.metrics_file)[0]
    assert all(row["memory_gib"] > 0 and row["mfu"] > 0 for row in rows)
    assert read_json(one_gpu.environment_file)["hardware"]["gpus"]
    last = rows[-1]
    print(f"{last['tokens_per_second_per_gpu']:,.0f} tokens/s, {last['memory_gib']:.2f} GiB")
