"""Parsing Slurm's output."""

from __future__ import annotations

import pytest

from emma.slurm.query import Job, SlurmError, array_tasks, parse_accounting, parse_jobs, parse_partitions

S = "\x1f"


def line(*values: str) -> str:
    return S.join(values)


def test_jobs_of_all_kinds() -> None:
    text = "\n".join(
        [
            line(
                "7",
                "7",
                "N/A",
                "RUNNING",
                "main",
                "2",
                "1-02:03:04",
                "2026-01-02T03:04:05",
                "None",
                "n[1-2]",
                "(null)",
                "demo-train-1f",
                "emma train /runs/a b",
            ),
            line(
                "9",
                "9",
                "0-3%2",
                "PENDING",
                "main",
                "1",
                "1:00:00",
                "N/A",
                "Dependency",
                "",
                "afterok:7(unfulfilled),singleton(unfulfilled)",
                "demo-pack-1f",
                "(null)",
            ),
        ]
    )
    first, second = parse_jobs(text)
    assert first == Job(
        7,
        7,
        None,
        "RUNNING",
        "main",
        2,
        "1-02:03:04",
        "2026-01-02T03:04:05",
        "None",
        "n[1-2]",
        "",
        "demo-train-1f",
        "emma train /runs/a b",
    )
    assert second.dependency == "afterok:7,singleton" and second.task == "0-3%2" and second.comment == ""
    assert first.active and not Job(**{**vars(first), "state": "CANCELLED"}).active


def test_another_format_is_refused() -> None:
    with pytest.raises(SlurmError, match="expected 13 fields, got 2"):
        parse_jobs(line("7", "8"))


def test_array_tasks_in_one_line() -> None:
    assert array_tasks("0-2,5,8-9%2") == [0, 1, 2, 5, 8, 9]
    assert array_tasks("4") == [4]


def test_partitions() -> None:
    text = (
        "PartitionName=main Default=YES MaxTime=2-12:00:00 TotalNodes=40 State=UP\n"
        "PartitionName=long Default=NO MaxTime=UNLIMITED TotalNodes=2 State=DOWN\n"
    )
    found = parse_partitions(text)
    assert found["main"].default and found["main"].max_seconds == 60 * 3600 and found["main"].nodes == 40
    assert found["long"].max_seconds is None and not found["long"].up


def test_accounting() -> None:
    found = parse_accounting("12|CANCELLED by 1000|0:15|00:10:02|n[1-2]\n13|TIMEOUT|0:0|1-00:00:20|n1\n")
    assert found["12"].state == "CANCELLED" and found["13"].elapsed == "1-00:00:20"
