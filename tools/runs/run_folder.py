"""The run folder: who writes it, with which recipe, and what the next launch begins from. Needs no torch."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
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
from emma.tools.runs.claim import Claim
from emma.tools.runs.decision import Decision, read_decision
from emma.tools.runs.environment import environment
from emma.tools.runs.fence import Claims, Fence, at
from emma.tools.runs.integrity import verify
from emma.tools.runs.safety import steps_to_skip
from emma.tools.runs.set_aside import LoadFailure, once_complete, set_incomplete_aside, settle

__all__ = ["GOES_BACK", "GUARDED", "IDENTITY", "Launch", "RunFolder"]

GOES_BACK = ("rewind", "set aside", "load failed")
"""Outcomes of a launch after which another one follows at once: it skips a step, or begins from another checkpoint."""

GUARDED = "ended by its guard"
"""Outcome of a launch that a guard ended (`guard.json`)."""

IDENTITY = "EMMA_LAUNCH"
"""Environment variable that tells ranks, and what follows them, which launch they are (`Launch.identity`)."""


@dataclass(frozen=True)
class Launch:
    """One start of the ranks, written to `launch.json` in its logs beforehand, so that all ranks read the same decision.

    Attributes:
        number: 1, 2, ... within the run; that of its claim.
        load: what this launch begins from.
        skip: steps whose batch is read but not trained on.
        writer: token of its claim.
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

    @property
    def identity(self) -> str:
        """`NUMBER-TOKEN`, for the environment of the ranks."""
        return f"{self.number}-{self.writer}"

    @property
    def environment(self) -> dict[str, str]:
        """What the ranks must get besides the caller's environment."""
        return {IDENTITY: self.identity}

    @property
    def launch_file(self) -> Path:
        """This launch as its ranks read it."""
        return Path(self.logs) / "launch.json"

    @property
    def state_file(self) -> Path:
        """How its ranks ended, in their own words."""
        return Path(self.logs) / "state.json"


