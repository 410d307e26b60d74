"""The GPU benchmark, as far as a machine without a GPU can tell: what it would run, and how it reports results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import train_gpu
from benchmarks.gpus import Gpus, device_of
from benchmarks.precision_results import loss_table, result_of, result_table
from benchmarks.train_gpu import PRECISIONS, Bench, layers_that_fit
from emma.base.errors import UserError
from emma.recipes.schema import Recipe
from emma.tools.plan.memory import estimate_memory, memory_limit
from tests.ranks import run_ranks
from tests.tools.training.test_arguments import arguments, parsed


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """On one H100."""
    options = train_gpu.parse(["--dry-run"])
    return train_gpu.write_run(tmp_path_factory.mktemp("bench"), options, Gpus("h100", 1, None))


def test_as_many_layers_as_fit_every_precision(bench: Bench) -> None:
    layers = layers_that_fit(bench.recipe, PRECISIONS, 32)

    def fits(count: int) -> list[bool]:
        recipes = [bench.recipe(name, count) for name in PRECISIONS]
        return [estimate_memory(recipe).total <= float(memory_limit(recipe) or 0) for recipe in recipes]

    assert 3 <= layers < 32 and all(fits(layers)) and not all(fits(layers + 1))
    assert layers_that_fit(bench.recipe, PRECISIONS, 4) == 4


def test_an_h200_holds_all_layers_with_16_bit_states(tmp_path: Path) -> None:
    given = ["optimizer={exp_avg_dtype: bf16, exp_avg_sq_dtype: bf16}", "parallelism={recompute: full}"]
    options = train_gpu.parse([*given, "--dry-run", "--device", "h200"])
    bench = train_gpu.write_run(tmp_path, options, Gpus("h200", 1, None))
    assert layers_that_fit(bench.recipe, ["bf16"], 32) == 32


def test_a_card_that_is_too_small_is_reported(bench: Bench) -> None:
    small = Bench(bench.run, bench.folder, bench.steps, (*bench.overrides, "cluster.memory_gib=16"))
    with pytest.raises(
        UserError, match=r"no number of layers .*1 layers in bf16 need .*GiB, 15\.5 may be used"
    ):
        layers_that_fit(small.recipe, ["bf16"], 32)


FP8 = ("fp8", "fp8_recipe", "fp8_param_gather", "first_last_layers_bf16", "num_layers_at_start_in_bf16")


@pytest.mark.parametrize(
    ("precision", "want"),
    [
        ("bf16", (None, "delayed", False, False, 1)),
        ("fp8_tensorwise", ("hybrid", "tensorwise", True, True, 1)),
        ("fp8_delayed", ("hybrid", "delayed", True, False, 1)),
        ("fp8_blockwise", ("e4m3", "blockwise", False, True, 1)),
    ],
)
def test_megatron_takes_the_arguments_of_each_precision(
    precision: str, want: tuple[Any, ...], bench: Bench
) -> None:
    """Megatron's own parser and validation, for a Hopper GPU."""
    names = ["bf16", "transformer_impl", "num_layers", "dataloader_inter_document_masking", *FP8]
    recipe = bench.recipe(precision, 8)
    (found,) = run_ranks(parsed, 1, arguments(recipe), names, timeout=120)
    assert [found[name] for name in names[:4]] == [True, "transformer_engine", 8, True]
    assert tuple(found[name] for name in FP8) == want


def rows(recipe: Recipe, speed: float, loss: float, memory: float) -> list[dict[str, Any]]:
    """Steps as `metrics.jsonl` has them; the first two are slow."""
    found = []
    for step in range(1, 21):
        rate = speed / 10 if step <= 2 else speed + step % 2
        line = {"step": step, "tokens_per_second_per_gpu": rate, "tflops_per_gpu_causal": rate / 20}
        found.append(
            line | {"mfu": rate / 20 / 1000, "memory_gib": memory + step / 100, "loss": loss - step / 10}
        )
    return found


def test_results_come_from_the_logged_steps(bench: Bench) -> None:
    base, other = bench.recipe("bf16", 8), bench.recipe("fp8_tensorwise", 8)
    slow, fast = rows(base, 8000, 10.0, 60), rows(other, 12000, 10.02, 50)
    results = [result_of(base, slow, slow, 2), result_of(other, fast, slow, 2)]
    assert (results[0].precision, results[0].layers, results[0].loss_difference) == ("bf16", 8, 0)
    assert results[0].tokens_per_second == 8000.5 and results[0].memory_gib == pytest.approx(60.2)
    assert results[1].loss_difference == pytest.approx(0.02)
    lines = result_table(results).splitlines()
    assert lines[2] == "| bf16 | 8 | 8,000 | 1.00 | 400.0 | 40.0% | 60.2 | +0.0000 |"
    assert lines[3] == "| fp8_tensorwise | 8 | 12,000 | 1.50 | 600.0 | 60.0% | 50.2 | +0.0200 |"


def test_losses_are_means_over_equal_stretches() -> None:
    table = loss_table({"bf16": [4.0, 2.0, 1.0, 1.0], "fp8": [4.0, 4.0, 2.0, 0.0]}, points=2)
    assert table.splitlines()[2:] == ["| 1–2 | 3.0000 | 4.0000 |", "| 3–4 | 1.0000 | 1.0000 |"]


@pytest.mark.parametrize(
    ("cuda", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_gpus_are_known_by_cudas_names(cuda: str, name: str) -> None:
    assert device_of(cuda) == name


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"Tesla T4: not in recipes/devices\.yaml"):
        device_of("Tesla T4")


def test_without_a_gpu_it_refuses_and_a_dry_run_shows_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert train_gpu.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no GPU: ")
    assert train_gpu.main(["--dry-run", "--precision", "fp8_tensorwise", "--layers", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("-m emma.tools.training.worker") == 2 and "-m benchmarks.megatron_loop" in shown
    assert shown.count("--num-layers 4") == 2 and "--fp8-recipe tensorwise" in shown
    assert "fp8_delayed" not in shown


@pytest.mark.slow
def test_the_runs_themselves_on_the_cpu(tmp_path: Path) -> None:
    """A tiny shape in FP32 and BF16 through the benchmark's own code: data, launches, the peer, results."""
    options = train_gpu.parse(["--steps", "8", "--model", "tiny", "--sequence-length", "64"])
    shared = train_gpu.write_run(tmp_path, options, Gpus("cpu", 1, None))
    bench = Bench(shared.run, tmp_path, 8, (*shared.overrides, "model.vocab_size=16384"))
    train_gpu.prepare_data(bench, 2)
    measured = train_gpu.run_all(bench, ["bf16", "fp32"], 2, 2)
    first, second = measured["results"]
    assert (first.precision, second.precision) == ("bf16", "fp32") and first.layers == 2
    assert first.tokens_per_second > 0 and abs(second.loss_difference) < 0.05
    assert {name: len(losses) for name, losses in measured["losses"].items()} == {
        "bf16": 8,
        "fp32": 8,
        "megatron": 8,
    }
    # The stock dataset reads the documents in another order, so only the first steps' level is comparable.
    assert measured["losses"]["megatron"][0] == pytest.approx(measured["losses"]["bf16"][0], abs=0.2)
    assert json.loads(json.dumps(measured["overhead"]))["overhead_percent"] > -100
