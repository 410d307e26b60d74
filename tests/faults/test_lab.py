"""Every stage under every fault: one message, nothing half-written accepted, and the second call ends with the same bytes.

`make test-faults` runs it (as root: it mounts file systems). With `FAULTS_RESULTS=FOLDER` results are kept there as
they come, for `python -m tests.faults.table FOLDER PAGE`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faults import FAULTS, try_fault
from tests.faults.lab import Lab
from tests.faults.shim import compile_shim
from tests.faults.stages import STAGES, Stage, write_inputs
from tests.faults.table import write_records

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """What every user may enter, unlike pytest's own folders."""
    if os.geteuid():
        pytest.fail("needs root: it mounts file systems")
    # Mounts of this process's own: a namespace that anybody else makes meanwhile would copy them, and a file system
    # that is mounted there still outlives its power cut.
    os.unshare(os.CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def inputs(folder: Path) -> Path:
    place = folder / "inputs"
    place.mkdir()
    write_inputs(place)
    return place


@pytest.fixture(scope="module")
def library(folder: Path) -> Path:
    return compile_shim(folder)


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, folder: Path, inputs: Path, library: Path) -> Iterator[Lab]:
    stage: Stage = request.param
    made = Lab(stage, inputs, folder / stage.name.replace(" ", "-"), library)
    yield made
    made.close()


@pytest.mark.parametrize("lab", STAGES, indirect=True, ids=lambda stage: stage.name)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_message_and_costs_nothing(lab: Lab, fault: str) -> None:
    record = try_fault(lab, fault)
    if path := os.environ.get("FAULTS_RESULTS"):
        write_records(Path(path), {(lab.stage.name, fault): record})
    assert record.trials, "nothing was tried"
    assert not record.faults, "\n\n".join(record.faults)
