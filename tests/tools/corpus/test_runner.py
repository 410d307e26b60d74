from __future__ import annotations

from pathlib import Path

import pytest

from emma.base.errors import UserError
from emma.tools.corpus.runner import Task, results_of, run_tasks


def square(number: int, log: str) -> int:
    """Squares; leaves a line in a log."""
    with Path(log).open("a") as handle:
        handle.write(f"{number}\n")
    if number == 13:
        raise UserError("thirteen")
    return number * number


def tasks(log: Path, *numbers: int) -> list[Task]:
    return [Task(f"square-{number}", square, (number, str(log))) for number in numbers]


@pytest.mark.parametrize("workers", [1, 2])
def test_finished_tasks_are_not_run_again(tmp_path: Path, workers: int) -> None:
    log, folder = tmp_path / "log", tmp_path / "marks"
    run_tasks(folder, tasks(log, 1, 2, 3), workers=workers, label="squares")
    run_tasks(folder, tasks(log, 1, 2, 3, 4), workers=workers, label="squares")
    assert sorted(log.read_text().split()) == ["1", "2", "3", "4"]
    assert results_of(folder, tasks(log, 4, 1)) == [16, 1]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_leaves_no_mark(tmp_path: Path, workers: int) -> None:
    log, folder = tmp_path / "log", tmp_path / "marks"
    with pytest.raises(UserError, match="thirteen"):
        run_tasks(folder, tasks(log, 1, 13), workers=workers, label="squares")
    assert [path.name for path in folder.iterdir()] == ["square-1.json"]
    with pytest.raises(UserError, match="1 of 2 tasks have not finished"):
        results_of(folder, tasks(log, 1, 13))


def test_ranks_share_the_tasks(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "marks"
    for rank in (2, 0, 1):
        run_tasks(folder, tasks(log, *range(7)), workers=1, label="squares", rank=rank, world=3)
    assert sorted(map(int, log.read_text().split())) == list(range(7))
    assert log.read_text().split()[:2] == ["2", "5"]
