"""The demo's driver: order, skipping, continuing after failures and kills, SIGTERM at a step, one at a time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from emma.base.errors import CheckFailedError, UserError
from emma.recipes.load import load_recipe
from emma.tools.demo.driver import Record, exclusive, run_steps
from emma.tools.demo.steps import Step, Stop, compare_steps, demo_steps

ROOT = Path(__file__).parents[3]


def script(
    name: str,
    folder: Path,
    code: str,
    outputs: tuple[Path, ...] = (),
    stop: Stop | None = None,
    accepts: tuple[int, ...] = (0,),
) -> Step:
    """A step that notes its name in `log` and runs `code` in its own Python process."""
    text = f"import pathlib, signal, sys, time\nfolder = pathlib.Path({str(folder)!r})\n"
    text += f"(folder / 'log').open('a').write({name + ' '!r})\n" + code
    return Step(name, name, ("python", "-c", text), outputs, stop, accepts)


def run(folder: Path, *steps: Step) -> bool:
    with exclusive(folder) as lock:
        return run_steps(steps, Record(folder), lock)


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().split()


def test_finished_steps_are_skipped(tmp_path: Path) -> None:
    made = tmp_path / "made"
    steps = [script("a", tmp_path, "(folder / 'made').touch()", (made,)), script("b", tmp_path, "")]
    assert run(tmp_path, *steps)
    assert not run(tmp_path, *steps)
    assert log(tmp_path) == ["a", "b"]
    made.unlink()  # what a step made is gone: it runs again
    assert run(tmp_path, *steps)
    assert log(tmp_path) == ["a", "b", "a"]


def test_another_command_is_another_step(tmp_path: Path) -> None:
    run(tmp_path, script("a", tmp_path, ""), script("b", tmp_path, ""))
    run(tmp_path, script("a", tmp_path, ""), script("b", tmp_path, "pass"))
    assert log(tmp_path) == ["a", "b", "b"]


def test_a_failure_keeps_what_was_done(tmp_path: Path) -> None:
    fails = "sys.exit(0 if (folder / 'mended').exists() else 3)"
    steps = [script("a", tmp_path, ""), script("b", tmp_path, fails), script("c", tmp_path, "")]
    with pytest.raises(CheckFailedError, match="exit code 3"):
        run(tmp_path, *steps)
    (tmp_path / "mended").touch()
    run(tmp_path, *steps)
    assert log(tmp_path) == ["a", "b", "b", "c"]


def test_an_exit_code_that_is_a_result_counts_only_with_its_outputs(tmp_path: Path) -> None:
    made = tmp_path / "verdict"
    step = script("a", tmp_path, "sys.exit(1)", accepts=(0, 1), outputs=(made,))
    with pytest.raises(CheckFailedError, match="exit code 1"):
        run(tmp_path, step)
    made.touch()
    run(tmp_path, step)
    run(tmp_path, step)
    assert log(tmp_path) == ["a", "a"], "done, and not run again"
    with pytest.raises(CheckFailedError, match="exit code 1"):
        run(tmp_path, script("b", tmp_path, "sys.exit(1)", outputs=(made,)))


TRAINER = """
import json
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
metrics = folder / "run" / "metrics.jsonl"
metrics.parent.mkdir(exist_ok=True)
step = sum(1 for _ in metrics.open()) if metrics.exists() else 0
while step < 200 and not stopped:
    step += 1
    metrics.open("a").write(json.dumps({"step": step, "loss": 1.0}) + "\\n")
    time.sleep(0.05)
(folder / "stopped").open("a").write(f"{len(stopped)} ")
"""


def test_training_is_stopped_by_sigterm_and_continues(tmp_path: Path) -> None:
    stops = [Stop(tmp_path / "run", step) for step in (10, 20)]
    steps = [script(f"leg{stop.step}", tmp_path, TRAINER, stop=stop) for stop in stops]
    run(tmp_path, *steps)
    assert (tmp_path / "stopped").read_text() == "1 1 "
    rows = [orjson.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_bytes().splitlines()]
    assert 20 <= len(rows) < 60
    # Called again without its record, the driver sees from the run that both stops are past.
    (tmp_path / "steps.json").unlink()
    run(tmp_path, *steps)
    assert (tmp_path / "stopped").read_text() == "1 1 "


# The step itself checks whether it has saved: the driver is built before it waits for an earlier one's step.
SLOW = """
def save(*_):
    time.sleep(1)
    (folder / "saved").touch()
    sys.exit(0)
