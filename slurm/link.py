"""The job's side of training: what a run still has to do, and what happens when its ranks end.

    squeue --noheader --states=RUNNING --format=%A | python -P -m emma.slurm.link begin RUN
    python -P -m emma.slurm.link preflight RUN --nodes n1,n2
    python -P -m emma.slurm.link end RUN --exit-code N

Job scripts call these on the first node; links share nothing but the run folder. Exit codes: `begin` 0 (start
the ranks), 10 (finished); `end` 0 (finished), 20 (continues in another job or after a restart), 30 (the same
job starts the ranks again); otherwise 1 or 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from emma.base.errors import CheckFailedError
from emma.base.extras import need
from emma.base.files import read_json
from emma.base.system_errors import report as tell
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.slurm.history import History
from emma.tools.runs.run_folder import GOES_BACK, RunFolder

__all__ = ["AGAIN", "CONTINUES", "FINISHED", "begin", "end", "failed_nodes"]

FINISHED, CONTINUES, AGAIN = 10, 20, 30
"""Exit codes of `begin` and of `end`."""


def begin(folder: Path, running: Iterable[int]) -> str | None:
    """Claims a run for this job and decides what the ranks start from.

    Args:
        folder: run folder with `recipe.yaml`.
        running: ids of all users' running jobs.

    Returns:
        Folder of the ranks' logs; None if the run is finished.

    Raises:
        CheckFailedError: the last jobs made no progress, or the base model's loss cannot be computed.
        UserError: the mix or the starting checkpoint does not fit the run, a teammate asked the run to stop,
            or another job or process writes to it.
    """
    from emma.checkpoints_conversion.checkpoint import check_start
    from emma.tools.training.launch import compute_reference
    from emma.tools.training.plan_start import check_mix, describe

    recipe, run, history = load_recipe(folder), RunFolder(folder), History(folder)
    if run.finished(recipe) or _pruned(folder):
        return None
    step = run.latest_step()
    _check_progress(recipe, history, step)
    # Before any rank starts, and before a preflight without torch makes every node look broken.
    need("train", "training", "torch", "megatron", "transformers")
    mix = check_mix(recipe)
    if not step:
        check_start(recipe)
    launch = run.prepare(recipe, take_over=_writer_is_gone(run, set(running)))
    history.add("began", job=_job(), restart=_restart(), launch=launch.number, step=step, nodes=_nodes())
    print(describe(recipe, run, mix), file=sys.stderr)
    compute_reference(recipe, run, launch)
    return launch.logs


def _writer_is_gone(run: RunFolder, running: set[int]) -> bool:
    """Whether the claim belongs to a Slurm job that has ended (or to this job before a restart).
    `RunFolder.prepare` decides about processes that were started without Slurm."""
    if not run.writer_file.is_file():
        return False
    job = read_json(run.writer_file).get("job")
    return job is not None and (job == _job() or int(job) not in running)


def _pruned(folder: Path) -> bool:
    """Whether the run is a sweep trial that was stopped because others do better."""
    file = folder / "trial.json"
    return file.is_file() and read_json(file).get("pruned") is not None


def _check_progress(recipe: Recipe, history: History, step: int) -> None:
    attempts, limit = history.attempts_without_progress(step), recipe.cluster.slurm.attempts
    if attempts >= limit:
        raise CheckFailedError(
            f"{recipe.run_folder}: given up: {attempts} jobs in a row ended at step {step} without a new checkpoint "
            f"(cluster.slurm.attempts = {limit}). Fix: read {recipe.run_folder}/logs/launch-*/, correct the cause, and "
            "submit again"
        )


def end(folder: Path, exit_code: int) -> int:
    """Records how the ranks ended and releases the claim.

    Returns:
        0 if the run is finished, `CONTINUES` if another job or a restart is to continue it, `AGAIN` if the
        ranks go back to skip a step or to an earlier checkpoint, and this job starts them again.

    Raises:
        CheckFailedError: the run must not continue: no progress, or a teammate asked it to stop.
    """
    recipe, run, history = load_recipe(folder), RunFolder(folder), History(folder)
    launch, step = run.read_launch(), run.latest_step()
    held = run.holds_claim(launch)
    goes_back = run.outcome(launch) in GOES_BACK
    run.release_claim(launch)
    history.add(
        "ended",
        job=_job(),
        restart=_restart(),
        launch=launch.number,
        step=step,
        exit_code=exit_code,
        held=held,
        rewinds=goes_back,
    )
    print(
        f"ranks ended with exit code {exit_code} at step {step} of {recipe.schedule.steps}", file=sys.stderr
    )
    if run.finished(recipe) or _pruned(folder):
        return 0
    if not held:
        raise CheckFailedError(
            f"{run.writer_file}: another launch has taken over this run; this job leaves it alone"
        )
    if run.stop_request.exists():
        raise CheckFailedError(
            f"{run.stop_request}: stopped. Fix: to continue, remove the file and submit again"
        )
    if goes_back:
        # `safety.rewinds` and the number of checkpoints limit how often.
        print(run.why_it_goes_back(launch), file=sys.stderr)
        return AGAIN
    _check_progress(recipe, history, step)
    return CONTINUES


def failed_nodes(folder: Path, nodes: Sequence[str]) -> list[str]:
    """Returns the nodes to exclude after a failed preflight, and releases the claim.

    A node failed if one of its ranks reported a fault, or if none of its ranks reported anything. No node can
    be named if only the network between them failed, or if none of several nodes reported (their common
    environment is at fault). Nodes that failed in earlier jobs of this submission stay excluded.

    Args:
        folder: run folder.
        nodes: the job's nodes.
    """
    run = RunFolder(folder)
    launch = run.read_launch()
    reports = [read_json(path) for path in sorted(Path(launch.logs).glob("preflight-*.json"))]
    faults: dict[str, list[str]] = {}
    for found in reports:
        faults.setdefault(found["node"], []).extend(found["faults"])
    faulty = {node: found for node, found in faults.items() if found}
    silent = [node for node in nodes if node not in faults]
    if len(silent) == len(nodes) > 1:
        print(f"none of the {len(nodes)} nodes left a report: {launch.logs}/preflight-*.log", file=sys.stderr)
    else:
        faulty |= {node: ["left no report"] for node in silent}
    for node, found in sorted(faulty.items()):
        print(f"{node}: {'; '.join(found)}", file=sys.stderr)
    for report in reports:
        for problem in report["network"]:
            print(f"{report['node']}: {problem}", file=sys.stderr)
    run.release_claim(launch)
    history = History(folder)
    excluded = sorted({*faulty, *history.nodes_that_failed()}) if faulty else []
    history.add("preflight failed", job=_job(), nodes=faulty)
    return excluded


def _job() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _nodes() -> str | None:
    return os.environ.get("SLURM_JOB_NODELIST")


@click.group(help=(__doc__ or "").splitlines()[0])
def group() -> None:
    """The job's side of training."""


@group.command("begin")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def begin_command(run: Path) -> int:
    """Claim RUN and print the folder of its logs; read the ids of running jobs from standard input."""
    logs = begin(run, [int(line) for line in sys.stdin.read().split()])
    if logs is None:
        click.echo(f"{run}: finished; nothing to do", err=True)
        return FINISHED
    click.echo(logs)
    return 0


@group.command("preflight")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--nodes", required=True, help="The job's nodes, separated by commas.")
def preflight_command(run: Path, nodes: str) -> int:
    """Print the failed nodes of RUN's job, separated by commas; an empty line if none can be named."""
    click.echo(",".join(failed_nodes(run, nodes.split(","))))
    return 0


@group.command("end")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--exit-code", type=int, required=True, help="Exit code of the ranks.")
def end_command(run: Path, exit_code: int) -> int:
    """Record how RUN's ranks ended; exit with 0 if it is finished, 20 if it continues, 30 to start them again
    in this job."""
    return end(run, exit_code)


def main() -> None:
    """Entry point."""
    try:
        code = group(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if (told := tell(error)) is None:
            raise
        sys.exit(told)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
