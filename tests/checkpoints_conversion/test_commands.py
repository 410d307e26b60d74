"""`emma convert` on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints_conversion import megatron_ranks
from tests.checkpoints_conversion.tiny_models import read_tensors, same_bits, save_llama
from tests.ranks import run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str, str]]]:
    """A folder, and the results of a chain of commands in it (in one rank, since parity needs Megatron)."""
    root = tmp_path_factory.mktemp("commands")
    save_llama(root / "hf", shard="100KB")
    save_llama(root / "other", seed=1)
    hf, megatron, back, other = (str(root / name) for name in ("hf", "megatron", "back", "other"))
    lines = {
        "plan import": ["hf-to-megatron", hf, megatron, "--dry-run", "--json"],
        "import": ["hf-to-megatron", hf, megatron, "--json"],
        "import again": ["hf-to-megatron", hf, megatron],
        "plan export": ["megatron-to-hf", megatron, back, "--dry-run", "--json"],
        "export": ["megatron-to-hf", megatron, back, "--shard-size", "150KB", "--json"],
        "no step": ["megatron-to-hf", megatron, str(root / "x"), "--step", "7"],
        "verify": ["verify", hf, back, "--json", "--output", str(root / "proof")],
        "verify other": ["verify", other, megatron, "--no-logits"],
        "nothing to verify": ["verify", hf, back, "--no-logits", "--no-tensors"],
        "bad size": ["megatron-to-hf", megatron, str(root / "x"), "--shard-size", "five"],
        "bad average": ["megatron-to-hf", megatron, str(root / "x"), "--average", "1;2"],
        "watch and step": ["megatron-to-hf", megatron, str(root / "x"), "--watch", "--step", "1"],
    }
    (found,) = run_ranks(
        megatron_ranks.command, 1, *(["convert", *line] for line in lines.values()), timeout=300
    )
    assert not (root / "x").exists()
    return root, dict(zip(lines, found, strict=True))


def test_plans_write_nothing(results: tuple[Path, dict[str, tuple[int, str, str]]]) -> None:
    _, found = results
    code, out, _ = found["plan import"]
    plan = json.loads(out)
    assert code == 0
    assert (plan["dtype"], plan["padding_rows"], plan["shape"]["vocab_size"]) == ("float32", 123, 517)
    code, out, _ = found["plan export"]
    assert code == 0
    assert json.loads(out)["steps"] == [0]


def test_there_and_back_with_proof(results: tuple[Path, dict[str, tuple[int, str, str]]]) -> None:
    root, found = results
    assert found["import"][0] == found["export"][0] == 0
    assert json.loads(found["export"][1])["parity"] == "passed"
    assert same_bits(read_tensors(root / "hf"), read_tensors(root / "back"))
    assert json.loads((root / "back" / "parity.json").read_text())["passed"]
    assert "passed" in (root / "back" / "parity.html").read_text()
    manifest = json.loads((root / "back" / "manifest.json").read_text())
    assert {"parity.json", "parity.html"} <= {record["path"] for record in manifest["outputs"]}


def test_verify_tells_by_its_exit_code(results: tuple[Path, dict[str, tuple[int, str, str]]]) -> None:
    root, found = results
    code, out, _ = found["verify"]
    assert (code, json.loads(out)["passed"]) == (0, True)
    assert (root / "proof" / "parity.html").is_file()
    code, _, message = found["verify other"]
    assert code == 1
    assert "30 of 30 parameters differ" in message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("import again", "--overwrite"),
        ("no step", "step 7 of"),
        ("nothing to verify", "nothing to compare"),
        ("bad size", ""),
        ("bad average", ""),
        ("watch and step", "--watch exports every step"),
    ],
)
def test_misuse(results: tuple[Path, dict[str, tuple[int, str, str]]], name: str, message: str) -> None:
    code, _, found = results[1][name]
    assert code == 2
    assert message in found


def test_help_is_fast_and_needs_no_torch() -> None:
    script = "import sys; import emma.commands.convert; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
