"""The steps of an optimisation: whatever is next is done, and what is done stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import atomic_write, write_json
from emma.base.writers import sole_writer
from emma.tools.mix.prepare import MixSettings
from emma.tools.optimise.fit import Fit, fit
from emma.tools.optimise.page import write_page
from emma.tools.optimise.proposal import percent, write_proposal
from emma.tools.optimise.propose import FRONT
from emma.tools.optimise.study import Study, write_sweep
from emma.tools.optimise.trials import Trials, read_trials
from emma.tools.optimise.verdict import Verdict, judge
from emma.tools.pack.store import open_store

__all__ = ["Done", "Waiting", "advance"]

RunSweep = Callable[[Path], None]


@dataclass(frozen=True)
class Waiting:
    """Trials are to be run before there is more to do."""

    sweep: Path
    trials: Trials
    outputs: list[Path]
    lines: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "state": "waiting",
            "sweep": str(self.sweep),
            "missing": self.trials.missing,
            "diverged": self.trials.diverged,
            "outputs": [str(path) for path in self.outputs],
        }

    def text(self) -> str:
        """What is there, and what to type."""
        total = len(self.trials.names) + len(self.trials.missing) + len(self.trials.diverged)
        done = len(self.trials.names) + len(self.trials.diverged)
        return "\n".join(
            [
                *self.lines,
                f"{self.sweep}: {done} of {total} trials have a result. Next:",
                f"  emma sweep {self.sweep}            (through Slurm; --local runs them here)",
                "and then the same command again" + (" (--partial: without those)." if done else "."),
            ]
        )


@dataclass(frozen=True)
class Done:
    """All steps are done; `verdict` is None where the law found nothing to gain, so that nothing was to be checked."""

    study: Study
    fit: Fit
    verdict: Verdict | None
    proposal: Path

    @property
    def broken(self) -> list[str]:
        """Groups whose limit the proposal broke."""
        return [] if self.verdict is None else self.verdict.proposal.broken

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "state": "done",
            "proposal": str(self.proposal),
            "page": str(self.study.results / "index.html"),
            "predicted": self.fit.proposal.objective,
            "check": None if self.verdict is None else self.verdict.to_dict(),
            "notes": self.fit.notes(),
        }

    def text(self) -> str:
        """The verdict and where everything is."""
        lines = _fit_lines(self.study, self.fit)
        if self.verdict is None:
            lines.append("verdict: nothing to gain within these limits; the proposal is the run's own mix")
        else:
            for each in self.verdict.comparisons:
                lines.append(
                    f"checked {each.mix}: {percent(each.measured)} ± {100 * each.error:.1f} % with {each.runs[0]} new seeds "
                    f"(predicted {percent(each.predicted)}): {each.word}"
                    + (f"; limits broken: {', '.join(each.broken)}" if each.broken else "")
                )
        return "\n".join(
            [*lines, f"proposal  {self.proposal}", f"page      {self.study.results / 'index.html'}"]
        )


def advance(study: Study, run_here: RunSweep | None = None, *, partial: bool = False) -> Waiting | Done:
    """Does what is next.

    Args:
        study: what to optimise.
        run_here: runs a sweep file's trials; None leaves that to the user.
        partial: fit without the trials that have no result.

    Raises:
        UserError: files on the way are not this study's, or too few trials have a result.
    """
    study.objective_weights(
        study.fitted_groups()
    )  # settings that mean nothing are refused before anything is written
    study.folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(study.results):
        sweep, trials = _trials(study, study.sweep(), run_here)
        if trials.missing and not partial:
            return Waiting(sweep, trials, [sweep], [])
        _same_store(study, trials)
        found = fit(study, trials)
        _write_table(trials.table(study.target.levers), study.results / "proxies.parquet")
        _write_table(_front_table(study, found), study.results / "front.parquet")
        write_json(study.results / "fit.json", found.to_dict(study))
        mixes = _mixes(study, found)
        verdict = None
        if mixes:
            check, checked = _trials(study, study.check_sweep({"recipe": study.base, **mixes}), run_here)
            ready = partial and all(len(checked.of(name)) for name in ("recipe", *mixes))
            if checked.missing and not ready:
                _finish(study, found, None)
                outputs = [check, study.results / "proposal.yaml", study.results / "index.html"]
                return Waiting(check, checked, outputs, _fit_lines(study, found))
            verdict = judge(found, checked, mixes, alike=not study.settings.check.overrides)
        return Done(study, found, verdict, _finish(study, found, verdict))


def _trials(study: Study, sweep: Mapping[str, Any], run_here: RunSweep | None) -> tuple[Path, Trials]:
    """The sweep's file and its results, after it has been run here if it is to be."""
    path = study.folder / f"{sweep['name']}.yaml"
    write_sweep(sweep, path)
    names = list(sweep["parameters"]["mix"]["settings"])
    groups = study.fitted_groups()

    def read() -> Trials:
        return read_trials(study.folder / sweep["name"], names, study.target.levers, groups)

    trials = read()
    if trials.missing and run_here is not None:
        run_here(path)
        trials = read()
    return path, trials