if not (folder / "saved").exists():
    signal.signal(signal.SIGTERM, save)
    (folder / "ready").touch()
    time.sleep(60)
"""
DEMO = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.tools.demo.test_driver import run, script
folder = Path({folder!r})
run(folder, script("a", folder, ""), script("slow", folder, {slow!r}))
"""


def test_a_killed_driver_ends_its_step_and_the_next_waits_for_it(tmp_path: Path) -> None:
    program = [sys.executable, "-c", DEMO.format(root=str(ROOT), folder=str(tmp_path), slow=SLOW)]
    child = subprocess.Popen(program)
    end = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "saved").exists()
    subprocess.run(program, check=True, timeout=60)  # begins only when the step has saved
    assert log(tmp_path) == ["a", "slow", "slow"]


def test_two_at_once(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path),
        pytest.raises(UserError, match="another demo is running"),
        exclusive(tmp_path, patience=0.1),
    ):
        pass


def test_the_demo_has_every_stage_once_and_its_names_are_unique() -> None:
    recipe = load_recipe("demo")
    steps = demo_steps(recipe, Path("demo/base"))
    steps += compare_steps(load_recipe("demo_mono"), load_recipe("demo_bi"), Path("demo/base"))
    assert len({step.name for step in steps}) == len(steps)
    stages = [step.command[1] for step in steps if step.command[0] == "emma"]
    for stage in ("corpus", "pack", "mix", "train", "convert", "evaluate", "report", "release"):
        assert stage in stages
    train = [step for step in steps if step.command[:3] == ("emma", "train", "demo")]
    assert [step.stop.step if step.stop else None for step in train] == [
        round(recipe.schedule.steps * 0.4),
        round(recipe.schedule.steps * 0.6),
        None,
    ]
    load_recipe("demo", train[-1].command[3:])  # the other layout is valid


def test_the_optimised_run_has_the_proposals_data_and_the_others_budget(tmp_path: Path) -> None:
    mono, bilingual = load_recipe("demo_mono"), load_recipe("demo_bi")
    steps = {step.name: step for step in compare_steps(mono, bilingual, Path("demo/base"))}
    assert steps["compare"].command[3:6] == tuple(f"demo/runs/demo_{name}" for name in ("mono", "bi", "opt"))
    _, _, name, *overrides = steps["demo_opt-train"].command
    proposal = tmp_path / "proposal.yaml"
    proposal.write_text("base: demo\nname: demo_opt_1\nmix: {components: {code: {share: 20.0}}}\n")
    assert overrides[-1] == "data=demo/runs/demo-mix/demo/proposal.yaml"
    recipe = load_recipe(name, [*overrides[:-1], f"data={proposal}"])
    assert recipe.name == "demo_opt" and recipe.data.mix.components["code"].share == 20.0
    assert recipe.total_tokens == bilingual.total_tokens and recipe.start == bilingual.start


def test_both_mixes_have_one_store_and_one_budget() -> None:
    mono, bilingual = load_recipe("demo_mono"), load_recipe("demo_bi")
    assert mono.paths.store == bilingual.paths.store
    assert mono.total_tokens == bilingual.total_tokens
    assert set(bilingual.data.mix.components) - set(mono.data.mix.components) == {"bilingual"}
    relative = [
        {
            name: share / recipe.data.mix.shares["monolingual"]
            for name, share in recipe.data.mix.shares.items()
        }
        for recipe in (mono, bilingual)
    ]
    assert {name: relative[1][name] for name in relative[0]} == pytest.approx(relative[0])
