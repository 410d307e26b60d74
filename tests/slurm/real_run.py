"""A small run that real jobs train on the test cluster."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from emma.base.files import write_json
from emma.recipes.load import load_recipe
from emma.slurm.history import History
from emma.tools.runs.metrics import read_metrics
from emma.tools.runs.run_folder import RunFolder
from tests.foreign_packages import write_foreign_packages
from tests.slurm.two_nodes import TwoNodes
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix
from tests.tiny_text import BEGIN, END

__all__ = ["RealRun", "emma", "make_run"]

GLOBAL_BATCH, LENGTH = 8, 32


def emma(slurm: TwoNodes, work: Path, *arguments: str, code: int = 0) -> str:
    """Output of a command line in `work`, on the test cluster."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "emma.cli", *arguments],
        cwd=work,
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"emma {' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@dataclass
class RealRun:
    """One run and its jobs."""

    slurm: TwoNodes
    work: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.work / "runs" / self.name

    def submit(self, cluster: str, *arguments: str, code: int = 0) -> str:
        """`emma slurm submit` for a cluster section, with the limits of the test cluster."""
        limits = "cluster.slurm={exclusive: false, time_limit: '00:40:00', signal_seconds: 60}"
        name = f"name={self.name}"
        return emma(
            self.slurm,
            self.work,
            "slurm",
            "submit",
            "small.yaml",
            name,
            cluster,
            limits,
            *arguments,
            code=code,
        )

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events of the run, optionally of one kind."""
        return [event for event in History(self.folder).events() if kind in (None, event["event"])]

    def launches(self) -> list[int]:
        """Numbers of the launches that began."""
        return [event["launch"] for event in self.events("began")]

    def restarts(self) -> list[int]:
        return [event["restart"] for event in self.events("began")]

    def node_of_launch(self, launch: int) -> str:
        return str(next(event["nodes"] for event in self.events("began") if event["launch"] == launch))

    def node(self) -> str:
        """Node of the latest launch."""
        return self.node_of_launch(self.launches()[-1])

    def jobs(self, link: str | None = None) -> list[int]:
        """Submitted jobs, optionally those of one link."""
        return [event["job"] for event in self.events("submitted") if link in (None, event["link"])]

    def state(self, job: int | None = None) -> str:
        """Slurm's state of a job, by default the last one submitted."""
        return self._shown("JobState", job)

    def waits_for(self, job: int) -> str:
        """What a job waits for besides its turn, in Slurm's notation."""
        conditions = self._shown("Dependency", job).replace("(unfulfilled)", "").split(",")
        return ",".join(sorted(set(conditions) - {"singleton"}))

    def limit_time(self, seconds: int) -> None:
        """Moves the running job's time limit close: between `seconds` and a minute more from now, since
        Slurm's limits are whole minutes."""
        hours, minutes, rest = map(int, self._shown("RunTime").split(":"))
        self.set_time_limit((hours * 3600 + minutes * 60 + rest + seconds) // 60 + 1)

    def set_time_limit(self, minutes: int) -> None:
        self.slurm.command("scontrol", "update", f"JobId={self.jobs()[-1]}", f"TimeLimit={minutes}")

    def _shown(self, field: str, job: int | None = None) -> str:
        shown = self.slurm.command("scontrol", "--oneliner", "show", "job", str(job or self.jobs()[-1]))
        return shown.split(f" {field}=")[1].split()[0]

    def failed(self) -> list[int]:
        """Jobs that went wrong."""
        return [job for job in self.jobs() if self.state(job) in ("FAILED", "CANCELLED", "TIMEOUT")]

    def step(self) -> int:
        rows = read_metrics(RunFolder(self.folder).metrics_file)[0]
        return rows[-1]["step"] if rows else 0

    def losses(self) -> dict[int, float]:
        return {row["step"]: row["loss"] for row in read_metrics(RunFolder(self.folder).metrics_file)[0]}

    def rank_log(self, launch: int) -> str:
        logs = sorted((self.folder / "logs" / f"launch-{launch:04d}").glob("rank-*.log"))
        return "".join(path.read_text(errors="replace") for path in logs)

    def wait_for_step(self, step: int, seconds: float) -> None:
        self._wait(lambda: self.step() >= step, f"step {step}", seconds)

    def ranks(self, node: str) -> list[int]:
        """Process ids of the ranks on a node."""
        return self.slurm.processes(node, "emma.tools.training.worker", str(self.folder))

    def logged(self) -> list[int]:
        """Steps in the order in which they were logged, including repeated ones."""
        return _logged(RunFolder(self.folder).metrics_file.read_bytes())

    def wait_until_logged(self, step: int, after: int, seconds: float) -> None:
        """Waits until `step` is logged after the first `after` lines: a launch may repeat steps."""
        self._wait(lambda: step in self.logged()[after:], f"step {step} again", seconds)

    def wait_until_logged_more(self, lines: int, seconds: float) -> None:
        """Waits until more than so many steps, repeated ones included, were logged."""
        file = RunFolder(self.folder).metrics_file
        self._wait(
            lambda: file.is_file() and len(self.logged()) > lines, f"{lines + 1} logged steps", seconds
        )

    def wait_until_finished(self, seconds: float) -> None:
        recipe = load_recipe(self.folder)
        run = RunFolder(self.folder)
        self._wait(lambda: run.finished(recipe) and self.state() == "COMPLETED", "the end", seconds)

    def cancel(self) -> None:
        self.slurm.command("scancel", str(self.jobs()[-1]))

    def _wait(self, condition: Any, what: str, seconds: float) -> None:
        def ended() -> bool:
            if self.state() in ("FAILED", "CANCELLED", "TIMEOUT"):
                raise AssertionError(f"{self.name}: {self.state()} before {what}\n{self.logs()}")
            return bool(condition())

        try:
            self.slurm.wait(ended, f"{self.name}: {what}", seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        """Tails of the job's and the ranks' logs."""
        paths = [
            *sorted(self.folder.glob("logs/slurm/*.log")),
            *sorted(self.folder.glob("logs/launch-*/*.log"))[-6:],
        ]
        return "\n".join(f"== {path}\n" + path.read_text(errors="replace")[-1500:] for path in paths)


def _logged(text: bytes) -> list[int]:
    lines = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
    return [row["step"] for row in map(orjson.loads, lines) if "loss" in row]


def make_run(folder: Path, name: str, steps: int, slurm: TwoNodes) -> RealRun:
    """A run of `steps` steps over its own mix under `folder`; runs in one folder share it."""
    if not (folder / "small.yaml").is_file():
        mix = make_tiny_mix(folder, samples=steps * GLOBAL_BATCH, sequence_length=LENGTH, vocab_size=512)
        # What `transformers` needs to open documents when an export is evaluated.
        special = {"bos_token": BEGIN, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(mix.tokenizer / "tokenizer_config.json", special)
        path = write_small_run(folder, mix.data.model_dump(mode="json"), mix.tokenizer)
        text = path.read_text().replace("steps: 10", f"steps: {steps}")
        path.write_text(text.replace("interval: 5\n", f"interval: {max(5, steps // 4)}\n"))
        # Jobs and their ranks run in this folder and must import the installed package all the same.
        write_foreign_packages(folder)
    return RealRun(slurm, folder, name)
