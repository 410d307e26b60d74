"""A whole optimisation with real training, killed on its way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from emma.slurm.stages import emma_program
from tests.command_line import emma
from tests.small_recipe import write_small_run
from tests.tiny_mix import make_tiny_mix

PROXIES, REPLICATES = 8, 3


def command(folder: Path) -> list[str]:
    """The command on a small run in a folder of its own, and what it needs."""
    tiny = make_tiny_mix(folder / "tiny", samples=40, sequence_length=32)
    run = write_small_run(
        folder, data=tiny.data.model_dump(mode="json", by_alias=True), tokenizer=tiny.tokenizer
    )
    settings = {
        "proxy": {"overrides": {"schedule.steps": 20, "checkpoint.interval": 5, "checkpoint.keep": 1}},
        "proxies": PROXIES,
        "replicates": REPLICATES,
        "concurrent": 2,
        "objective": {"groups": ["category-monolingual-low"]},
        # Wide: this model learns little in 20 steps, and something is to move.
        "limits": [{"group": "*", "worse": 0.2}],
        "check": {"seeds": 2, "compare": []},
    }
    YAML(typ="safe").dump(settings, folder / "asked.yaml")
    changes = [f"paths.store={tiny.store}", "schedule.steps=400", "schedule.learning_rate=1e-2"]
    return [
        emma_program(),
        *("mix", "optimise", str(run), *changes, "--settings", str(folder / "asked.yaml"), "--local"),
    ]


def results(folder: Path) -> dict[str, bytes]:
    """Everything that an optimisation leaves but its trials' folders."""
    root = folder / "runs" / "small-mix"
    files = [*root.glob("*.yaml"), *(path for path in (root / "asked").iterdir() if path.name[0] != ".")]
    return {path.name: path.read_bytes() for path in sorted(files)}


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_at_several_moments_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    words = command(folder)
    chance = random.Random(0)
    # Four times among the proxies and their check, however fast the machine is.
    for signal_, begun in (
        (signal.SIGKILL, 1),
        (signal.SIGTERM, 4),
        (signal.SIGKILL, 9),
        (signal.SIGKILL, 13),
    ):
        process = subprocess.Popen(words, start_new_session=True)
        while process.poll() is None and len(list(folder.glob("runs/small-mix/*/trial-*"))) < begun:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 8))
        assert process.poll() is None
        os.kill(process.pid, signal_)
        process.wait()
    subprocess.run(words, check=True)
    killed = results(folder)
    for path in (folder / "runs").iterdir():
        path.rename(path.with_name(f"{path.name}-killed"))
    subprocess.run(words, check=True)
    assert results(folder) == killed
    assert {"proposal.yaml", "proposal.manifest.json", "fit.json", "front.parquet", "proxies.parquet"} <= set(
        killed
    )

    proposal = folder / "runs" / "small-mix" / "asked" / "proposal.yaml"
    changes = [*words[4:7], f"data={proposal}"]
    assert emma("mix", "build", words[3], *changes).code == 0
    assert emma("mix", "verify", words[3], *changes).code == 0
    found = json.loads(killed["fit.json"])
    if "check.json" in killed:
        checked = json.loads(killed["check.json"])
        assert checked["verdict"] in ("confirmed", "not confirmed", "within noise")
        assert checked["comparisons"][0]["runs"] == [2, 2]
    else:
        assert abs(found["proposal"]["objective"]) < 1e-3
