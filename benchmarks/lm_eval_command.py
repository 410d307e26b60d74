"""Compares lm-eval's own command line with `emma evaluate run`, item for item, on one model and one mirror.

    python -m benchmarks.lm_eval_command [MODEL MIRROR --tasks hellaswag,gsm8k] [--limit 50]

`python -m lm_eval run … --log_samples` runs in the mirror's folder, where the hub's library takes `Rowan/hellaswag` for the
folder of that name, without a network. Prompts, continuations, the answers that filters extracted and the metrics of an item
have to be equal, log-likelihoods within 1e-4 nats; where two choices are that close, either may be the prediction. Without
arguments: an untrained model of two layers, and the mirror of the tests with the repositories' schemas.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Agreement", "compare", "run_ours", "run_theirs"]

CLOSE = 1e-4
"""Nats by which log-likelihoods may differ: rounding of FP32 in another batch."""


@dataclass
class Agreement:
    """How far two evaluations of a task agree: items and values compared, the largest difference of a log-likelihood in
    nats, items whose two best choices are too close to tell, and every difference in words."""

    task: str
    items: int = 0
    values: int = 0
    apart: float = 0.0
    ties: int = 0
    differences: list[str] = field(default_factory=list)


def run_theirs(
    model: Path, mirror: Path, tasks: Sequence[str], output: Path, window: int, limit: int | None = None
) -> None:
    """Runs lm-eval's command; raises CalledProcessError if it fails."""
    arguments = [
        *("run", "--model", "hf", "--tasks", ",".join(tasks), "--device", "cpu", "--batch_size", "4"),
        *("--model_args", f"pretrained={model.resolve()},dtype=float32,max_length={window}"),
        *("--log_samples", "--output_path", str(output.resolve())),
        *(("--limit", str(limit)) if limit else ()),
    ]
    with tempfile.TemporaryDirectory() as cache:
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": cache}
        subprocess.run(
            [sys.executable, "-P", "-m", "lm_eval", *arguments],
            cwd=mirror,
            env=os.environ | offline,
            check=True,
        )


def run_ours(
    model: Path, mirror: Path, tasks: Sequence[str], output: Path, window: int, limit: int | None = None
) -> None:
    """Runs this project's command; raises CalledProcessError if it fails."""
    arguments = [
        *("evaluate", "run", str(model), "--mirror", str(mirror), "--output", str(output), "--device", "cpu"),
        *("--benchmarks", ",".join(f"lm_eval:{task}" for task in tasks), "--max-length", str(window)),
        *(("--limit", str(limit)) if limit else ()),
    ]
    subprocess.run(
        [sys.executable, "-P", "-m", "emma.cli", *arguments], check=True, stdout=subprocess.DEVNULL
    )


def compare(tasks: Sequence[str], theirs: Path, ours: Path, model: str) -> list[Agreement]:
    """Item by item.

    Args:
        tasks: lm-eval's names.
        theirs: folder in which lm-eval's command wrote.
        ours: evaluation folder.
        model: the model's name in ours.
    """
    from emma.tools.evaluation.benchmarks.harness import harness_units
    from emma.tools.evaluation.benchmarks.records import read_samples, unit_file

    units = {task: unit for unit in harness_units(list(tasks)) for task in unit.tasks}
    found = []
    for task in tasks:
        unit = units[task]
        mine = {
            sample["index"]: sample
            for sample in read_samples(unit_file(ours, model, unit.benchmark_name, unit.language))
        }
        (path,) = theirs.rglob(f"samples_{task}_*.jsonl")
        agreement = Agreement(task)
        seen = set()
        for line in path.read_bytes().splitlines():
            sample = orjson.loads(line)
            index = str(sample["doc_id"]) if len(unit.tasks) == 1 else f"{task}/{sample['doc_id']}"
            seen.add(index)
            if index in mine:
                _compare_item(agreement, index, sample, mine[index])
            else:
                agreement.differences.append(f"{index}: not among ours")
        agreement.items = len(seen)
        extra = {index for index in mine if len(unit.tasks) == 1 or index.startswith(f"{task}/")} - seen
        agreement.differences += [f"{index}: not among lm-eval's" for index in sorted(extra)]
        found.append(agreement)
    return found


