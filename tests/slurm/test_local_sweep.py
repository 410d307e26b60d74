"""A sweep on this machine: real processes, the same files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from emma.base.errors import UserError
from emma.slurm.history import History
from emma.slurm.local_sweep import plan_local, run_local
from emma.slurm.submit_sweep import open_sweep
from tests.command_line import emma
from tests.slurm.conftest import MakeRecipe
from tests.slurm.test_sweep import GRID, write
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix


def test_only_what_has_no_result_runs_and_not_on_several_machines(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    make_recipe()
    folder = open_sweep(write(tmp_path))
    assert plan_local(folder, concurrent=2) == ([0, 1, 2, 3, 4, 5], 2)
    far = open_sweep(write(tmp_path), ["cluster.launcher=srun"])
    with pytest.raises(UserError, match=r"is no one machine\. Fix: leave out --local"):
        plan_local(far)


def test_trials_that_end_with_an_error_do_not_end_the_others(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without inputs every mix fails, in a process of its own."""
    make_recipe()
    folder = open_sweep(write(tmp_path))
    found = run_local(folder, [0, 1], 2)
    assert [result.trial.state for result in found[:3]] == ["failed", "failed", "waiting"]
    assert "store" in (folder.folder(0) / "logs" / "local.log").read_text()
    assert plan_local(folder)[0] == [2, 3, 4, 5] and plan_local(folder, retry_failed=True)[0] == [
        0,
        1,
        2,
        3,
        4,
        5,
    ]
    assert (folder.path / "results.html").is_file()


@pytest.mark.slow
def test_a_sweep_trains_its_trials_here_and_names_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mix = make_tiny_mix(tmp_path, samples=10 * 8, sequence_length=32, vocab_size=512)
    write_small_run(tmp_path, mix.data.model_dump(mode="json"), mix.tokenizer)
    sweep: dict[str, Any] = {
        **GRID,
        "name": "here",
        "parameters": {"schedule.learning_rate": {"values": [1.0e-4, 1.0e-2]}},
        "objective": {"metric": "loss"},
        "constraints": [],
        "concurrent": 2,
    }
    YAML(typ="safe").dump(sweep, tmp_path / "here.yaml")
    began = time.monotonic()
    answer = emma("sweep", "here.yaml", "--local", "--json")
    assert answer.code == 0, answer.err
    found = orjson.loads(answer.out)
    assert [trial["state"] for trial in found["trials"]] == ["finished"] * 2
    assert found["best"]["objective"] == min(trial["objective"] for trial in found["trials"])
    runs = tmp_path / "runs" / "here"
    assert pq.read_table(runs / "results.parquet").num_rows == 2
    spans = []
    for trial in ("trial-0000", "trial-0001"):
        events = {event["event"]: event["time"] for event in History(runs / trial).events()}
        spans.append((events["began"], events["ended"]))
    (_first, first_end), (second, _second_end) = sorted(spans)
    assert second <= first_end, "both ran at once"
    again = emma("sweep", "here.yaml", "--local", "--json")
    assert orjson.loads(again.out) == found and time.monotonic() - began < 600
