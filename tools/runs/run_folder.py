"""The run folder: who writes it, with which recipe, and what the next launch begins from. Needs no torch."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.base.manifest import now
from emma.recipes.load import load_recipe, write_recipe
from emma.recipes.schema import Recipe
from emma.tools.inspection.checkpoints import check_checkpoint
from emma.tools.runs.checkpoints import (
    TRACKER,
    LoadPlan,
    checkpoint_folder,
    complete_steps,
    incomplete_steps,
    resolve_start,
)
from emma.tools.runs.environment import environment
from emma.tools.runs.safety import steps_to_skip

__all__ = ["Launch", "RunFolder"]

# What may change between launches of one run: where and how it runs, what it logs and keeps. Everything else
# determines the weights, so changing it makes another run, or a phase.
_MAY_CHANGE = {
    *(
        "cluster",
        "parallelism",
        "checkpoint",
        "validation",
        "safety",
        "logging",
        "paths",
        "environment",
        "description",
    ),
    *(
        "batch.micro",
        "data.corpus",
        "data.pack",
        "model.tokenizer.path",
        "start.checkpoint",
        "start.reference",
    ),
}


@dataclass(frozen=True)
class Launch:
    """One start of the ranks, written to `launch.json` beforehand, so that all ranks read the same decision.

    Attributes:
        number: 1, 2, ... within the run.
        load: what this launch begins from.
        skip: steps whose batch is read but not trained on.
        writer: token of the claim in `writer.json`; a launch that has lost its claim stops before it writes.
        logs: folder of the ranks' output.
    """

    number: int
    load: LoadPlan
    skip: list[int]
    writer: str
    logs: str


class RunFolder:
    """Paths of a run, and its state on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.writer_file = self.path / "writer.json"
        self.launch_file = self.path / "launch.json"
        self.state_file = self.path / "state.json"
        self.reference_file = self.path / "reference.json"
        self.skipped_file = self.path / "skipped.json"
        self.alerts_file = self.path / "alerts.jsonl"
        # Anyone with write access can create these files: the run saves once, or saves and stops until the
        # file is removed.
        self.save_request = self.path / "save"
        self.stop_request = self.path / "stop"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.logs = self.path / "logs"

    def latest_step(self) -> int:
        """Step of the latest complete checkpoint; 0 if there is none."""
        return max(complete_steps(self.checkpoints), default=0)

    def finished(self, recipe: Recipe) -> bool:
        """Whether the schedule's last step has a complete checkpoint."""
        return self.latest_step() >= recipe.schedule.steps

    def read_launch(self) -> Launch:
        """The launch that the ranks belong to."""
        value = read_json(self.launch_file)
        return Launch(**{**value, "load": LoadPlan(**value["load"])})

    def prepare(self, recipe: Recipe, *, take_over: bool = False) -> Launch:
        """Prepares the folder for a launch: recipe, claim, environment, and the decision about what to load.

        Raises:
            UserError: the folder belongs to another recipe, another live process writes it, a teammate asked
                it to stop, or the checkpoint to start from cannot be used.
        """
        if self.stop_request.exists():
            raise UserError(
                f"{self.stop_request} asks this run to stop. Fix: remove the file to let it continue"
            )
        self.check_recipe(recipe)
        load = self.check_load(recipe)
        self._check_writer(take_over)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name.split("-")[1]) for path in self.logs.glob("launch-*")), default=0)
        logs = self.logs / f"launch-{number:04d}"
        logs.mkdir(parents=True)
        launch = Launch(
            number, load, steps_to_skip(recipe, self.skipped_file), secrets.token_hex(8), str(logs)
        )
        write_json(
            self.writer_file,
            {
                "writer": launch.writer,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "pid_namespace": _pid_namespace(),
                "job": os.environ.get("SLURM_JOB_ID"),
                "started": now(),
            },
        )
        write_recipe(recipe, self.recipe_file)
        launches = self.read_environment().get("launches", [])
        write_json(
            self.environment_file, {**environment(recipe), "launches": [*launches, _launch_record(launch)]}
        )
        write_json(self.launch_file, asdict(launch))
        self.state_file.unlink(missing_ok=True)
        return launch

    def read_environment(self) -> dict[str, Any]:
        """`environment.json`, or an empty mapping before the first launch."""
        return dict(read_json(self.environment_file)) if self.environment_file.is_file() else {}

    def holds_claim(self, launch: Launch) -> bool:
        """Whether `writer.json` still names this launch."""
        return self.writer_file.is_file() and read_json(self.writer_file).get("writer") == launch.writer

    def release_claim(self, launch: Launch) -> None:
        """Removes the claim of a launch that has ended, unless another launch has taken it over."""
        if self.holds_claim(launch):
            self.writer_file.unlink()

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses a recipe that would change the run already begun.

        Raises:
            UserError: a key that determines the weights differs from `recipe.yaml`.
        """
        if not self.recipe_file.is_file():
            return
        before = _flat(load_recipe(self.path).to_dict())
        after = _flat(recipe.to_dict())
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) == after.get(key) or any(
                key == k or key.startswith(f"{k}.") for k in _MAY_CHANGE
            ):
                continue
            raise UserError(
                f"{self.recipe_file}: this run has {key} = {before.get(key)!r}, but the recipe now says {after.get(key)!r}. "
                f"Fix: give the run another name (name=...), or start a new phase from it "
                f"(start.mode=phase start.checkpoint={self.path} under another name)"
            )

    def check_load(self, recipe: Recipe) -> LoadPlan:
        """What the next launch loads, inspected before any rank unpickles it.

        Raises:
            UserError: the checkpoint to start from cannot be used, or its pickles could run code.
        """
        plan = self._load_plan(recipe)
        if plan.folder is not None and plan.mode != "resume":
            check_checkpoint(checkpoint_folder(Path(plan.folder), plan.step or 0))
        return plan

    def _load_plan(self, recipe: Recipe) -> LoadPlan:
        complete = complete_steps(self.checkpoints)
        for broken, reason in incomplete_steps(self.checkpoints).items():
            if not complete or broken > complete[-1]:
                print(f"passing over checkpoint iter_{broken:07d}: {reason}", file=sys.stderr)
        if complete:
            return LoadPlan("resume", str(self.checkpoints), self._last_inert(complete))
        if recipe.start.mode == "scratch":
            return LoadPlan("scratch")
        point = resolve_start(str(recipe.start.checkpoint), recipe.start.step)
        # Megatron reads `--ckpt-step 0` as "none given"; an imported checkpoint is found by its tracker file.
        step: int | None = point.step or None
        if step is None and (point.folder / TRACKER).read_text().strip() not in ("0", "release"):
            raise UserError(
                f"start.step: {point.folder}/{TRACKER} does not name step 0; give the step to start from"
            )
        return LoadPlan(recipe.start.mode, str(point.folder), step)

    def _last_inert(self, complete: list[int]) -> int:
        """The last of the complete checkpoints whose pickles are inert; UserError if none is."""
        for step in reversed(complete[1:]):
            try:
                check_checkpoint(checkpoint_folder(self.checkpoints, step))
            except UserError as error:
                print(f"passing over checkpoint iter_{step:07d}: {error}", file=sys.stderr)
            else:
                return step
        check_checkpoint(checkpoint_folder(self.checkpoints, complete[0]))
        return complete[0]

    def _check_writer(self, take_over: bool) -> None:
        if take_over or not self.writer_file.is_file():
            return
        claim = read_json(self.writer_file)
        # In a Slurm job, the process that claims a run may end before its ranks do, so the job counts.
        job, namespace = os.environ.get("SLURM_JOB_ID"), _pid_namespace()
        here = claim.get("host") == socket.gethostname() and claim.get("job") == job
        # In another pid namespace (a container) on this host, the same number is another process.
        here &= claim.get("pid_namespace", namespace) == namespace
        if here and not _alive(int(claim.get("pid", 0))):
            return
        writer = f"Slurm job {claim['job']}" if claim.get("job") else f"process {claim.get('pid')}"
        raise UserError(
            f"{self.writer_file}: {writer} on {claim.get('host')} has been writing this run since "
            f"{claim.get('started')}. Fix: stop it, or add --take-over if it is gone (it stops before its next write)"
        )


def _launch_record(launch: Launch) -> dict[str, Any]:
    return {
        "number": launch.number,
        "started": now(),
        "load": asdict(launch.load),
        "host": socket.gethostname(),
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_flatten(value, prefix))


def _flatten(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _pid_namespace() -> str | None:
    """Name of this process's pid namespace; the host's own keeps its name across reboots."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
