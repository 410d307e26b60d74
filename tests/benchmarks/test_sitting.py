"""The sitting on a GPU, as far as a machine without one can tell."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.sitting.__main__ import GPU, MASKING, main
from benchmarks.sitting.ledger import Ledger, OutOfTimeError, PartlyFailedError, run_command
from benchmarks.sitting.outcomes import gpu_tests, run_tests
from benchmarks.sitting.speed import per_layer, price
from benchmarks.sitting.trace import kinds_of_time
from emma.base.errors import CheckFailedError
from emma.base.files import read_json
from emma.recipes.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_a_stage_that_fails_or_finds_no_time_costs_its_own_result_only(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, seconds=100)

    def broken(limit: float) -> None:
        raise CheckFailedError("the card fell off the bus")

    def wrong(limit: float) -> None:
        {}["nothing"]

    assert ledger.stage("first", 1, 50, lambda limit: {"limit": limit}) == {"limit": 50}
    assert ledger.stage("second", 1, 50, broken) is None
    assert ledger.stage("third", 1, 50, wrong) is None
    assert ledger.stage("fourth", 1000, 2000, lambda limit: 1) is None
    assert ledger.stage("fifth", 1, 200, lambda limit: limit < 100) is True, (
        "never beyond the end of the sitting"
    )
    found = read_json(tmp_path / "results.json")
    assert {name: stage["status"].split(":")[0] for name, stage in found.items()} == {
        "first": "done", "second": "failed", "third": "failed", "fourth": "left out", "fifth": "done"
    }  # fmt: skip
    assert (
        "fell off the bus" in found["second"]["status"] and "KeyError" in (tmp_path / "log.txt").read_text()
    )


def test_a_command_is_killed_with_its_children_when_there_is_enough_or_no_time(tmp_path: Path) -> None:
    ledger, mark = Ledger(tmp_path, 100), tmp_path / "mark"
    child = f"import time; open({str(mark)!r}, 'w').write(str(__import__('os').getpid())); time.sleep(100)"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    code, said = run_command(ledger, ["-c", parent], 60, lambda: mark.is_file() and mark.stat().st_size > 0)
    assert code is None and said == "begun\n" and time.monotonic() - begun < 30
    pid = mark.read_text()
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(OutOfTimeError, match="not done after 1 s"):
        run_command(ledger, ["-c", "import time; time.sleep(60)"], 1)
    assert run_command(ledger, ["-c", "print(1); raise SystemExit(3)"], 60) == (3, "1\n")


def test_time_is_counted_by_kind_once(tmp_path: Path) -> None:
    def kernel(name: str, begin: float, length: float, cat: str = "kernel") -> dict[str, object]:
        return {"name": name, "ts": begin, "dur": length, "cat": cat}

    events = [
        kernel("nvjet_hsh_128x256_gemm", 0, 4000),
        kernel("ncclDevKernel_ReduceScatter", 2000, 3000),
        kernel("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", 6000, 2000),
        kernel("Memcpy DtoD", 8000, 1000, "gpu_memcpy"),
        kernel("aten::mm", 0, 9999, "cpu_op"),
        kernel("cudaStreamSynchronize", 0, 1, "cuda_runtime"),
    ]
    path = tmp_path / "trace.json.gz"
    with gzip.open(path, "wt") as handle:
        json.dump({"traceEvents": events}, handle)
    found = kinds_of_time(path)
    assert found["kinds_ms"] == {"matrix products": 4, "communication": 3, "attention": 2, "copies": 1}
    assert found["place"] == "GPU" and found["span_ms"] == 9 and found["busy_share"] == pytest.approx(8 / 9)
    assert found["host_waits"] == {"cudaStreamSynchronize": 1}


def test_two_depths_tell_the_time_of_a_layer_and_two_runs_a_price() -> None:
    def run(layers: int, microseconds: float, gib: float) -> dict[str, object]:
        return {
            "precision": "bf16",
            "layers": layers,
            "tokens_per_second": 1e6 / microseconds,
            "memory_gib": gib,
        }

    found = per_layer(run(8, 34, 50), run(4, 22, 30), 32)
    assert found["us_per_token_and_layer"] == pytest.approx(3) and found["gib_per_layer"] == 5
    assert found["us_per_token_outside_layers"] == pytest.approx(10)
    assert found["tokens_per_second_of_all_layers"] == pytest.approx(1e6 / 106)
    assert price(run(4, 22, 30), run(4, 20, 28))["costs_percent"] == pytest.approx(10)


@pytest.mark.parametrize("choice", GPU.prices)
def test_every_choice_can_be_taken_back(choice: str) -> None:
    """The overrides name keys that a recipe for a GPU has, and change it."""
    given = load_recipe("emma_llama3_8b_bi", ["layout=h100_8_bf16"])
    without = load_recipe("emma_llama3_8b_bi", ["layout=h100_8_bf16", *GPU.prices[choice]])
    assert given.sha256 != without.sha256


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 2
    assert "no GPU" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_a_failed_stage_has_found_is_kept_and_stages_can_be_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, 100, ["price", "tests"])

    def partly(limit: float) -> None:
        raise PartlyFailedError("one of two", {"found": 1})

    assert ledger.stage("kernels", 1, 50, partly) == {"found": 1}
    assert ledger.stage("tests", 1, 50, lambda limit: 1) is None
    assert ledger.stage("price of masks", 1, 50, lambda limit: 1) is None
    assert {name: stage["status"] for name, stage in read_json(tmp_path / "results.json").items()} == {
        "kernels": "failed: one of two", "tests": "left out: as asked", "price of masks": "left out: as asked",
    }  # fmt: skip


TESTS = """
import pytest, time

