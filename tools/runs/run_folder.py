"""The run folder: who writes it, with which recipe, and what the next launch begins from. Needs no torch."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.base.files import read_json, write_json, write_text
from emma.base.manifest import now
from emma.recipes.load import load_recipe, write_recipe
from emma.recipes.may_change import changed_keys, may_change
from emma.recipes.schema import Recipe
from emma.tools.inspection.checkpoints import check_checkpoint
from emma.tools.runs.checkpoints import (
    TRACKER,
    LoadPlan,
    checkpoint_folder,
    complete_steps,
    resolve_start,
    tracked_step,
)
from emma.tools.runs.environment import environment
from emma.tools.runs.integrity import verify
from emma.tools.runs.safety import steps_to_skip
from emma.tools.runs.set_aside import LoadFailure, once_complete, set_incomplete_aside, settle

__all__ = ["GOES_BACK", "Launch", "RunFolder"]

GOES_BACK = ("rewind", "set aside", "load failed")
"""Outcomes of a launch after which another one follows at once: it skips a step, or begins from another checkpoint."""


@dataclass(frozen=True)
class Launch:
    """One start of the ranks, written to `launch.json` beforehand, so that all ranks read the same decision.

    Attributes:
        number: 1, 2, ... within the run.
        load: what this launch begins from.
        skip: steps whose batch is read but not trained on.
        writer: token of the claim in `writer.json`; a launch that has lost its claim stops before it writes.
        logs: folder of the ranks' output.
        trial: leave the loop after this step and save nothing, except step 0 of a run from scratch; None:
            train to the end of the schedule.
    """

    number: int
    load: LoadPlan
    skip: list[int]
    writer: str
    logs: str
    trial: int | None = None


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
        self.stragglers_file = self.path / "stragglers.jsonl"
        # Anyone with write access can create these files: the run saves once, or saves and stops until the
        # file is removed.
        self.save_request = self.path / "save"
        self.stop_request = self.path / "stop"
        self.checkpoints = self.path / "checkpoints"
        self.checkpoints_log = self.path / "checkpoints.jsonl"
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

    def prepare(self, recipe: Recipe, *, take_over: bool = False, trial: int | None = None) -> Launch:
        """Prepares the folder for a launch: recipe, claim, environment, and the decision about what to load.

        Args:
            recipe: the run's recipe.
            take_over: claim the run even if `writer.json` names another process.
            trial: see `Launch`.

        Raises:
            UserError: the folder belongs to another recipe, another live process writes it, a teammate asked
                it to stop, the checkpoint to start from cannot be used, or none of the run's own can.
        """
        if self.stop_request.exists():
            raise UserError(
                f"{self.stop_request} asks this run to stop. Fix: remove the file to let it continue"
            )
        changed = self.check_recipe(recipe)
        self._check_writer(take_over)
        self._settle_last_launch()
        set_incomplete_aside(self.checkpoints, self.checkpoints_log, 1 + self._launches())
        load = self.check_load(recipe)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        number = 1 + self._launches()
        logs = self.logs / f"launch-{number:04d}"
        logs.mkdir(parents=True)
        launch = Launch(
            number, load, steps_to_skip(recipe, self.skipped_file), secrets.token_hex(8), str(logs), trial
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
        record = {**_launch_record(launch, recipe), "changed": changed}
        write_json(self.environment_file, {**environment(recipe), "launches": [*launches, record]})
        self._point_tracker(load)
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

    def check_recipe(self, recipe: Recipe) -> dict[str, list[Any]]:
        """Refuses a recipe that would change the run already begun (`recipes/may_change.yaml`).

        Returns:
            The keys that differ from the last launch's recipe, each with its old and new value.

        Raises:
            UserError: a key that determines the weights differs from `recipe.yaml`.
        """
        if not self.recipe_file.is_file():
            return {}
        changed = changed_keys(load_recipe(self.path).to_dict(), recipe.to_dict())
        for key, (before, after) in changed.items():
            if not may_change(key):
                raise UserError(
                    f"{self.recipe_file}: this run has {key} = {before}, but the recipe now says {after}. "
                    f"Fix: give the run another name (name=...), or start a new phase from it "
                    f"(start.mode=phase start.checkpoint={self.path} under another name)"
                )
        return {key: list(values) for key, values in changed.items()}

    def outcome(self, launch: Launch) -> str | None:
        """How a launch ended: the state that it recorded; `load failed` if Megatron could not load the checkpoint,
        which the next `prepare` settles; None if the ranks failed otherwise."""
        state = read_json(self.state_file) if self.state_file.is_file() else {}
        if state.get("writer") == launch.writer:
            return str(state["state"])
        failure = LoadFailure.of_launch(Path(launch.logs)) if self.owns(launch.load) else None
        return None if failure is None else "load failed"

    def why_it_goes_back(self, launch: Launch) -> str:
        """What to say after a launch whose outcome is one of `GOES_BACK`."""
        if self.outcome(launch) == "load failed":
            return f"checkpoint iter_{launch.load.step:07d}: {LoadFailure.of_launch(Path(launch.logs))}"
        state = read_json(self.state_file)
        if state["state"] == "rewind":
            return f"step {state['step']}: {state['reason']}; going back to skip its batch"
        return str(state["reason"])

    def owns(self, load: LoadPlan) -> bool:
        """Whether a launch begins from a checkpoint of this run, and not from another folder's."""
        return load.folder is not None and Path(load.folder).resolve() == self.checkpoints.resolve()

    def check_load(self, recipe: Recipe) -> LoadPlan:
        """What the next launch loads, inspected before any rank unpickles it.

        Raises:
            UserError: the checkpoint to start from cannot be used, or its pickles could run code.
        """
        load = self.load_plan(recipe)
        if load.folder is None:
            return load
        folder = checkpoint_folder(Path(load.folder), load.step or 0)
        try:
            check_checkpoint(folder)
        except UserError:
            # A damaged pickle looks like a forged one. The ranks compare the files with their checksums before they
            # load any, run nothing that a pickle asks for, and go back to the checkpoint before.
            if not self.owns(load) or verify(folder).state == "verified":
                raise
        return load

    def load_plan(self, recipe: Recipe) -> LoadPlan:
        """What the next launch begins from.

        Raises:
            UserError: the starting checkpoint cannot be used; or the run had checkpoints and none can be used now,
                so that beginning again is a person's decision.
        """
        complete = complete_steps(self.checkpoints)
        if complete:
            return LoadPlan("resume", str(self.checkpoints), complete[-1])
        lost = once_complete(self.checkpoints, self.checkpoints_log)
        launches = self.read_environment().get("launches", [])
        if lost or any(self.owns(LoadPlan(**launch["load"])) for launch in launches):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in lost.items()) or "they are gone"
            raise UserError(
                f"{self.checkpoints}: this run has had checkpoints, and none of them can be used ({reasons}). Nothing is "
                "started from the beginning by itself. Fix: restore the files of one (and rename its folder back to "
                "iter_NNNNNNN if it was set aside); or begin again under another name (name=...)"
            )
        if recipe.start.mode == "scratch":
            return LoadPlan("scratch")
        point = resolve_start(str(recipe.start.checkpoint), recipe.start.step)
        # Megatron reads `--ckpt-step 0` as "none given"; an imported checkpoint is found by its tracker file. Where a
        # step is given, it reads the file too, and ends in silence if that holds anything else.
        tracker, step = point.folder / TRACKER, point.step or None
        named = tracker.read_bytes().strip() if tracker.is_file() else None
        if (step is None and named != b"0") or not (named is None or named.isdigit()):
            raise UserError(
                f"start.checkpoint: {tracker} must name a step (here {point.step}), but "
                + ("it is missing" if named is None else f"holds {named[:40].decode(errors='replace')!r}")
                + f". Fix: write {point.step} into it"
            )
        return LoadPlan(recipe.start.mode, str(point.folder), step)

    def _launches(self) -> int:
        return max((int(path.name.split("-")[1]) for path in self.logs.glob("launch-*")), default=0)

    def _settle_last_launch(self) -> None:
        if not self.launch_file.is_file():
            return
        last = self.read_launch()
        if not self.owns(last.load):
            return
        decided = settle(self.checkpoints, self.checkpoints_log, Path(last.logs), last.number, last.load)
        if decided is not None:
            print(decided, file=sys.stderr, flush=True)

    def _point_tracker(self, load: LoadPlan) -> None:
        """Makes Megatron's tracker file name the checkpoint that the run stands at: what it held may be damaged, or
        name one that was set aside or never completed."""
        tracker = self.checkpoints / TRACKER
        if not self.owns(load):
            tracker.unlink(missing_ok=True)
        elif tracked_step(self.checkpoints) != load.step:
            write_text(tracker, str(load.step))

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


def _launch_record(launch: Launch, recipe: Recipe) -> dict[str, Any]:
    return {
        "number": launch.number,
        "started": now(),
        "load": asdict(launch.load),
        "host": socket.gethostname(),
        "recipe_sha256": recipe.sha256,
        "megatron_args": dict(recipe.megatron_args),
    }


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
