"""Watching a launch, telling people, and stopping a run."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from emma.base.errors import UserError
from emma.base.files import write_json
from emma.recipes.load import load_recipe, write_recipe
from emma.slurm import query
from emma.slurm.history import History
from emma.slurm.link import AGAIN, CONTINUES, begin, end
from emma.slurm.notify import notify
from emma.slurm.stop import declare_gone, stop
from emma.slurm.watch import watch
from emma.tools.runs.run_folder import IDENTITY, Launch, RunFolder
from tests.command_line import emma
from tests.slurm.conftest import MakeRecipe
from tests.tools.runs.test_checkpoints import save

TOLD = (
    "cluster.slurm.notify=[{command: 'echo \"$EMMA_EVENT: $EMMA_TEXT\" >>$EMMA_FOLDER/told', events: [%s]}]"
)


@pytest.fixture
def run(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run in job 7 that tells all events into the file `told`."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("emma.tools.training.plan_start.check_mix", lambda recipe: None)
    monkeypatch.setattr("emma.tools.training.plan_start.describe", lambda recipe, run, mix: "")
    recipe = make_recipe(
        TOLD % "started, saved, stalled, given up, finished", "cluster.slurm.stall_seconds=30"
    )
    write_recipe(recipe, recipe.run_folder / "recipe.yaml")
    return RunFolder(recipe.run_folder)


def start(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Launch:
    launch = begin(run.path)
    assert launch is not None
    monkeypatch.setenv(IDENTITY, launch.identity)
    return launch


def beat(launch: Launch, phase: str, ago: float, **seconds: float) -> None:
    now = time.time()
    value = {"phase": phase, "step": 3, "since": now - ago, "time": now, "seconds": seconds}
    write_json(Path(launch.logs) / "heartbeat.json", value)


def told(run: RunFolder) -> list[str]:
    return [line.partition(":")[0] for line in (run.path / "told").read_text().splitlines()]


def test_a_stall_is_recorded_and_told_and_an_end_is_not(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = start(run, monkeypatch)
    beat(launch, "step", 10, step=1.0)
    threading.Timer(0.3, save, (run.checkpoints, 4)).start()
    threading.Timer(1.5, beat, (launch, "save", 200), {"step": 1.0, "save": 15.0}).start()
    assert watch(run.path, seconds=0.1)
    assert "stalled: save after step 3 for 200 s (at most 150 s)" in capsys.readouterr().err
    (stalled,) = [event for event in History(run.path).events() if event["event"] == "stalled"]
    assert (stalled["launch"], stalled["phase"], stalled["step"]) == (1, "save", 3)
    assert told(run) == ["started", "saved", "stalled"]
    run.release_claim(launch)
    assert not watch(run.path, seconds=0.1), "the ranks have ended"


def test_stalls_are_counted_apart_from_crashes(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one in a job starts the ranks again there; three at one step end the run."""
    codes = []
    for _ in range(2):
        launch = start(run, monkeypatch)
        assert end(run.path, 1) == CONTINUES
        launch = start(run, monkeypatch)
        History(run.path).add("stalled", launch=launch.number, phase="step", step=0, seconds=99)
        codes.append(end(run.path, 137))
    assert codes == [AGAIN, CONTINUES]
    launch = start(run, monkeypatch)
    History(run.path).add("stalled", launch=launch.number, phase="step", step=0, seconds=99)
    with pytest.raises(UserError, match="given up: 3 jobs in a row stalled at step 0"):
        end(run.path, 137)
    assert told(run)[-1] == "given up"


def test_a_finished_run_is_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    start(run, monkeypatch)
    save(run.checkpoints, 10)
    assert end(run.path, 0) == 0
    assert told(run) == ["started", "finished"]


class Receiver(http.server.BaseHTTPRequestHandler):
    """A webhook that keeps what it gets."""

    got: list[dict[str, str]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.got.append(orjson.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200 if self.path == "/ok" else 500)
        self.end_headers()

    def log_message(self, *values: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_webhooks_and_mail(
    make_recipe: MakeRecipe,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What cannot be sent is said, and the rest is sent all the same."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sendmail").write_text(f"#!/bin/bash\ncat >{tmp_path}/mail\n")
    (programs / "sendmail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    recipe = make_recipe(
        f"cluster.slurm.notify=[{{webhook: '{server}/broken'}}, {{command: 'exit 3'}}, {{webhook: '{server}/ok'}}, "
        "{mail: team@example.org}, {command: 'touch never', events: [saved]}]"
    )
    notify(recipe, "stalled", "save after step 3")
    assert [each["text"] for each in Receiver.got] == ["small: stalled: save after step 3"] * 2
    assert Receiver.got[1]["event"] == "stalled"
    mail = (tmp_path / "mail").read_text()
    assert (
        "To: team@example.org" in mail and "Subject: small: stalled" in mail and "save after step 3" in mail
    )
    said = capsys.readouterr().err
    assert said.count("warning: stalled could not be sent") == 2 and "exit code 3" in said
    assert not Path("never").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{events: [saved]}", "name one of command, mail and webhook"),
        ("{mail: a, command: b}", "name one of command, mail and webhook"),
        ("{webhook: example.org}", "is not an http or https address"),
        ("{mail: a, events: [ended]}", "is not a choice"),
        ('{mail: "a\\nBcc: b"}', "line break"),
    ],
)
def test_a_notification_that_cannot_be_sent_is_refused(
    make_recipe: MakeRecipe, value: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe(f"cluster.slurm.notify=[{value}]")


class Slurm:
    """Slurm's answers about one running and one waiting job, and what it is asked to do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        jobs = [
            query.Job(7, 7, None, "RUNNING", "main", 1, "1", "", "", "", "", "x", ""),
            query.Job(8, 8, None, "PENDING", "main", 1, "1", "", "", "", "", "x", ""),
        ]
        monkeypatch.setattr(query, "jobs", lambda names: jobs)
        monkeypatch.setattr(query, "run_slurm", lambda arguments: self.asked.append(list(arguments)) or "")


def test_stop_asks_first_and_cancels_after(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, said = Slurm(monkeypatch), list[str]()
    launch = start(run, monkeypatch)
    monkeypatch.setattr("emma.slurm.stop.POLL_SECONDS", 0.05)

    def ranks_save() -> None:
        assert run.stop_request.exists()
        save(run.checkpoints, 4)
        run.release_claim(launch)

    threading.Timer(0.3, ranks_save).start()
    assert stop(run.path, 30, said.append) == 4
    assert slurm.asked == [["scancel", "--state=PENDING", "8"]], "the running one ends by itself"
    assert run.stop_request.exists()


def test_stop_cancels_what_does_not_answer(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm, said = Slurm(monkeypatch), list[str]()
    start(run, monkeypatch)
    monkeypatch.setattr("emma.slurm.stop.POLL_SECONDS", 0.05)
    assert stop(run.path, 0.2, said.append) == 0
    assert slurm.asked == [["scancel", "--state=PENDING", "8"], ["scancel", "7"]]
    assert any("Slurm job 7 of" in line and "has not ended" in line for line in said)


def test_a_person_declares_a_writer_gone(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = start(run, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    done = emma("slurm", "stop", str(run.path), "--writer-is-gone")
    assert done.code == 0 and "Slurm job 7 of" in done.out and not run.holds_claim(launch)
    assert start(run, monkeypatch).number == 2
    run.release_claim(run.read_launch())
    with pytest.raises(UserError, match="nobody writes this run"):
        declare_gone(run.path)
    assert load_recipe(run.path).name == "small"