@pytest.mark.parametrize("value", [0, 1, "two words"])
def test_values(value, request):
    request.config.cache.mkdir("emma")
    print("seen", value)
    assert value != 1

def test_left_out():
    pytest.skip("no card")
"""


@pytest.mark.parametrize(
    ("more", "limit"), [("", 120.0), ("\ndef test_forever():\n    time.sleep(600)\n", 20.0)]
)
def test_outcomes_are_kept_whether_pytest_ends_or_not(more: str, limit: float, tmp_path: Path) -> None:
    """The tests of the sitting have pytest's cache, and a package that another test lacks does not keep them from running."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_some.py").write_text(TESTS + more)
    (folder / "test_others.py").write_text("import no_such_package\n")
    selection = (f"--rootdir={tmp_path}", "-c", "/dev/null", "--import-mode=importlib", str(folder))
    with pytest.raises(PartlyFailedError) as caught:
        run_tests(Ledger(tmp_path / "out", 200), tmp_path, selection, limit)
    counts, tests = caught.value.result["counts"], caught.value.result["tests"]
    assert {"passed": 2, "failure": 1, "skipped": 1}.items() <= counts.items(), counts
    assert ("not done" in str(caught.value)) == bool(more)
    if not more:
        printed = {test["printed"].splitlines()[-1] for test in tests if test["printed"]}
        assert counts["error"] == 1 and printed >= {"seen 0", "seen two words"}


def test_no_test_that_ran_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match="no test has run"):
        run_tests(Ledger(tmp_path / "out", 100), tmp_path, (str(tmp_path / "nowhere"),), 60)


def test_only_files_with_tests_for_a_gpu_are_read() -> None:
    found = gpu_tests()
    assert MASKING in found and MASKING in GPU.masking and MASKING not in GPU.tests
    assert "tests/tools/training/test_gpu_training.py" in GPU.tests
    assert len(found) < 20 and all("mark.gpu" in (ROOT / path).read_text() for path in found)


@pytest.mark.slow
def test_the_rehearsal_has_every_stage(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "benchmarks.sitting",
        "--rehearse",
        "--seconds",
        "900",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = read_json(tmp_path / "results.json")
    left_out = {name for name, stage in found.items() if stage["status"] != "done"}
    assert left_out == {"kernels", "overhead"}, done.stdout
    assert {*found} >= {
        *(
            "environment",
            "masking",
            "tests",
            "data",
            "fp32, 4 layers",
            "fp32, 2 layers",
            "per layer",
            "profile",
        ),
        "price of masked documents",
    }
    assert len(found["fp32, 4 layers"]["result"]["losses"]) == 8
    assert found["profile"]["result"]["kinds_ms"]["matrix products"] > 0
    assert len(found["tests"]["result"]["collected"]) > 20
    assert set(found["masking"]["result"]["counts"]) == {"passed"}
    assert found["environment"]["result"]["doctor"]["trains_on"] == "cpu"
