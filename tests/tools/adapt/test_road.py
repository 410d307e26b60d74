"""From `emma init` to a verified release, through the commands of NEXT.md as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from emma.recipes.load import load_recipe

ROOT = Path(__file__).parents[3]
LANGUAGES = ["Swahili", "yor", "hi", "quy", "Khmer"]


def shell(command: str, folder: Path) -> str:
    """Runs a line as it is pasted."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_commands_end_in_a_release(tmp_path: Path) -> None:
    shell(
        f"emma init 'five tongues' --data demo --languages {','.join(LANGUAGES)} --base tiny --tokens 60K --yes",
        tmp_path,
    )
    folder = tmp_path / "five tongues"
    pasted = commands(folder / "NEXT.md")
    answers = {command: shell(command, tmp_path) for command in pasted}
    # Settling writes the page again; what is still to be pasted from the old one must be the same.
    assert commands(folder / "NEXT.md") == pasted
    assert any(command.startswith("emma init") and "swh_Latn" in said for command, said in answers.items())
    recipe = load_recipe(folder / "run.yaml")
    assert 60_000 - recipe.tokens_per_step < recipe.total_tokens <= 60_000
    run = folder / "runs" / "five-tongues"
    gains = json.loads((run / "evaluation/gains.json").read_text())
    evaluated = {row["language"] for row in gains["languages"] if row["kind"] == "monolingual"}
    assert evaluated == {"swh_Latn", "yor_Latn", "hin_Deva", "quy_Latn", "khm_Khmr", "eng_Latn"}
    assert (run / "release" / "SHA256SUMS").is_file()
    assert answers[pasted[-1]].strip().endswith("valid")
