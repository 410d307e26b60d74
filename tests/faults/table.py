"""The lab's results as a page: `python -m tests.faults.table FOLDER PAGE`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from emma.base.files import read_json, write_json, write_text
from tests.faults.faults import FAULTS, Record
from tests.faults.stages import STAGES

__all__ = ["read_records", "write_records", "write_table"]

_HEAD = """# Faults

Every stage's command under every fault of the machine, tried for real by `make test-faults` (as root; it mounts file
systems of its own, and counts each process's writes with a library that it preloads). In each trial the command

- ends with an exit code that `emma --help` lists (0 where it still had what it needs), and with one message, never a
  traceback;
- leaves no file under its final name that is not whole;
- writes, when it is called again without the fault, byte for byte what a run without a fault writes (manifests without
  their times; for training: every step's numbers, and every tensor of each checkpoint).

<!-- tested by: tests/faults/test_lab.py -->
```bash
make test-faults
FAULTS_POINTS=30 FAULTS_RESULTS=faults make test-faults                      # at more moments of each run
.venv/bin/python -m tests.faults.table faults docs/benchmarks/faults.md     # writes this page
```

A cell gives the trials and, in brackets, the exit codes that are not 0; – was not tried for this page; −9 is the lab's own SIGKILL, −15 its SIGTERM before the training loop listens, −6 a native library
that gives up where memory ends. This kernel has no quota formats and no device mapper: a quota is the error number that one
gives, at a counted operation; an input/output error is that, and a real ext4 that is shut down. **!** marks a cell in
which something did not hold; the list after the table says what.
"""


def write_records(folder: Path, records: Mapping[tuple[str, str], Record]) -> None:
    """Keeps the results of each stage in a file of its own; faults that were not tried again keep theirs."""
    for name in {stage for stage, _ in records}:
        found = {fault: asdict(record) for (stage, fault), record in records.items() if stage == name}
        for record in found.values():
            record["codes"] = {str(code): count for code, count in record["codes"].items()}
        path = folder / f"{name}.json"
        write_json(path, {**(read_json(path) if path.is_file() else {}), **found})


def read_records(folder: Path) -> dict[tuple[str, str], Record]:
    """What `write_records` has kept."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        for fault, record in read_json(path).items():
            codes = {int(code): count for code, count in record["codes"].items()}
            found[path.stem, fault] = Record(codes, record["messages"], record["faults"])
    return found


def write_table(path: Path, records: Mapping[tuple[str, str], Record]) -> None:
    """Writes the page: how each fault is made, stages × faults, and what the commands say."""
    stages = [stage for stage in STAGES if any(stage.name == name for name, _ in records)]
    faults = [name for name in FAULTS if any(name == fault for _, fault in records)]
    parts = [_HEAD, "## How each fault is made\n", "| fault | how |", "|---|---|"]
    parts += [f"| {name} | {FAULTS[name][0]} |" for name in faults]
    parts += [
        "\n## Trials and exit codes\n",
        "| fault | " + " | ".join(stage.name for stage in stages) + " |",
    ]
    parts.append("|---|" + "---|" * len(stages))
    for fault in faults:
        cells = [_cell(records.get((stage.name, fault))) for stage in stages]
        parts.append(f"| {fault} | " + " | ".join(cells) + " |")
    trials = sum(record.trials for record in records.values())
    failed = sum(bool(record.faults) for record in records.values())
    parts.append(
        f"\n{len(stages)} stages × {len(faults)} faults, {trials:,} trials, each followed by a second call; "
        f"cells in which something did not hold: {failed}."
    )
    open_ends = [
        f"- {stage}, {fault}: {record.faults[0].splitlines()[0]}"
        for (stage, fault), record in sorted(records.items())
        if record.faults
    ]
    if open_ends:
        parts += ["\n## What did not hold\n", *open_ends]
    parts += [
        "\n## What the commands say\n",
        "The shortest message of each cell; `OUT` is the folder that the stage writes to.",
    ]
    for stage in stages:
        parts += [f"\n### {stage.name}: `{stage.command}`\n"]
        for fault in faults:
            record = records.get((stage.name, fault))
            if record is not None and record.messages:
                shortest = min(record.messages, key=len).replace("`", "'")
                parts.append(f"- {fault}: `{shortest}`")
    write_text(path, "\n".join(parts) + "\n")


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"
    codes = ", ".join(str(code).replace("-", "−") for code in sorted(record.codes) if code)
    return f"{record.trials}{f' ({codes})' if codes else ''}{' **!**' if record.faults else ''}"


if __name__ == "__main__":
    write_table(Path(sys.argv[2]), read_records(Path(sys.argv[1])))
