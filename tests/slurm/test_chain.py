"""The whole chain and a sweep, as real jobs on two nodes."""

from __future__ import annotations

from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

import emma as emma_package
from emma.base.files import read_json
from emma.slurm.history import History
from emma.tools.runs.environment import source_commit
from emma.tools.runs.run_folder import RunFolder
from tests.slurm.real_run import GLOBAL_BATCH, RealRun, emma, make_run
from tests.slurm.two_nodes import TwoNodes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]

STEPS = 20
TRIAL_STEPS = 8
CLUSTER = "cluster={nodes: 2, gpus_per_node: 1, device: cpu, launcher: srun}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose mix several tests use."""
    return tmp_path_factory.mktemp("shared")


def test_the_chain_from_text_to_release(slurm: TwoNodes, tmp_path: Path) -> None:
    run = make_run(tmp_path, "chained", STEPS, slurm)
    # Only the text and the tokenizer exist; the chain makes the store and the mix.
    for folder in ("store", "mix"):
        (tmp_path / folder).rename(tmp_path / f"unused-{folder}")
    stages = "cluster.slurm.stages={pack: {tasks: 4, concurrent: 2}, evaluate: {arguments: ['--limit=3']}}"
    said = run.submit(CLUSTER, stages, "--links", "2")
    assert [line.split()[1] for line in said.splitlines() if line.startswith("submitted")] == [
        *("pack", "pack-finish", "mix", "train-1", "train-2", "convert", "evaluate", "release")
    ]
    shown = emma(slurm, tmp_path, "slurm", "jobs")
    assert "pack" in shown and "pending (after afterok:" in shown and "chained" in shown
    again = run.submit(CLUSTER, stages, "--links", "2")
    assert "nothing to submit" in again and "in the queue" in again
    # The first link is asked to stop halfway, as Slurm does before a time limit; the second one continues.
    run.wait_for_step(3, 900)
    slurm.command("scancel", "--signal=TERM", str(run.jobs("train-1")[0]))
    last = run.jobs("release")[0]
    slurm.wait(
        lambda: run.state(last) == "COMPLETED" or bool(run.failed()), f"the release\n{run.logs()}", 1200
    )
    assert not run.failed(), run.logs()
    release = run.folder / "release"
    assert (release / "model.safetensors").is_file() or list(release.glob("model-*.safetensors"))
    assert (release / "README.md").is_file() and (run.folder / "evaluation" / "results.parquet").is_file()
    assert sorted(run.losses()) == list(range(1, STEPS + 1))
    # The working folder has packages of the same names; the ranks ran the installed one.
    ran = read_json(run.folder / "environment.json")
    assert ran["package"] == str(Path(emma_package.__file__).resolve().parent)
    assert ran["commit"] == source_commit(Path(ran["package"]))
    before = len(run.events())
    assert "nothing to submit" in run.submit(CLUSTER, stages, "--links", "2")
    assert len(run.events()) == before


def test_a_stage_that_fails_ends_the_chain(slurm: TwoNodes, tmp_path: Path) -> None:
    run = make_run(tmp_path, "broken", STEPS, slurm)
    (tmp_path / "mix").rename(tmp_path / "unused-mix")
    # More repetitions than the recipe allows: planning the mix fails in its job.
    run.submit(CLUSTER, "--links", "2", "data.mix.components.monolingual.max_epochs=0.0001")
    slurm.wait(lambda: run.state(run.jobs("mix")[0]) == "FAILED", "the mix fails", 300)
    slurm.wait(
        lambda: not slurm.command("squeue", "--noheader").strip(), "what waits for it is cancelled", 60
    )
    assert not run.launches()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("cluster.slurm.partition=gpu",), "there is no partition `gpu`. Fix: choose one of `main`, `short`"),
        (("cluster.slurm.partition=short",), "is above the 0.0833333 h of partition `short`"),
        (
            ("cluster.nodes=3", "batch.global=24"),
            "3, but partition `main` has 2",
        ),
        (
            ("cluster.gpus_per_node=64", "batch.global=256"),
            "Slurm would refuse this job",
        ),
        (("cluster.slurm.requires=[account]",), "cluster.slurm.account: is not set"),
        (("parallelism.pipeline=3",), "does not divide"),
        (("start={mode: weights, checkpoint: nowhere}",), "nowhere does not exist"),
    ],
)
def test_a_job_that_cannot_start_is_refused(
    overrides: tuple[str, ...], message: str, slurm: TwoNodes, shared: Path
) -> None:
    run = make_run(shared, "refused", STEPS, slurm)
    said = run.submit(CLUSTER, "--only", "train", *overrides, code=2)
    assert message in said and "Fix: " in said
    assert not slurm.command("squeue", "--noheader").strip()


