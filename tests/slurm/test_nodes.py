"""Nodes that failed, remembered from one run to the next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from emma.base.files import append_line
from emma.slurm.nodes import DAYS, bad_nodes, forgive, remember
from emma.slurm.submit import plan_chain, submit
from tests.slurm.conftest import MakeRecipe
from tests.slurm.pretended import pretend


def test_what_failed_is_left_out_until_it_is_forgiven_or_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "ours")
    remember(tmp_path, {"n1": ["7 GPUs are visible, 8 are expected"], "n2": ["left no report"]}, "run")
    old = (datetime.now(UTC) - timedelta(days=DAYS + 1)).isoformat()
    event = {"event": "failed", "node": "n3", "faults": ["x"], "run": "run", "time": old, "cluster": "ours"}
    append_line(tmp_path / ".bad_nodes.jsonl", orjson.dumps(event))
    found = bad_nodes(tmp_path, "ours")
    assert list(found) == ["n1", "n2"] and found["n1"].startswith("7 GPUs are visible, 8 are expected (run, ")
    assert bad_nodes(tmp_path, "theirs") == {}
    forgive(tmp_path, ["n1"])
    assert list(bad_nodes(tmp_path, "ours")) == ["n2"]
    remember(tmp_path, {"n1": ["again"]}, "run")
    assert set(bad_nodes(tmp_path, "ours")) == {"n1", "n2"}


def test_training_asks_for_other_nodes(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = pretend(tmp_path / "pretended", monkeypatch)
    recipe = make_recipe()
    remember(Path(recipe.paths.runs), {"n1": ["ill"], "n2": ["ill"]}, "another")
    chain = plan_chain(recipe, "mix", "train")
    submit(chain)
    mix, train = [c for c in slurm.calls("sbatch") if "--test-only" not in c]
    assert "--exclude=n1,n2" in train and not any("--exclude" in word for word in mix)
    assert chain.to_dict()["without_nodes"]["n1"].startswith("ill (another, ")


def test_a_partition_without_others_keeps_them(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path / "pretended", monkeypatch)
    recipe = make_recipe()
    remember(Path(recipe.paths.runs), {f"n{index}": ["ill"] for index in range(8)}, "another")
    assert plan_chain(recipe, "train", "train").without == {}
