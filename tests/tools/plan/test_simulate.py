"""`emma plan --simulate`: what Megatron builds at 512 ranks is what the plan counts, and a difference is
found."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emma.base.errors import CheckFailedError
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.tools.plan import simulate as module
from emma.tools.plan import simulated_ranks
from emma.tools.plan.simulate import Simulation, simulate
from tests.command_line import emma
from tests.ranks import run_ranks
from tests.small_recipe import write_small_run

SMALL_512 = [
    *(
        "cluster.nodes=64",
        "cluster.gpus_per_node=8",
        "cluster.launcher=srun",
        "batch.global=256",
        "batch.micro=1",
    ),
    *(
        "parallelism.tensor=2",
        "parallelism.sequence=true",
        "parallelism.pipeline=2",
        "parallelism.virtual_pipeline=2",
    ),
    *("parallelism.overlap_grad_reduce=true", "parallelism.overlap_param_gather=true"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(write_small_run(tmp_path_factory.mktemp("small")), SMALL_512)


def simulate_in_a_rank(folder: str) -> None:
    """In a forked rank: what the command starts as a separate process."""
    sys.exit(simulated_ranks.main(Path(folder)))


@pytest.fixture(scope="module")
def simulation(small: Recipe) -> Simulation:
    """Without the seconds of importing Megatron; the slow test of 8B takes the command's own way."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        run_ranks(simulate_in_a_rank, 1, command[-1], patched=False)
        return subprocess.CompletedProcess(command, 0, "", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.subprocess, "run", run)
        return simulate(small)


def test_megatron_builds_what_was_planned(simulation: Simulation) -> None:
    assert simulation.faults == ()
    assert simulation.world_size == 512
    assert [(rank["stage"], rank["tensor_rank"], rank["rank"]) for rank in simulation.ranks] == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 256),
        (1, 1, 257),
    ]
    for rank in simulation.ranks:
        assert len(rank["parameters"]) == 2
        assert (rank["data_parallel"], rank["microbatches"]) == (128, 2)
        assert rank["samples"] == {"first": True, "last": True}
    assert [rank["buffers"] is not None for rank in simulation.ranks] == [True, False, True, False]


def test_a_difference_is_a_fault(small: Recipe, simulation: Simulation) -> None:
    def faults(change: str) -> list[str]:
        ranks: list[dict[str, Any]] = copy.deepcopy(list(simulation.ranks))
        rank = ranks[2]
        if change == "parameters":
            rank["parameters"][0] += 1
        elif change == "microbatches":
            rank["microbatches"] = 3
        elif change == "data":
            rank["data_parallel"] = 64
        elif change == "chunks":
            rank["parameters"] = [sum(rank["parameters"])]
        elif change == "gradients":
            rank["buffers"]["gradients"] = sum(rank["parameters"]) - 1
        elif change == "optimizer":
            rank["buffers"]["optimizer"] *= 2
        elif change == "samples":
            rank["samples"]["last"] = "255 samples"
        elif change == "traffic":
            rank["traffic"]["bytes"][5] += 10**8
        elif change == "host":
            rank["traffic"]["rows"][5] += 10**8
        elif change == "missing":
            rank["tensors"] = [t for t in rank["tensors"] if "linear_fc2" not in t["key"]]
        elif change == "shape":
            rank["tensors"][0]["global_shape"][-1] += 1
        return list(module._faults(small, ranks))

    for change, expected in {
        "parameters": "the plan says",
        "microbatches": "3 micro-batches",
        "data": "data-parallel size 64",
        "chunks": "1 model chunks",
        "gradients": "gradients, but the plan says",
        "optimizer": "weights in the optimizer",
        "samples": "last step",
        "traffic": "bytes written by a rank at a save",
        "host": "in the host memory of a rank",
        "missing": "decoder.layers.mlp.linear_fc2.weight: the ranks hold",
        "shape": "expected (",
    }.items():
        found = faults(change)
        assert found, change
        assert any(expected in fault for fault in found), found


@pytest.mark.slow
def test_what_megatron_refuses_is_reported(tmp_path: Path) -> None:
    recipe = load_recipe(write_small_run(tmp_path), ["megatron_args.no-such-argument=true"])
    with pytest.raises(CheckFailedError, match="no-such-argument"):
        simulate(recipe)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 2])
def test_8b_at_512_ranks(chunks: int) -> None:
    answer = emma(
        "plan",
        "emma_llama3_8b_bi",
        "layout=h100_512_bf16",
        "parallelism.pipeline=2",
        "batch.micro=1",
        f"parallelism.virtual_pipeline={chunks}",
        "--simulate",
        "--json",
    )
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)["simulation"]
    assert found["faults"] == []
    assert found["world_size"] == 512
    # Both stages and tensor ranks together hold the model; norms are on both tensor ranks.
    total = sum(sum(rank["parameters"]) for rank in found["ranks"])
    assert total == 8_030_261_248 + 65 * 4096


@pytest.mark.slow
def test_bytes_of_a_rank_fall_as_one_over_the_ranks() -> None:
    """Llama 3 8B on 8, 64 and 512 GPUs, dealt by Megatron and the patches: no rank has more than its part."""
    most = {}
    for gpus in (8, 64, 512):
        simulation = simulate(load_recipe("emma_llama3_8b_bi", [f"layout=h100_{gpus}_bf16"]))
        assert simulation.faults == ()
        traffic = simulation.ranks[0]["traffic"]
        assert len(traffic["bytes"]) == gpus // 2
        most[gpus] = max(traffic["bytes"])
        assert most[gpus] < 1.05 * sum(traffic["bytes"]) / len(traffic["bytes"])
    assert most[64] == pytest.approx(most[8] / 8, rel=0.03)
    assert most[512] == pytest.approx(most[8] / 64, rel=0.03)
