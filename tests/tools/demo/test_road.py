"""The whole demo on real text with a short schedule, through the commands that a user types."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Все люди рождаются", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=5, do_sample=False, min_new_tokens=5)
assert out.shape[1] == ids["input_ids"].shape[1] + 5
assert not {"recipes", "tools", "checkpoints_conversion", "megatron_patches"} & set(sys.modules)
"""


def demo(folder: Path) -> str:
    short = ["schedule.steps=20", "schedule.warmup_steps=2", "validation.interval=10", "validation.samples=2"]
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "emma.tools.demo",
            "--folder",
            str(folder),
            "--base-steps",
            "60",
            *short,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_ends_in_a_release_that_loads_without_this_project(tmp_path: Path) -> None:
    output = demo(tmp_path / "demo")
    assert output.count("SIGTERM\n") >= 2
    assert "tensor 1 × pipeline 2 × context 1 × data 2" in output
    run = tmp_path / "demo/runs/demo"
    parity = json.loads((run / "hf/step-20/parity.json").read_text())
    assert parity["passed"]
    gains = json.loads((run / "evaluation/gains.json").read_text())
    assert len([row for row in gains["languages"] if row["kind"] == "monolingual"]) > 200
    assert (run / "report/index.html").stat().st_size > 10_000
    languages = {
        row["code"]: row for row in json.loads((run / "report/languages.json").read_text())["languages"]
    }
    marks = languages["kat_Geor"]["benchmarks"]
    assert [row["benchmark"] for row in marks] == ["demo_translations"] and "verdict" in marks[0]
    atlas = (run / "report/atlas.html").read_text()
    assert "Georgian" in atlas and "[English]: " in atlas, "with samples of answers"
    release = run / "release"
    subprocess.run([sys.executable, "-I", "-c", LOAD, str(release)], check=True, cwd=tmp_path, timeout=300)
    again = demo(tmp_path / "demo")
    assert again.count(": done\n") == output.count("\n[")
