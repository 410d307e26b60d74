"""The slow rank is named, and only it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emma.tools.runs.metrics import read_lines
from emma.tools.runs.run_folder import RunFolder
from tests.ranks import start_ranks
from tests.small_recipe import small_recipe


def compared(folder: str, slow: list[bool]) -> None:
    """In a rank: five logged steps; rank 1 is slow in those that `slow` says, rank 2 waits for its samples in all."""
    import os
    import time

    from emma.recipes.load import load_recipe
    from emma.tools.training.forward import ForwardStep
    from emma.tools.training.preflight_rates import product_seconds
    from emma.tools.training.session.claim import Claim
    from emma.tools.training.session.stragglers import Stragglers

    rank, run, step = int(os.environ["RANK"]), RunFolder(folder), ForwardStep()
    import torch

    torch.distributed.init_process_group("gloo")
    part = Stragglers(load_recipe(folder), run, step, Claim(run.fence(run.own_launch())))
    assert part._product is None, "ranks on a CPU share its cores"
    assert product_seconds("cuda", 64, 1) > 0
    for iteration, late in enumerate(slow, start=1):
        part._product = lambda late=late: 0.3 if rank == 1 and late else 0.2  # type: ignore[misc]
        step.data_wait_seconds = 0.05 if rank == 2 else 0.001
        time.sleep(0.2)
        assert part.training_log(lambda *_: "logged", {}, {}, 1.0, iteration) == "logged"


def test_a_slow_node_of_two_is_named_whole() -> None:
    from emma.tools.training.session.stragglers import slow_ranks

    assert set(slow_ranks([0.2, 0.201, 0.25, 0.251], [0.0] * 4, 1.0)) == {2, 3}
    assert set(slow_ranks([0.2] * 4, [0.001, 0.002, 0.06, 0.07], 1.0)) == {2, 3}
    assert slow_ranks([0.2, 0.22], [0.01, 0.05], 1.0) == {}, "boards differ by a few percent"


def test_a_slow_device_and_a_slow_disk_are_named_once_each(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, ["logging.interval=1"])
    run = RunFolder(recipe.run_folder)
    launch = run.prepare(recipe)
    given = [True, False, True, True, True]
    job = start_ranks(compared, 4, str(run.path), given, env=launch.environment)
    last = job.outcomes(timeout=120)[3]
    assert last.exit_code == 0, last.output
    said = [line for line in last.output.splitlines() if line.startswith("STRAGGLER")]
    assert len(said) == 2, said
    assert "rank 2 (" in said[0] and "waits 50 ms a step for samples, the median 1 ms" in said[0]
    assert "GPU 1): a matrix product takes 1.50 times as long as the median" in said[1]
    rows = read_lines(run.stragglers_file)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [sorted(row["slow"]) for row in rows] == [["1", "2"], ["2"], ["1", "2"], ["1", "2"], ["1", "2"]]
    assert rows[0]["product_ms"] == pytest.approx({"median": 200, "longest": 300})
    assert not any(line.startswith("STRAGGLER") for line in job.output(0).splitlines())
