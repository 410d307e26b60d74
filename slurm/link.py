"""The job's side of training: what a run still has to do, and what happens when its ranks end.

    python -P -m emma.slurm.link owner RUN          # prints the job that holds the run, if another one does
    python -P -m emma.slurm.link begin RUN          # reads Slurm's word about that job
    python -P -m emma.slurm.link preflight RUN --nodes n1,n2
    python -P -m emma.slurm.link watch RUN          # returns with 0 when the ranks have stalled
    python -P -m emma.slurm.link end RUN --exit-code N
    python -P -m emma.slurm.link replaced RUN JOB   # tells those who submit which job takes the place of this one

Job scripts call these on the first node; links share nothing but the run folder. Which launch `preflight` and `end` are
about is in their environment. Exit codes: `begin` 0 (start the ranks), 10 (finished), 11 (the job that holds the run is
ending: ask again); `end` 0 (finished), 20 (continues in another job or after a restart), 30 (the same job starts the
ranks again). Of both, 2: the same would happen again, so nothing must continue this run by itself; 1 and 3: this job
cannot go on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

from emma.base.errors import UserError
from emma.base.extras import need
from emma.base.files import read_json
from emma.base.system_errors import report as tell
from emma.recipes.load import load_recipe
from emma.recipes.schema import Recipe
from emma.recipes.schema.slurm import seconds
from emma.slurm.history import History
from emma.slurm.nodes import remember
from emma.slurm.notify import notify
from emma.slurm.verdict import verdict
from emma.tools.runs.claim import Claim
from emma.tools.runs.decision import latest_phase
from emma.tools.runs.fence import InUseError
from emma.tools.runs.run_folder import GOES_BACK, Launch, RunFolder

__all__ = ["AGAIN", "CONTINUES", "FINISHED", "LATER", "EndingError", "begin", "end", "failed_nodes", "owner"]

FINISHED, LATER, CONTINUES, AGAIN = 10, 11, 20, 30
"""Exit codes of `begin` and of `end`."""

TERMINATED = 128 + 15
"""srun's exit code where ranks died of SIGTERM, which comes from Slurm or from a person."""


class EndingError(InUseError):
    """The job that holds the run is about to end."""

    exit_code = LATER


def owner(folder: Path) -> str | None:
    """The job that Slurm must be asked about before this one may take the run."""
    claim = RunFolder(latest_phase(folder)).claims.writer()
    return claim.job if claim is not None and claim.job != _job() else None


def begin(folder: Path, word: str = "") -> Launch | None:
    """Claims a run for this job, or the phase in which it goes on, and decides what the ranks start from.

    Args:
        folder: run folder with `recipe.yaml`.
        word: Slurm's word about the job that holds the run (`verdict`).

    Returns:
        The launch; None if the run is finished.

    Raises:
        EndingError: the job that holds the run is ending.
        InUseError: another job or process writes the run, or may.
        UserError: the mix or the starting checkpoint does not fit the run, a teammate asked the run to stop, the last
            jobs made no progress, or the base model's loss cannot be computed.
    """
    from emma.checkpoints_conversion.checkpoint import check_start
    from emma.tools.training.launch import compute_reference
    from emma.tools.training.plan_start import check_mix, describe
    from emma.tools.training.replay import continued

    recipe, path = continued(load_recipe(folder), folder)
    run, history = RunFolder(path), History(path)
    if run.finished(recipe) and path != folder:
        raise UserError(
            f"{folder}: its guard ended it, and training is finished in {path}. Fix: for the later stages, `emma slurm submit "
            f"{path} --from convert`"
        )
    if run.finished(recipe) or _pruned(folder):
        return None
    left = run.claims.writer()

    def gone(claim: Claim) -> str | None:
        return _how_it_ended(claim, word, path)

    # A launch that nobody ended is counted before this one begins: by how it ended.
    if left is not None and (how := gone(left)) is not None:
        run.claims.record_end(left.number, how)
        history.add("lost", job=left.job, restart=left.restart, launch=left.number, how=how)
    step = run.latest_step()
    _check_progress(recipe, history, step)
    # Before any rank starts, and before a preflight without torch makes every node look broken.
    need("train", "training", "torch", "megatron", "transformers")
    mix = check_mix(recipe)
    if not step:
        check_start(recipe)
    launch = run.prepare(recipe, kind="job", gone=gone)
    history.add("began", job=_job(), restart=_restart(), launch=launch.number, step=step, nodes=_nodes())
    print(describe(recipe, run, mix), file=sys.stderr)
    notify(recipe, "started", f"launch {launch.number} from step {step} on {_nodes()}")
    compute_reference(recipe, run, launch)
    return launch