def test_a_sweep_is_killed_resumed_and_names_the_best(slurm: TwoNodes, tmp_path: Path) -> None:
    make_run(tmp_path, "base", STEPS, slurm)
    sweep = {
        "name": "search",
        "run": "small.yaml",
        "overrides": {
            "cluster.slurm": {
                "exclusive": False,
                "time_limit": "00:40:00",
                "signal_seconds": 60,
                "preflight": False,
            },
            "schedule.steps": TRIAL_STEPS,
            "checkpoint.interval": 4,
            "batch.global": GLOBAL_BATCH,
        },
        "parameters": {
            "schedule.learning_rate": {"values": [1.0e-4, 1.0e-2]},
            "data.mix.components.bilingual.share": {"values": [20.0, 60.0]},
        },
        "concurrent": 2,
        "objective": {"metric": "validation", "groups": ["component-monolingual"]},
    }
    with (tmp_path / "search.yaml").open("w") as handle:
        yaml = YAML(typ="safe")
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(sweep, handle)
    said = emma(slurm, tmp_path, "sweep", "search.yaml")
    assert "4 to submit, 2 at a time" in said
    folder = tmp_path / "runs" / "search"
    trials = [RealRun(slurm, tmp_path, f"search/trial-{number:04d}") for number in range(4)]
    most = 0

    def running() -> int:
        return len(slurm.command("squeue", "--noheader", "--states=RUNNING", "--array").splitlines())

    def finished() -> int:
        nonlocal most
        most = max(most, running())
        return sum(map(complete, trials))

    def complete(trial: RealRun) -> bool:
        return RunFolder(trial.folder).latest_step() == TRIAL_STEPS

    def interrupted() -> list[RealRun]:
        return [trial for trial in trials if trial.launches() and not complete(trial)]

    slurm.wait(lambda: finished() >= 2 and bool(interrupted()), "two trials are done, another began", 1200)
    slurm.cancel_all()
    cut = interrupted()
    assert most == 2
    done = {
        number: (trial.folder / "metrics.jsonl").stat().st_mtime_ns
        for number, trial in enumerate(trials)
        if complete(trial)
    }
    said = emma(slurm, tmp_path, "sweep", "search.yaml")
    assert "in the queue" in said
    slurm.wait(lambda: not slurm.command("squeue", "--noheader").strip(), "all trials are done", 1500)
    answer = orjson.loads(emma(slurm, tmp_path, "sweep", str(folder), "--results", "--json"))
    assert [trial["state"] for trial in answer["trials"]] == ["finished"] * 4
    objectives = [trial["objective"] for trial in answer["trials"]]
    assert answer["best"]["objective"] == min(objectives) and len(set(objectives)) == 4
    assert pq.read_table(folder / "results.parquet").num_rows == 4
    assert (folder / "results.html").read_text().count("<polyline") == 4
    submitted = [e for e in History(folder).events() if e["event"] == "submitted" and e["stage"] == "trials"]
    assert len(submitted) == 2 and sorted([*done, *submitted[-1]["trials"]]) == list(range(4))
    assert done == {n: (trials[n].folder / "metrics.jsonl").stat().st_mtime_ns for n in done}, (
        "none is repeated"
    )
    assert cut and all(trial.launches() == [1, 2] for trial in cut), "what was interrupted continued"
    assert len(list((tmp_path / "mix").glob("tiny-*/manifest.json"))) == 2, "one mix for each share"
    assert "0 to submit" in emma(slurm, tmp_path, "sweep", "search.yaml")
