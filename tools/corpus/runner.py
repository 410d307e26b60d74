"""Runs a phase's tasks on this machine's cores, or one rank's share of them; finished tasks never rerun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.base.processes import process_pool, result_of
from emma.base.progress import progress

__all__ = ["Task", "results_of", "run_tasks"]


@dataclass(frozen=True)
class Task:
    """A unit of work: `function(*arguments)` returns a JSON value, and its outputs depend on nothing else.

    `name` is unique within the phase and usable as a file name.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def _mark(folder: Path, task: Task) -> Path:
    return folder / f"{task.name}.json"


def _perform(task: Task, mark: str) -> None:
    write_json(mark, task.function(*task.arguments))


def run_tasks(
    folder: Path,
    tasks: Sequence[Task],
    *,
    workers: int,
    label: str,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Runs this rank's tasks that have no mark in `folder` yet.

    Args:
        folder: receives one file per finished task, with its result, once the task's outputs are on disk.
        tasks: all tasks of the phase; rank r of w runs every w-th of them, starting at the r-th.
        workers: processes; 1 runs the tasks in this process.
        label: text of the progress bar.
        rank: number of this process group among the `world` that share the phase.
        world: number of process groups.

    Raises:
        UserError: that of the first failed task, in task order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = tasks[rank::world]
    open_tasks = [task for task in mine if not _mark(folder, task).is_file()]
    bar: tqdm[Any] = progress(total=len(mine), initial=len(mine) - len(open_tasks), desc=label, unit="task")
    with bar:
        if workers == 1 or len(open_tasks) <= 1:
            for task in open_tasks:
                _perform(task, str(_mark(folder, task)))
                bar.update()
            return
        preload = sorted({task.function.__module__ for task in open_tasks})
        with process_pool(min(workers, len(open_tasks)), preload=preload) as pool:
            futures = {
                pool.submit(_perform, task, str(_mark(folder, task))): index
                for index, task in enumerate(open_tasks)
            }
            _collect(futures, bar)


def _collect(futures: dict[Future[None], int], bar: Any) -> None:
    """Waits for all; after a failure, cancels pending ones, lets running ones end and raises the first."""
    pending: set[Future[None]] = set(futures)
    failed: list[tuple[int, Exception]] = []
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            if future.cancelled():
                continue
            try:
                result_of(future)
            except Exception as error:  # noqa: BLE001 - raised below, once the running tasks have ended
                failed.append((futures[future], error))
                for other in pending:
                    other.cancel()
            else:
                bar.update()
    if failed:
        raise min(failed, key=lambda failure: failure[0])[1]


def results_of(folder: Path, tasks: Sequence[Task]) -> list[Any]:
    """Results of all tasks of a phase, in order.

    Raises:
        UserError: some tasks have not finished.
    """
    missing = [task.name for task in tasks if not _mark(folder, task).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(tasks)} tasks have not finished (first: {missing[0]}); "
            "run the build again, or only the array tasks that failed"
        )
    return [read_json(_mark(folder, task)) for task in tasks]
