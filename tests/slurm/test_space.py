"""Disk space is checked before anything is submitted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.slurm.space import check_room, parse_quota, room
from emma.slurm.stages import stages_between
from tests.slurm.conftest import MakeRecipe

BIG = (
    "cluster={nodes: 1, gpus_per_node: 8, device: h100}",
    "batch.micro=1",
    "precision.compute=bf16",
    "model=llama3_8b",
)


def test_quotas_as_lustre_prints_them() -> None:
    assert parse_quota("  /scratch  600  1000  2000  -  5  10  20  -\n") == (400 * 1024, 5)
    long_name = "/a/very/long/name/of/a/folder\n      1500*  1000  2000  6d23h  30  0  20  -\n"
    assert parse_quota(long_name) == (0, 0)
    assert parse_quota("/scratch 600 0 0 - 5 0 0 -") == (None, None), "0 is no limit"
    assert parse_quota("[/scratch]") == (None, None)


def test_what_the_file_system_leaves(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    (limit, *_) = room(tmp_path)
    assert limit.bytes == pytest.approx(free.f_bavail * free.f_frsize, rel=0.1)


def test_checkpoints_that_find_no_room_are_refused(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(*BIG, "checkpoint={interval: 1, keep: null}", "schedule.steps=5000")
    # 5,000 checkpoints of 8 billion parameters take half a petabyte.
    with pytest.raises(UserError, match=r"paths\.runs: .* its file system leaves .* 5001 checkpoints need"):
        check_room(recipe, stages_between("train", "train"))
    check_room(recipe, stages_between("convert", "release"))
    check_room(make_recipe(), stages_between("pack", "release"))
