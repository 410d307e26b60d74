"""Every command that the documentation shows runs as written, or says what it needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, ROOT, Block, blocks, prose

COMMANDS = {"bash", "python"}
SHOWN = {"text", "json", "yaml", "jinja"}

NEEDS = {
    "network": "an address outside of this machine, or minutes of downloads",
    "gpu": "NVIDIA GPUs",
    "slurm": "Slurm's commands (tests/slurm runs them on two real nodes)",
    "cluster": "a run that is training",
    "base-model": "weights of Llama, or a run that trained from them",
    "corpus": "the text of a real run",
    "benchmarks": "a mirror of the benchmarks",
    "models": "models of learned metrics and of language identification, which others distribute",
    "published-statistics": "the statistics that the MaLA corpus publishes",
    "demo-compare": "`make demo-compare`",
    "two-evaluated-checkpoints": "a run evaluated at two steps",
    "minutes": "a machine that is left alone for minutes",
}

# A line of a block that is shown but not run: without a placeholder it would be a command to type.
_COMMAND = re.compile(r"^(?:emma|make|pip|pytest|python3?) ")
_PLACEHOLDER = re.compile(r"\b[A-Z]{3,}(?:_[A-Z]+)*\b")


def every_block() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def faults(block: Block) -> list[str]:
    """What is wrong with how a block says whether it runs."""
    found = []
    if block.language not in COMMANDS | SHOWN:
        found.append(
            f"{block}: language {block.language!r}; expected one of {', '.join(sorted(COMMANDS | SHOWN))}"
        )
    if block.language in COMMANDS and block.mark is None:
        found.append(
            f"{block}: put <!-- run -->, <!-- needs: ... --> or <!-- tested by: ... --> above the fence"
        )
    if block.language not in COMMANDS and block.mark is not None:
        found.append(f"{block}: a mark, but no commands")
    if block.mark == "needs" and block.value not in NEEDS:
        found.append(f"{block}: needs {block.value!r}; expected one of {', '.join(NEEDS)}")
    if block.mark == "tested by" and not (block.value and (ROOT / block.value).is_file()):
        found.append(f"{block}: tested by {block.value!r}, which is not a file")
    if block.language in SHOWN:
        found += [
            f"{block}: `{line}` is a command to type: make it a bash block"
            for line in block.text.splitlines()
            if _COMMAND.match(line) and not _PLACEHOLDER.search(line.split("#")[0])
        ]
    return found


def test_every_block_says_whether_it_runs() -> None:
    assert [fault for block in every_block() for fault in faults(block)] == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```bash\nemma recipe list\n```", "above the fence"),
        ("```\nemma recipe list\n```", "language ''"),
        ("<!-- needs: luck -->\n```bash\nemma recipe list\n```", "needs 'luck'"),
        ("<!-- tested by: tests/none.py -->\n```bash\nmake demo\n```", "which is not a file"),
        ("```text\nemma mix plan RUN\nemma mix plan demo   # a RUN\n```", "`emma mix plan demo   # a RUN`"),
        ("<!-- run -->\n```yaml\na: 1\n```", "but no commands"),
    ],
)
def test_a_block_that_does_not_say_so_is_found(text: str, fault: str) -> None:
    (block,) = blocks("page.md", text)
    assert len(found := faults(block)) == 1
    assert fault in found[0]


def test_a_marked_block_is_accepted() -> None:
    (block,) = blocks("page.md", "Words.\n\n<!-- run -->\n```bash\nemma recipe list\n\nemma doctor\n```\n")
    assert (block.mark, block.text, faults(block)) == ("run", "emma recipe list\n\nemma doctor\n", [])


def test_no_command_hides_in_an_indented_block() -> None:
    """Only fenced blocks are read above, so commands may not appear anywhere else."""
    hidden = [
        f"{page}:{number}: {line.strip()}"
        for page in PAGES
        for number, line in enumerate(prose(page).splitlines(), 1)
        if line.startswith("    ") and _COMMAND.match(line.strip())
    ]
    assert hidden == []


def working_copy(folder: Path) -> None:
    """A clone of this repository with the checkout's changed and new files, but nothing that git ignores."""
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        source, copy = ROOT / name, folder / name
        copy.unlink(missing_ok=True)
        if source.is_file() or source.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_documentation_runs_as_written(tmp_path: Path) -> None:
    """Page after page in one copy of the repository: what README makes is there for the guides."""
    folder = tmp_path / "clone"
    working_copy(folder)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),  # the copy's code, not that of the installation
    }
    ran = 0
    for block in every_block():
        if block.mark != "run":
            continue
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        if block.language == "python":
            command = [sys.executable, "-P", "-c", block.text]
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert done.returncode == 0, (
            f"{block} ends with {done.returncode}:\n{block.text}\n{done.stdout[-6000:]}"
        )
        ran += 1
    assert ran >= 20
    assert (folder / "demo" / "runs" / "demo" / "report" / "index.html").is_file()