def _compare_item(
    agreement: Agreement, index: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> None:
    def same(what: str, wanted: Any, given: Any) -> None:
        agreement.values += 1
        if wanted != given:
            agreement.differences.append(f"{index}: {what}: {wanted!r} by lm-eval, {given!r} by ours")

    arguments = [list(part.values()) for part in theirs["arguments"].values()]
    prompts = mine.get("prompts") or [mine["prompt"]] * len(arguments)
    same("prompts", [part[0] for part in arguments], prompts)
    same("prompt's hash", theirs["prompt_hash"], mine["prompt_sha256"])
    same("target", str(theirs["target"]), mine["target"])
    close = False
    if "continuations" in mine:
        same("continuations", [part[1] for part in arguments], mine["continuations"])
        wanted = [float(part[0][0]) for part in theirs["resps"]]
        given = [float(part[0][0]) for part in mine["responses"]]
        apart = max(abs(a - b) for a, b in zip(wanted, given, strict=True))
        agreement.apart = max(agreement.apart, apart)
        agreement.values += len(wanted)
        if apart > CLOSE:
            agreement.differences.append(f"{index}: log-likelihoods {wanted} by lm-eval, {given} by ours")
        for lengths in ([1] * len(given), [len(text) for text in mine["continuations"]]):
            best = sorted(
                (value / max(1, size) for value, size in zip(given, lengths, strict=True)), reverse=True
            )
            close |= best[0] - best[1] < CLOSE
        agreement.ties += close
    else:
        same("answers", theirs["resps"], mine["responses"])
        same(f"answer after {theirs['filter']}", theirs["filtered_resps"], mine["filtered"][theirs["filter"]])
    for metric in theirs["metrics"]:
        keys = (f"{metric}:{theirs['filter']}", metric)
        key = next((key for key in keys if key in mine["scores"]), metric)
        if not close:
            same(key, theirs[metric], mine["scores"].get(key))


def main() -> None:
    """Prints a table and every difference; the exit code is 1 if there is any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="folder with a Hugging Face model")
    parser.add_argument("mirror", nargs="?", type=Path, help="folder with the hub's repositories as they are")
    parser.add_argument(
        "--tasks", help="comma-separated tasks of lm-eval; default those of the tests' mirror"
    )
    parser.add_argument("--limit", type=int, help="items of a task")
    parser.add_argument("--window", type=int, default=4096, help="tokens of context")
    options = parser.parse_args()
    if options.model and not (options.mirror and options.tasks):
        parser.error("MODEL needs MIRROR and --tasks")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model, mirror = options.model, options.mirror
        tasks = options.tasks.split(",") if options.tasks else []
        if model is None:
            from tests.tools.evaluation.benchmarks.harness_mirror import TASKS, write_harness_mirror
            from tests.tools.evaluation.tiny_model import write_model

            model = write_model(folder / "reader", seed=1, positions=4096)
            mirror = write_harness_mirror(folder / "mirror")
            tasks = tasks or [task for names in TASKS.values() for task in names]
        run_theirs(model, mirror, tasks, folder / "theirs", options.window, options.limit)
        run_ours(model, mirror, tasks, folder / "ours", options.window, options.limit)
        found = compare(tasks, folder / "theirs", folder / "ours", model.name)
    print("| task | items | values compared | largest difference, nats | ties | differences |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in found:
        print(
            f"| {row.task} | {row.items} | {row.values} | {row.apart:.1e} | {row.ties} | {len(row.differences)} |"
        )
    lines = [f"{row.task} {line}" for row in found for line in row.differences]
    if lines:
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    main()
