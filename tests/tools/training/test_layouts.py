"""The same base model and mix give the same losses in every layout, with Megatron's real loop on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from emma.base.files import read_json
from emma.recipes.load import load_recipe
from emma.tools.mix.layout import read_mix
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from tests.tools.training.conftest import Small
from tests.training_run import losses, train_run, validation

LAYOUTS = {
    "tp2": (2, "{tensor: 2, sequence: true}"),
    "pp2": (2, "{pipeline: 2}"),
    "tp2-pp2": (4, "{tensor: 2, pipeline: 2, sequence: true}"),
    "pp2-vpp2": (2, "{pipeline: 2, virtual_pipeline: 2}"),
    "dp2": (2, "{}"),
    "cp2": (2, "{context: 2}"),
    "mlp-twice": (1, "{recompute: selective, recompute_modules: [core_attn, mlp]}"),
}

GUARDED = ("guard={groups: {component-monolingual: 1.0}}", "validation.samples=120")


def documents(run: RunFolder) -> list[float]:
    """Loss of each document of the guarded group at step 0."""
    return list(read_json(run.guard_base_file)["groups"]["component-monolingual"]["nats"])


@pytest.fixture(scope="module")
def reference(make_small: Callable[[int], Small]) -> RunFolder:
    """One rank, with TensorBoard, and two groups that are watched: one must not get worse, one must gain five
    bits per byte."""
    watched = "validation.alert_above={component-monolingual: 0.1, component-bilingual: -5.0}"
    return train_run(make_small(10).recipe("tp1-pp1", "logging.tensorboard=true", watched, *GUARDED))


def test_the_loss_falls(reference: RunFolder) -> None:
    course = losses(reference)
    assert sorted(course) == list(range(1, 11))
    assert course[10] < course[1] - 0.1


SLOW_LAYOUTS = {
    "tp2-cp2": (4, "{tensor: 2, sequence: true, context: 2}"),
    "pp2-cp2": (4, "{pipeline: 2, context: 2}"),
    "pp2-vpp2-cp2": (4, "{pipeline: 2, virtual_pipeline: 2, context: 2}"),
    "cp2-attention-twice": (2, "{context: 2, recompute: selective}"),
    "cp4-layers-twice": (4, "{context: 4, recompute: full}"),
}


@pytest.mark.parametrize(
    "name", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_LAYOUTS)]
)
def test_layouts_agree(name: str, reference: RunFolder, make_small: Callable[[int], Small]) -> None:
    ranks, parallelism = (LAYOUTS | SLOW_LAYOUTS)[name]
    recipe = make_small(10).recipe(
        name, f"cluster.gpus_per_node={ranks}", f"parallelism={parallelism}", *GUARDED
    )
    run = train_run(recipe)
    assert losses(run) == pytest.approx(losses(reference), abs=1e-4)
    assert len(documents(run)) >= 20 and documents(run) == pytest.approx(documents(reference), rel=1e-5)
    for step, groups in validation(reference).items():
        assert validation(run)[step] == pytest.approx(groups, abs=1e-4)


@pytest.mark.parametrize(
    ("ranks", "padding"), [pytest.param(1, 80, marks=pytest.mark.slow), pytest.param(2, 448)]
)
def test_a_padded_vocabulary_has_no_part_in_the_loss(
    ranks: int, padding: int, reference: RunFolder, make_small: Callable[[int], Small]
) -> None:
    """512 tokens in 560 and 896 rows: without the mask each padded row would add exp(0) to the softmax."""
    layout = (
        f"cluster.gpus_per_node={ranks}",
        f"parallelism.tensor={ranks}",
        f"model.vocab_padding={padding}",
    )
    run = train_run(make_small(10).recipe(f"padded-{ranks}", *layout, "validation.groups=[]"))
    assert losses(run) == pytest.approx(losses(reference), abs=1e-4)


def test_bf16_trains(make_small: Callable[[int], Small]) -> None:
    course = losses(train_run(make_small(10).recipe("bf16", "precision={name: bf16, compute: bf16}")))
    assert course[10] < course[1] - 0.1


def test_the_run_folder_holds_what_others_read(reference: RunFolder) -> None:
    rows, checks = read_metrics(reference.metrics_file)
    assert {
        "step",
        "consumed_samples",
        "consumed_tokens",
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens_per_second_per_gpu",
        "tflops_per_gpu_causal",
        "mfu",
        "memory_gib",
        "data_wait_ms",
        "skipped",
    } == set(rows[0])
    assert rows[-1]["consumed_samples"] == 80 and rows[-1]["consumed_tokens"] == 80 * 32
    assert [row["step"] for row in checks] == [0, 10]
    assert all(row["tokens_per_second_per_gpu"] > 0 for row in rows)
    mark = read_json(reference.checkpoints / "iter_0000010" / "complete.json")
    assert mark["step"] == 10 and mark["consumed_tokens"] == 80 * 32 and mark["files"]
    assert read_json(reference.read_launch().state_file)["state"] == "finished"


def test_groups_that_break_their_bound_mark_the_run(reference: RunFolder) -> None:
    (alert,) = [orjson.loads(line) for line in reference.alerts_file.read_bytes().splitlines()]
    checks = validation(reference)
    nats = checks[10]["component-bilingual"] - checks[0]["component-bilingual"]
    group = read_mix(load_recipe(str(reference.path)).mix_folder).groups["component-bilingual"]
    rise = nats / math.log(2) / group["bytes_per_token"]
    assert 1 < group["bytes_per_token"] < 10
    assert alert == {"step": 10, "group": "component-bilingual", "rise": rise, "above": -5.0, "since": 0}


def test_tensorboard_has_losses_and_every_validation_group(reference: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(reference.tensorboard)).Reload()
    logged = {event.step: event.value for event in events.Scalars("lm loss")}
    assert logged == pytest.approx(losses(reference), rel=1e-6)
    for group in validation(reference)[10]:
        assert [event.step for event in events.Scalars(f"validation/{group}")] == [0, 10]


def test_weights_and_biases_offline(make_small: Callable[[int], Small]) -> None:
    """The real package, without a network."""
    pytest.importorskip("wandb")
    given = (
        "logging.wandb_project=test",
        "logging.wandb_offline=true",
        "schedule={steps: 3, learning_rate: 1e-3, warmup_steps: 0}",
    )
    run = train_run(make_small(10).recipe("wandb", *given))
    (folder,) = (run.path / "wandb").rglob("offline-run-*")
    (record,) = folder.glob("run-*.wandb")
    content = record.read_bytes()
    for name in ("tokens_per_second_per_gpu", "validation/component-monolingual", "lm loss"):
        assert name.encode() in content


def test_warmup_starts_the_learning_rate_at_zero_and_decay_ends_at_the_minimum(reference: RunFolder) -> None:
    rate = {row["step"]: row["learning_rate"] for row in read_metrics(reference.metrics_file)[0]}
    assert rate[1] == 0 and rate[2] == pytest.approx(1.5e-3) and rate[3] == pytest.approx(3e-3)
    assert 1e-4 <= rate[10] < 5e-4


def test_validation_equals_a_direct_sum_with_transformers(
    make_small: Callable[[int], Small], base_model: Path
) -> None:
    """Mean over the tokens of each group, and sums by document, before the first step, against `transformers` sample by
    sample."""
    import torch
    from transformers import LlamaForCausalLM

    from tests.tools.training.samples import validation_samples

    small = make_small(10)
    layout = [
        "cluster.gpus_per_node=4",
        "parallelism={tensor: 2, pipeline: 2}",
        "batch.document_masking=false",
        "validation.samples=null",
        "schedule={steps: 1, learning_rate: 1e-3, warmup_steps: 0}",
        GUARDED[0],
    ]
    recipe = small.recipe("unmasked", *layout)
    run = train_run(recipe)
    ours = validation(run)[0]
    model = LlamaForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    for group, samples in validation_samples(recipe.mix_folder, 32).items():
        total = count = 0.0
        lengths = read_rows(recipe.mix_folder / "validation" / group)
        row_of = np.repeat(np.arange(len(lengths)), lengths)[:-1]  # the stream's last token is a label only
        by_document = np.zeros(len(lengths))
        for number, sample in enumerate(samples):
            with torch.no_grad():
                logits = model(sample["tokens"][None]).logits[0]
            loss = torch.nn.functional.cross_entropy(logits, sample["labels"], reduction="none")
            total += float((loss * sample["loss_mask"]).sum())
            count += float(sample["loss_mask"].sum())
            here = row_of[number * 32 : (number + 1) * 32]
            np.add.at(by_document, here, loss.numpy()[: len(here)])
        assert ours[group] == pytest.approx(total / count, abs=1e-5), group
        if group == "component-monolingual":
            assert documents(run) == pytest.approx(by_document, rel=1e-4)


def read_rows(folder: Path) -> np.ndarray:
    """Tokens of each document of a validation group, in order."""
    return np.load(folder / "rows.npy")["tokens"]
