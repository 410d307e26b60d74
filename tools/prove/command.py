"""`emma train RUN --prove N`: what is compared, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from emma.base.errors import RecipeError, UserError
from emma.base.progress import progress
from emma.checkpoints_conversion.checkpoint import check_start, find_checkpoint
from emma.recipes.load import load_recipe
from emma.tools.arithmetic.parameters import total_parameters
from emma.tools.prove.begin import Begin, find_begin
from emma.tools.prove.logged import Logged, mixes_of, read_logged
from emma.tools.prove.loop import Replay, Step, available_bytes, bytes_needed, operations, recomputes, speed
from emma.tools.prove.samples import Samples
from emma.tools.prove.trial import train_trial, trial_folder, truncated_base
from emma.tools.prove.verdict import Verdict, compare_rows, default_tolerance
from emma.tools.runs.run_folder import RunFolder
from emma.tools.runs.safety import steps_to_skip

__all__ = ["Proof"]

_GIB = 2**30


class Proof:
    """A proof of a run's first steps, or of those after one of its checkpoints.

    Args:
        run: the RUN.
        overrides: `section.key=value`.
        steps: number of steps to prove.
        layers: cut the model to its first layers, on both sides; Megatron then trains them afresh.
        from_step: begin at the run's checkpoint of this step, with its moments.
        tolerance: largest difference of a loss, in nats; default: by precision.
        device: `cpu` or `cuda`; default: a GPU if there is one.

    Raises:
        UserError: the proof cannot be made; says why and what can.
    """

    def __init__(
        self,
        run: str,
        overrides: Sequence[str],
        steps: int,
        *,
        layers: int | None = None,
        from_step: int | None = None,
        tolerance: float | None = None,
        device: str | None = None,
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.run, self.layers, self.from_step = run, layers, from_step
        self.overrides = [*overrides, *([] if layers is None else [f"model.layers={layers}"])]
        self.whole = load_recipe(run, overrides)
        self.recipe = load_recipe(run, self.overrides)
        if self.whole.train is not None:
            raise RecipeError(
                "train.only",
                "the proof's own loop trains all weights",
                "prove a run without it; each save of this one proves that frozen weights stay",
            )
        self.folder = RunFolder(self.whole.run_folder)
        self.folder.check_recipe(self.whole)
        self.tolerance = default_tolerance(self.recipe) if tolerance is None else tolerance
        self.steps = steps
        self.logged = read_logged(self.folder) if layers is None else Logged({}, {})
        self.samples = Samples(self.recipe.mix_folder, self.recipe.batch.sequence_length)
        self._check_request()
        if not self.trained:
            check_start(self.whole)
        scratch = self.recipe.start.mode == "scratch" and from_step is None
        self.begin = None if scratch else find_begin(self.recipe, self.folder, from_step)
        self.first = 0 if self.begin is None else self.begin.step
        self.last = self.first + steps
        self._check_range()
        self._check_memory()

    @property
    def trained(self) -> bool:
        """Whether the run's own metrics are compared."""
        return bool(self.logged.rows)

    def describe(self) -> str:
        """What will be compared with what, and what it takes."""
        model, recipe = total_parameters(self.recipe.model), self.recipe
        source = (
            self.folder.metrics_file
            if self.trained
            else "Megatron, which trains them now in a folder of their own"
        )
        begin = "new weights" if self.begin is None else str(self.begin.place)
        work = operations(recipe, self.steps, self.device)
        needed = bytes_needed(recipe, recompute=recomputes(recipe, self.device))
        lines = [
            f"steps     {self.first + 1} to {self.last} of {self.folder.path}, logged by {source}",
            f"against   transformers' model and torch's AdamW in FP32 on {self.device}, from {begin}",
            f"memory    {needed / _GIB:.2f} GiB: {model:,} parameters × 16 bytes (weights, gradients, two "
            "moments), and activations",
            f"time      about {_duration(work / speed(self.device))} or more: {work:.1e} operations",
        ]
        if recipe.megatron_args:
            names = ", ".join(sorted(recipe.megatron_args))
            lines.append(
                f"note      megatron_args ({names}) are Megatron's alone; what they change shows as a difference"
            )
        return "\n".join(lines)

    def prove(self) -> Verdict:
        """Compares, after Megatron has trained what it has not trained yet.

        Raises:
            CheckFailedError: the mix is not the one that was built, or Megatron could not train.
        """
        self.samples.check_files(self.last * self.recipe.batch.global_)
        if self.trained and self.begin is not None:
            return self._compare(self.begin, self.logged)
        with trial_folder(self.recipe) as folder:
            trial = self._trial(folder)
            begin = self.begin or Begin(find_checkpoint(trial.checkpoints, 0))
            if self.trained:
                return self._compare(begin, self.logged)
            logged, skipped = read_logged(trial), steps_to_skip(self.recipe, trial.skipped_file)
            if lost := set(range(self.first + 1, self.last + 1)) - logged.rows.keys() - set(skipped):
                raise UserError(
                    f"{trial.path}: stopped before step {min(lost)}, of {self.last}; nothing is proven"
                )
            return self._compare(begin, logged)

    def _trial(self, folder: Path) -> RunFolder:
        """Has Megatron train the steps; of a trained run from scratch, only its initial weights are wanted."""
        base = None
        if self.layers is not None and self.begin is not None:
            base = truncated_base(self.recipe, self.begin, folder)
        return train_trial(self.run, self.overrides, folder, 1 if self.trained else self.last, base)

    def _compare(self, begin: Begin, logged: Logged) -> Verdict:
        listed = steps_to_skip(self.recipe, self.folder.skipped_file)
        skip = {step for step in listed if step not in logged.rows}
        replay = Replay(self.recipe, self.samples, begin, self.device)
        own: dict[int, Step] = {}
        total = self.steps * self.recipe.tokens_per_step
        bar: tqdm[Any]
        with progress(total=total, desc="independent loop", unit="token", unit_scale=True) as bar:
            counted = max(
                (step for step in range(self.first + 1, self.last + 1) if step not in skip), default=None
            )
            before = replay.loss(counted)[0] if counted else 0.0
            for step in replay.steps(self.last, skip, bar.update):
                own[step.step] = step
                bar.set_postfix_str(f"step {step.step}, loss {step.loss:.3f}", refresh=False)
        rows = compare_rows(self.recipe, logged, own, self.first, self.last)
        if not rows:
            raise UserError(
                f"{self.folder.metrics_file}: no row of steps {self.first + 1} to {self.last}; logging.interval is "
                f"{self.recipe.logging.interval}. Fix: prove more steps"
            )
        facts = {
            "run": str(self.folder.path),
            "steps": [self.first + 1, self.last],
            "logged_by": "the run" if self.trained else "a trial",
            "weights": str(begin.place),
            "layers": self.recipe.model.layers,
            "precision": self.recipe.precision.name,
            "device": self.device,
            "mix": self.samples.fingerprint,
            "skipped": sorted(step for step in skip if self.first < step <= self.last),
        }
        moved = own[counted].loss - before if counted else 0.0
        return Verdict(rows, self.tolerance, moved, facts)

    def _check_request(self) -> None:
        if self.from_step is not None and self.layers is not None:
            raise UserError(
                "--from-step and --layers cannot be combined: a checkpoint is proven whole. Fix: leave out one"
            )
        if self.layers is not None and self.recipe.start.mode in ("phase", "resume"):
            raise UserError(
                f"--layers: mode {self.recipe.start.mode} begins with moments of all layers. Fix: leave it out, or prove a "
                "copy of the run with start.mode=weights"
            )
        if self.layers is not None and self.layers > self.whole.model.layers:
            raise RecipeError(
                "model.layers",
                f"--layers {self.layers}, but the model has {self.whole.model.layers}",
                "fewer",
            )
        others = mixes_of(self.folder) - {self.samples.fingerprint}
        if self.trained and others:
            raise UserError(
                f"{self.samples.mix}: mix {self.samples.fingerprint}, but the run was trained on {', '.join(sorted(others))}. "
                "Fix: put that mix back, or prove under another name (name=...)"
            )

    def _check_range(self) -> None:
        if self.last > self.recipe.schedule.steps:
            raise UserError(
                f"--prove {self.steps}: step {self.last} is after the run's last, {self.recipe.schedule.steps}. "
                f"Fix: --prove {max(1, self.recipe.schedule.steps - self.first)} or fewer"
            )
        if self.trained and self.logged.last + self.recipe.logging.interval <= self.last:
            raise UserError(
                f"{self.folder.metrics_file}: step {self.last} is not there yet; the last one is {self.logged.last}. Fix: "
                f"--prove {max(1, self.logged.last - self.first)}, or train further"
            )
        if self.from_step is not None and not self.trained:
            raise UserError(f"--from-step: {self.folder.metrics_file} has no steps yet. Fix: leave it out")

    def _check_memory(self) -> None:
        needed, free = bytes_needed(self.recipe), available_bytes(self.device)
        if needed > free:
            raise UserError(
                f"--prove: the independent loop needs {needed / _GIB:.1f} GiB on {self.device}, "
                f"{total_parameters(self.recipe.model):,} parameters × 16 bytes and activations, but {free / _GIB:.1f} GiB are "
                f"free. Fix: --layers with fewer than {self.recipe.model.layers} layers"
                + (", or --device cpu" if self.device == "cuda" else ", or a machine with more memory")
            )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
