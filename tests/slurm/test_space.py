"""Disk space is checked before anything is submitted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.slurm.space import check_room, gpfs_device, parse_gpfs_quota, parse_quota, room
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


def test_quotas_as_gpfs_prints_them() -> None:
    text = (
        "mmlsquota::HEADER:version:reserved:reserved:filesystemName:quotaType:id:name:blockUsage:blockQuota:blockLimit:"
        "blockInDoubt:blockGrace:filesUsage:filesQuota:filesLimit:filesInDoubt:filesGrace:remarks:quota:defQuota:fid:"
        "filesetname:\n"
        "mmlsquota::0:1:::gpfs_work:USR:1001:alice:100:1000:2000:0:none:5:0:20:0:none:e:on:off:::\n"
        "mmlsquota::0:1:::gpfs_work:GRP:500:a%3Ab:9999:0:0:0:none:1:0:0:0:none:e:on:off:::\n"
        "mmlsquota::0:1:::gpfs_work:FILESET:7:ours:3000:1000:2000:0:6 days:1:0:0:0:none:e:on:off:::\n"
    )
    user, group, fileset = parse_gpfs_quota(text)
    assert (user.bytes, user.files, user.limit) == (900 * 1024, 15, "the quota of user alice")
    assert (group.bytes, group.files, group.limit) == (None, None, "the quota of group a:b")
    assert (fileset.bytes, fileset.limit) == (0, "the quota of fileset ours")


def test_the_file_system_of_a_folder(tmp_path: Path) -> None:
    mounts = f"/dev/sda1 / ext4 rw 0 0\ngpfs_work {tmp_path} gpfs rw 0 0\ntmpfs {tmp_path}/in tmpfs rw 0 0\n"
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    assert gpfs_device(tmp_path / "out", mounts) == "gpfs_work"
    assert gpfs_device(tmp_path / "in", mounts) is None and gpfs_device(Path("/"), mounts) is None


def test_a_full_gpfs_quota_is_refused(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "mmlsquota"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        "echo mmlsquota::HEADER:version:reserved:reserved:filesystemName:quotaType:id:name:blockUsage:blockQuota:blockLimit\n"
        'if [ "$2" = -u ]; then echo "mmlsquota::0:1:::$4:USR:1:$3:1000:1000:1000"; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("emma.slurm.space.gpfs_device", lambda folder, mounts: "work")
    with pytest.raises(UserError, match=r"paths\.runs: .* the quota of user \S+ leaves 0 GiB, "):
        check_room(make_recipe(), stages_between("train", "train"))