def _how_it_ended(claim: Claim, word: str, folder: Path) -> str | None:
    """How the writer ended; None if it lives.

    Raises:
        EndingError: it is ending.
        InUseError: nobody knows.
    """
    if claim.process_is_gone():
        return "its process is gone"
    if claim.job is None:
        return None
    if claim.job == _job() and claim.kind == "job":
        # An earlier start of this very job, which Slurm has ended before it began this one; or the other way round: this
        # script runs on, on a node that Slurm has lost, beside a later start.
        if claim.restart > _restart():
            return None
        return "requeued by slurm" if claim.restart < _restart() else "ended without a word"
    known, state = verdict(word, claim)
    if known == "ended":
        return state
    if known == "ending":
        raise EndingError(f"Slurm job {claim.job} holds the run and is {state}")
    if known == "alive":
        return None
    raise InUseError(
        f"{claim} holds this run, and {state} (jobs of other users may be hidden: PrivateData). It may be running. Fix: "
        f"ask {claim.user}; if the job is gone, run `emma slurm stop {folder} --writer-is-gone`"
    )


def _pruned(folder: Path) -> bool:
    """Whether the run is a sweep trial that was stopped because others do better."""
    file = folder / "trial.json"
    return file.is_file() and read_json(file).get("pruned") is not None


def _check_progress(recipe: Recipe, history: History, step: int) -> None:
    limit = recipe.cluster.slurm.attempts
    for attempts, how in (
        (history.attempts_without_progress(step), "ended"),
        (history.attempts_without_progress(step, stalled=True), "stalled"),
    ):
        if attempts >= limit:
            message = (
                f"{recipe.run_folder}: given up: {attempts} jobs in a row {how} at step {step} without a new checkpoint "
                f"(cluster.slurm.attempts = {limit}). Fix: read {recipe.run_folder}/logs/launch-*/, correct the cause, "
                "and submit again"
            )
            notify(recipe, "given up", message)
            raise UserError(message)