class RunFolder:
    """Paths of a run, and its state on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.claims = Claims(self.path)
        self.reference_file = self.path / "reference.json"
        self.skipped_file = self.path / "skipped.json"
        self.guard_base_file = self.path / "guard_base.json"
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

    def standing_decision(self, recipe: Recipe) -> Decision | None:
        """What its guard decided, if the run must not go on by itself because of it."""
        decision = read_decision(self.path)
        return decision if decision is not None and decision.stands(recipe, self.latest_step()) else None

    def read_launch(self, identity: str | None = None) -> Launch:
        """A launch by its identity; by default the latest.

        Raises:
            UserError: it is not in this run folder.
        """
        number = str(self._launches()) if identity is None else identity.partition("-")[0]
        file = self.logs / f"launch-{int(number) if number.isdigit() else 0:04d}" / "launch.json"
        launch = self._read_launch(file)
        if launch is None or identity not in (None, launch.identity):
            raise UserError(f"{file}: is not launch {identity or 'of any'}. Fix: start the run again")
        return launch

    def own_launch(self) -> Launch:
        """The launch that this process belongs to, by its environment.

        Raises:
            UserError: the environment names none, or one of another run folder.
        """
        identity = os.environ.get(IDENTITY)
        if not identity:
            raise UserError(
                f"{IDENTITY} is not set, so these ranks cannot tell which launch they are. Fix: start them with `emma "
                "train`, or with what `emma train --prepare` prints"
            )
        return self.read_launch(identity)

    @staticmethod
    def _read_launch(file: Path) -> Launch | None:
        if not file.is_file():
            return None
        value = read_json(file)
        return Launch(**{**value, "load": LoadPlan(**value["load"])})

    def fence(self, launch: Launch) -> Fence:
        """What a launch may write."""
        return Fence(self.path, launch.number, launch.writer)

    def prepare(
        self,
        recipe: Recipe,
        *,
        take_over: bool = False,
        trial: int | None = None,
        kind: str = "process",
        gone: Callable[[Claim], str | None] | None = None,
    ) -> Launch:
        """Prepares the folder for a launch: claim, recipe, environment, and the decision about what to load.

        Args:
            recipe: the run's recipe.
            take_over: a person says that the writer is gone.
            trial: see `Launch`.
            kind: see `Claim`.
            gone: how the writer ended, in words; None if it may live. By default, only this machine's own word about a
                process counts.

        Raises:
            UserError: the folder belongs to another recipe, another launch writes it, a teammate asked
                it to stop or its guard ended it, the checkpoint to start from cannot be used, or none of the run's own can.
        """
        if self.stop_request.exists():
            raise UserError(
                f"{self.stop_request} asks this run to stop. Fix: remove the file to let it continue"
            )
        changed = self.check_recipe(recipe)
        if (decision := self.standing_decision(recipe)) is not None:
            raise UserError(decision.refusal(self.path))
        last = self._launches()

        def ended(claim: Claim) -> str | None:
            if take_over:
                return "taken over by hand"
            if gone is not None:
                return gone(claim)
            return "its process is gone" if claim.process_is_gone() else None

        fence = self.claims.take(ended, kind)
        try:
            return self._prepare(recipe, fence, last, changed, trial)
        except BaseException:
            fence.end("failed before its ranks started")
            raise

    def _prepare(
        self, recipe: Recipe, fence: Fence, last: int, changed: dict[str, list[Any]], trial: int | None
    ) -> Launch:
        if last:
            self._settle(self.logs / f"launch-{last:04d}" / "launch.json", fence)
        set_incomplete_aside(self.checkpoints, self.checkpoints_log, fence)
        load = self.check_load(recipe)
        at("decided")
        logs = self.logs / f"launch-{fence.number:04d}"
        logs.mkdir(parents=True, exist_ok=True)
        skip = steps_to_skip(recipe, self.skipped_file)
        launch = Launch(fence.number, load, skip, fence.writer, str(logs), trial)
        with fence.writing(self.recipe_file) as file:
            write_recipe(recipe, file)
        launches = self.read_environment().get("launches", [])
        record = {**_launch_record(launch, recipe), "changed": changed}
        fence.write_json(self.environment_file, {**environment(recipe), "launches": [*launches, record]})
        self._point_tracker(load, fence)
        write_json(launch.launch_file, asdict(launch))
        at("prepared")
        return launch

    def read_environment(self) -> dict[str, Any]:
        """`environment.json`, or an empty mapping before the first launch."""
        return dict(read_json(self.environment_file)) if self.environment_file.is_file() else {}

    def holds_claim(self, launch: Launch) -> bool:
        """Whether the run is still this launch's."""
        return self.fence(launch).held()

    def release_claim(self, launch: Launch, how: str = "its ranks have ended") -> None:
        """Records the end of a launch, and gives the run back if it has it."""
        self.fence(launch).end(how)

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
        if launch.state_file.is_file():
            return str(read_json(launch.state_file)["state"])
        failure = LoadFailure.of_launch(Path(launch.logs)) if self.owns(launch.load) else None
        return None if failure is None else "load failed"

    def why_it_goes_back(self, launch: Launch) -> str:
        """What to say after a launch whose outcome is one of `GOES_BACK`."""
        if self.outcome(launch) == "load failed":
            return f"checkpoint iter_{launch.load.step:07d}: {LoadFailure.of_launch(Path(launch.logs))}"
        state = read_json(launch.state_file)
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

    def _settle(self, file: Path, fence: Fence) -> None:
        """Decides about the checkpoint of a launch that could not load it."""
        last = self._read_launch(file)
        if last is None or not self.owns(last.load):
            return
        decided = settle(
            self.checkpoints, self.checkpoints_log, Path(last.logs), last.number, last.load, fence
        )
        if decided is not None:
            print(decided, file=sys.stderr, flush=True)

    def _point_tracker(self, load: LoadPlan, fence: Fence) -> None:
        """Makes Megatron's tracker file name the checkpoint that the run stands at: what it held may be damaged, or
        name one that was set aside or never completed."""
        tracker = self.checkpoints / TRACKER
        if not self.owns(load):
            fence.check()
            tracker.unlink(missing_ok=True)
        elif tracked_step(self.checkpoints) != load.step:
            with fence.writing(tracker) as file:
                write_text(file, str(load.step))


def _launch_record(launch: Launch, recipe: Recipe) -> dict[str, Any]:
    return {
        "number": launch.number,
        "started": now(),
        "load": asdict(launch.load),
        "host": socket.gethostname(),
        "recipe_sha256": recipe.sha256,
        "megatron_args": dict(recipe.megatron_args),
    }