def _same_store(study: Study, trials: Trials) -> None:
    settings = MixSettings.of_recipe(study.target.recipe)
    now = {
        each.name: each.fingerprint for each in open_store(settings.store, sorted(settings.mix.components))
    }
    if trials.store and now != trials.store:
        raise UserError(
            f"{settings.store}: has changed since the proxies were trained, and with it sizes, caps and losses. Fix: remove "
            f"{study.folder} and begin again"
        )


def _mixes(study: Study, found: Fit) -> dict[str, np.ndarray]:
    """What a check compares with the run's own mix; nothing if that is the proposal."""
    if np.allclose(found.proposal.shares, study.base, rtol=1e-3, atol=0):
        return {}
    others = {"cross_check": found.cross_check.shares, "proportional": study.proportional()}
    return {
        "proposal": found.proposal.shares,
        **{name: others[name] for name in study.settings.check.compare},
    }


def _finish(study: Study, found: Fit, verdict: Verdict | None) -> Path:
    check = study.results / "check.json"
    if verdict is None:
        check.unlink(missing_ok=True)  # of another proposal, e.g. one without the proxies that were missing
    else:
        write_json(check, verdict.to_dict())
    path = write_proposal(study, found, verdict)
    write_page(study, found, verdict)
    return path


def _front_table(study: Study, found: Fit) -> pa.Table:
    """A row for each multiple of the limits: predicted objective, part of the mix that moves, shares, changes."""
    rows = []
    for factor, solution in zip(FRONT, found.front, strict=True):
        row: dict[str, Any] = {
            "limits": factor,
            "objective": solution.objective,
            "moved": float(np.abs(solution.shares - study.base).sum() / 2),
        }
        names = [lever.name for lever in study.target.levers]
        row |= {f"share {name}": float(v) for name, v in zip(names, solution.shares, strict=True)}
        row |= {
            f"change {name}": float(v) for name, v in zip(found.trials.groups, solution.changes, strict=True)
        }
        rows.append(row)
    return pa.Table.from_pylist(rows)


def _write_table(table: pa.Table, path: Path) -> None:
    with atomic_write(path) as handle:
        pq.write_table(table, handle, compression="zstd")


def _fit_lines(study: Study, found: Fit) -> list[str]:
    changes = found.proposal.changes
    order = np.argsort(-changes)
    base = float(found.law.predict(study.base[None])[0] @ found.weights)
    lines = [
        f"{len(found.trials.of('mix'))} proxies, {len(found.trials.of('recipe'))} replicates; noise of the objective "
        f"{100 * found.objective_noise / base:.2f} %, the design spreads it {found.signal:.1f} times as far",
        f"law {found.law.model}: on {len(found.held_out.names)} proxies that it had not seen, off by "
        f"{100 * found.held_out.error / base:.2f} %, rank correlation {found.held_out.rank:.2f}",
        f"proposal: objective {percent(found.proposal.objective)} predicted; pays: "
        + ", ".join(f"{found.trials.groups[n]} {percent(changes[n])}" for n in order[:3] if changes[n] > 0),
    ]
    idle = study.idle_limits(found.trials.groups)
    notes = [*found.notes(), *([f"limits that fit no group: {', '.join(idle)}"] if idle else [])]
    return [*lines, *(f"note: {note}" for note in notes)]