def end(folder: Path, exit_code: int) -> int:
    """Records how the ranks of this process's launch ended, and gives the run back.

    Returns:
        0 if the run is finished, `CONTINUES` if another job or a restart is to continue it, `AGAIN` if the
        ranks go back to skip a step or to an earlier checkpoint, and this job starts them again.

    Raises:
        DisplacedError: another launch has the run.
        UserError: the run must not continue: the ranks refused it, its guard ended it, no progress, or a teammate asked it
            to stop.
    """
    recipe, run, history = load_recipe(folder), RunFolder(folder), History(folder)
    launch, step = run.own_launch(), run.latest_step()
    fence = run.fence(launch)
    held = fence.held()
    goes_back = run.outcome(launch) in GOES_BACK
    history.add(
        "ended",
        job=_job(),
        restart=_restart(),
        launch=launch.number,
        step=step,
        exit_code=exit_code,
        held=held,
        rewinds=goes_back,
        outside=not run.finished(recipe) and _stopped_from_outside(recipe, run, launch, exit_code),
        stalled=history.has_stalled(launch.number),
    )
    displaced = None if held else fence.displaced()
    fence.end(f"its ranks ended with exit code {exit_code}")
    print(
        f"ranks ended with exit code {exit_code} at step {step} of {recipe.schedule.steps}", file=sys.stderr
    )
    if displaced is not None:
        raise displaced
    if run.finished(recipe) or _pruned(folder):
        notify(recipe, "finished", f"step {step} of {recipe.schedule.steps}")
        return 0
    if run.stop_request.exists():
        raise UserError(f"{run.stop_request}: stopped. Fix: to continue, remove the file and submit again")
    decision = run.standing_decision(recipe)
    if decision is not None and decision.action == "replay" and decision.refused is None:
        # `begin` writes the phase, and starts the ranks in it.
        print(f"{run.path}: ended by its guard at step {decision.step}: {decision.reason}", file=sys.stderr)
        return AGAIN
    if decision is not None:
        message = decision.refusal(run.path)
        notify(recipe, "given up", message)
        raise UserError(message)
    if goes_back:
        # `safety.rewinds` and the number of checkpoints limit how often.
        print(run.why_it_goes_back(launch), file=sys.stderr)
        return AGAIN
    if exit_code == UserError.exit_code:
        message = (
            f"{recipe.run_folder}: the ranks refused to go on, and would again: see {launch.logs}/rank-0.log. Fix: correct "
            "the cause, and submit again"
        )
        notify(recipe, "given up", message)
        raise UserError(message)
    _check_progress(recipe, history, step)
    if history.stalls(_job(), _restart()) == 1 and history.has_stalled(launch.number):
        # Once, on the nodes that the job has; if it stalls again, perhaps on others.
        return AGAIN
    return CONTINUES


def _stopped_from_outside(recipe: Recipe, run: RunFolder, launch: Launch, exit_code: int) -> bool:
    """Whether the ranks were ended by a signal that was not that of the time limit: a preemption, `scancel`."""
    if exit_code not in (0, TERMINATED):
        return False
    slurm, started = recipe.cluster.slurm, run.claims.file(launch.number).stat().st_mtime
    limit = float(os.environ.get("SLURM_JOB_END_TIME", started + seconds(slurm.time_limit)))
    # Slurm may send its signal a minute early, and where it does not say when the job ends, the job began before the
    # launch.
    return time.time() < limit - slurm.signal_seconds - 120


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
    launch = run.own_launch()
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
    run.release_claim(launch, "its preflight failed")
    history = History(folder)
    excluded = sorted({*faulty, *history.nodes_that_failed()}) if faulty else []
    history.add("preflight failed", job=_job(), launch=launch.number, nodes=faulty)
    remember(folder.absolute().parent, faulty, folder.absolute().name)
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


@group.command("owner")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def owner_command(run: Path) -> int:
    """Print the job that holds RUN, if another job than this one does."""
    click.echo(owner(run) or "")
    return 0


@group.command("begin")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def begin_command(run: Path) -> int:
    """Claim RUN and print the launch's identity and the folder of its logs; read Slurm's word about the job that
    holds the run from standard input."""
    launch = begin(run, sys.stdin.read())
    if launch is None:
        click.echo(f"{run}: finished; nothing to do", err=True)
        return FINISHED
    click.echo(f"{launch.identity} {launch.logs}")
    return 0


@group.command("preflight")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--nodes", required=True, help="The job's nodes, separated by commas.")
def preflight_command(run: Path, nodes: str) -> int:
    """Print the failed nodes of RUN's job, separated by commas; an empty line if none can be named."""
    click.echo(",".join(failed_nodes(run, nodes.split(","))))
    return 0


@group.command("replaced")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("job", type=int)
def replaced_command(run: Path, job: int) -> int:
    """Note that JOB takes the place of this job of RUN."""
    from emma.slurm.submissions import replaced

    replaced(run, int(os.environ["SLURM_JOB_ID"]), job)
    return 0


@group.command("watch")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def watch_command(run: Path) -> int:
    """Watch RUN's ranks; exit with 0 when they have stalled, with 1 when they have ended."""
    from emma.slurm.watch import watch

    return 0 if watch(run) else 1


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
        # Only what would happen again in the next job ends the run; that another one holds it passes.
        sys.exit(1 if type(error) is InUseError else told)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
