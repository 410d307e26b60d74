"""The stages' commands on tiny inputs, and how what they write is compared."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.ports import free_port

__all__ = ["STAGES", "Stage", "write_inputs"]

POINTS = int(os.environ.get("FAULTS_POINTS", "10"))
"""At how many operations, spread over a run, a fault is tried."""

# What differs between two undisturbed runs: times, and who ran it.
_VOLATILE = {
    "started",
    "finished",
    "written",
    "seconds",
    "host",
    "created",
}


def plain_content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by path; JSON without times, and no checksums of what holds times."""
    return {
        str(path.relative_to(folder)): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        with suppress(ValueError):
            content = json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
    if path.suffix == ".html":
        content = re.sub(rb"Written [\d: -]+UTC", b"", content)
    if path.name == "SHA256SUMS":
        content = b"\n".join(line for line in content.splitlines() if not line.endswith(b"manifest.json"))
    return hashlib.sha256(content).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        if str(value.get("path", "")).endswith("manifest.json"):
            return {"path": value["path"]}
        return {key: _without_times(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value


@dataclass(frozen=True)
class Stage:
    """A command and what it needs.

    Attributes:
        name: of the stage.
        command: as in the table.
        argv: arguments of `emma`, with `{out}` and `{inputs}`.
        modules: imported once, before the command is forked.
        entry: module:function that runs `sys.argv`.
        content: what a run has written, comparable with another run.
        final_names: whether a file has its final name only once it is whole.
        points: at how many operations, spread over a run, a fault is tried.
        signal: that asks it to stop.
        stops_well: whether it ends with 0 when it is asked to stop.
    """

    name: str
    command: str
    argv: tuple[str, ...]
    modules: tuple[str, ...] = ()
    entry: str = "emma.cli:main"
    content: Callable[[Path], dict[str, str]] = field(default=plain_content)
    final_names: bool = True
    points: int = POINTS
    signal: int = signal.SIGINT
    stops_well: bool = False

    def folder(self, out: Path) -> Path:
        """The first part of the output below `out`."""
        named = next(word for word in self.argv if "{out}/" in word)
        return out / named.split("{out}/")[1].split("/")[0]


def train_content(folder: Path) -> dict[str, str]:
    """Every step's numbers, and SHA-256 of each part of each checkpoint; logs, times and Megatron's arguments aside."""

    found: dict[str, str] = {}
    for metrics in folder.glob("runs/*/metrics.jsonl"):
        from emma.tools.runs.metrics import read_metrics

        steps, validations = read_metrics(metrics)
        for row in steps:
            kept = (row["step"], row["loss"], row["grad_norm"], row["learning_rate"], row["consumed_tokens"])
            found[f"step {row['step']}"] = repr(kept)
        for row in validations:
            found[f"validation {row['step']}"] = repr(sorted(row["validation"].items()))
    for complete in sorted(folder.glob("runs/*/checkpoints/iter_*/complete.json")):
        folder = complete.parent
        # Megatron's own state holds its arguments, which tell a resumed launch from a first one, and the random numbers
        # torch's default generator, from which each launch draws as it starts.
        for index, part in pickle.loads((folder / ".metadata").read_bytes()).storage_data.items():
            if not index.fqn.startswith(("common_state", "rng_state")):
                with (folder / part.relative_path).open("rb") as handle:
                    handle.seek(part.offset)
                    digest = hashlib.sha256(handle.read(part.length)).hexdigest()
                found[f"{folder.name}/{index.fqn} {index.offset} {index.index}"] = digest
    return found


def train_here() -> None:
    """`emma train --prepare`, then the rank that a job script starts."""
    from emma.cli import main

    folder = (
        next(Path(word.split("=", 1)[1]) for word in sys.argv if word.startswith("paths.runs=")) / "small"
    )
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )
    from emma.tools.runs.run_folder import IDENTITY, RunFolder
    from emma.tools.training.worker import main as worker

    os.environ[IDENTITY] = RunFolder(folder).read_launch().identity
    raise SystemExit(worker([str(folder)]))


_TORCH = ("torch", "transformers", "safetensors.torch")

STAGES = [
    Stage(
        "corpus",
        "emma corpus build",
        ("corpus", "build", "{inputs}/raw/small.yaml", "paths.corpus={out}/corpus", "--workers", "1"),
        ("emma.commands.corpus", "emma.tools.corpus.build"),
    ),
    Stage(
        "pack",
        "emma pack run",
        ("pack", "run", "{inputs}/small.yaml", "paths.store={out}/store", "--workers", "1"),
        ("emma.commands.pack", "emma.tools.pack.run"),
    ),
    Stage(
        "mix",
        "emma mix build",
        ("mix", "build", "{inputs}/small.yaml", "paths.mix={out}/mix"),
        ("emma.commands.mix", "emma.tools.mix.build"),
    ),
    Stage(
        "train",
        "emma train",
        ("train", "{inputs}/small.yaml", "paths.runs={out}/runs", "--prepare", "--take-over"),
        (
            "emma.commands.train",
            "megatron.training",
            "megatron.core.models.gpt",
            "emma.tools.training.session.session",
        ),
        "tests.faults.stages:train_here",
        train_content,
        final_names=False,
        points=max(2, POINTS // 4),
        signal=signal.SIGTERM,
        stops_well=True,
    ),
    Stage(
        "import",
        "emma convert hf-to-megatron",
        ("convert", "hf-to-megatron", "{inputs}/hf", "{out}/megatron"),
        ("emma.commands.convert", "emma.checkpoints_conversion.hf_to_megatron", *_TORCH),
    ),
    Stage(
        "export",
        "emma convert megatron-to-hf",
        (
            "convert",
            "megatron-to-hf",
            "{inputs}/megatron",
            "{out}/hf",
            "--no-parity",
            "--shard-size",
            "150KB",
        ),
        ("emma.commands.convert", "emma.checkpoints_conversion.megatron_to_hf", *_TORCH),
    ),
    Stage(
        "evaluate",
        "emma evaluate run",
        (
            *("evaluate", "run", "{inputs}/released/base", "--text", "{inputs}/heldout"),
            *("--output", "{out}/evaluation"),
        ),
        ("emma.commands.evaluate", "emma.tools.evaluation.heldout", *_TORCH),
    ),
    Stage(
        "report",
        "emma report run",
        ("report", "run", "{inputs}/released/runs/sample", "--output", "{out}/report/index.html"),
        ("emma.commands.report", "emma.tools.report.page"),
    ),
    Stage(
        "compare",
        "emma report compare --export",
        (
            *("report", "compare", "{inputs}/released/runs/sample", "{inputs}/other/runs/other"),
            *("--output", "{out}/page/compare.html", "--export", "{out}/figures"),
        ),
        ("emma.commands.report", "emma.tools.report.compare", "matplotlib.pyplot"),
    ),
    Stage(
        "release",
        "emma release model",
        ("release", "model", "{inputs}/released/runs/sample", "{out}/release"),
        ("emma.commands.release", "emma.checkpoints_conversion.release.build", *_TORCH),
    ),
    Stage(
        "corpus release",
        "emma release corpus",
        ("release", "corpus", "{inputs}/raw/small.yaml", "{out}/release", "--workers", "1"),
        ("emma.commands.release", "emma.tools.corpus.release.build"),
    ),
]


def write_inputs(folder: Path) -> None:
    """What all stages read, made by the stages before them."""
    from emma.checkpoints_conversion import hf_to_megatron
    from tests.checkpoints_conversion.release.released_run import write_released_run
    from tests.checkpoints_conversion.tiny_models import save_llama
    from tests.command_line import emma
    from tests.small_recipe import DATA, write_small_run
    from tests.tiny_mix import make_tiny_corpus, tiny_data
    from tests.tiny_text import train_tokenizer
    from tests.tools.corpus.raw_text import documents, write_jsonl
    from tests.tools.evaluation.tiny_model import write_corpus
    from tests.tools.report.sample_run import write_run

    def command(*arguments: str) -> None:
        answer = emma(*arguments)
        assert answer.code == 0, answer.err

    raw = write_jsonl(folder / "raw" / "raw.jsonl", documents(30, ["en", "de", "zh", "ru"]))
    source = {"kind": "monolingual", "path": str(raw), "license": "CC0-1.0", "language_column": "lang"}
    run = write_small_run(
        folder / "raw", {**DATA, "corpus": {"sources": {"web": source}, "split": {"share": 0.2}}}
    )
    command("corpus", "build", str(run), "--workers", "1")

    tokenizer = train_tokenizer(folder / "tokenizer")
    make_tiny_corpus(folder / "corpus")
    run = write_small_run(folder, tiny_data().model_dump(mode="json"), tokenizer)
    text = run.read_text().replace("steps: 10", "steps: 4").replace("interval: 5", "interval: 2")
    run.write_text(re.sub(r"interval: 10", "interval: 4", text))
    command("pack", "run", str(run), "--workers", "1")
    command("mix", "build", str(run))

    save_llama(folder / "hf", shard="100KB")
    hf_to_megatron.convert(folder / "hf", folder / "megatron")
    write_released_run(folder / "released")
    write_run(folder / "other", "other", languages=12, steps=40, level=0.2)
    write_corpus(folder / "heldout")
