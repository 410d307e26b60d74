"""`emma plan`: its JSON, its text, its speed, and what it does not import."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from emma.recipes.load import load_recipe
from emma.tools.plan.plan import make_plan
from tests.command_line import emma

SCRIPT = Path(sys.executable).parent / "emma"


def test_json_holds_the_whole_plan() -> None:
    answer = emma("plan", "emma_llama3_8b_bi", "--json")
    assert answer.code == 0
    plan = json.loads(answer.out)
    assert plan["parameters"] == 8_030_261_248
    assert (plan["steps"], plan["tokens_per_step"], plan["tokens"]) == (40_000, 2**24, 40_000 * 2**24)
    assert plan["flops_per_token"]["causal"] / 1e9 == pytest.approx(51.5, abs=0.05)
    assert plan["flops_per_token"]["full"] / 1e9 == pytest.approx(57.9, abs=0.05)
    memory = plan["memory_gib"]
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "runtime", "allocator")
    assert sum(memory[part] for part in parts) == pytest.approx(memory["total"])
    assert memory["total"] <= memory["limit"] < memory["card"]
    assert plan["time"]["gpu_hours"] == pytest.approx(23_400, rel=0.02)
    assert plan["energy"]["megawatt_hours"] > 0
    assert plan["checkpoints"]["gib"] == pytest.approx(104.7, abs=0.1)
    traffic, host = plan["checkpoints"]["traffic"], plan["host_memory_gib"]
    assert traffic["written_gib"] == pytest.approx(104.7 / 64, rel=0.01)
    assert host["checkpoint"] == pytest.approx(8 * traffic["host_save_gib"])
    assert host["total"] == pytest.approx(host["checkpoint"] + host["processes"])
    assert (host["when"], host["node"]) == ("save", 1862)
    reasons = [a["reason"] for a in plan["alternatives"]]
    assert None in reasons
    assert any(reasons)


def test_text_names_conventions_assumptions_and_reasons() -> None:
    answer = emma("plan", "emma_llama3_8b_bi", "layout=h100_128_fp8", "--all")
    assert answer.code == 0
    for part in (
        *(
            "51.5 GFLOP per token with causal attention, 57.9 GFLOP with full",
            "40,000 steps",
            "2^24",
            "PUE 1.2",
            "450 g/kWh",
        ),
        *(
            "± 15%",
            "GPU-hours",
            "MWh",
            "104.7 GiB",
            "MiB to resume",
            "of a rank at a save",
            "a node needs",
            "FP8 the same share as BF16",
            "pipeline stages hand micro-batches on",
            " *      2 ",
        ),
    ):
        assert part in answer.out


def test_options_change_what_is_assumed() -> None:
    def plan(*arguments: str) -> dict[str, dict[str, float]]:
        return json.loads(emma("plan", "emma_llama3_8b_bi", "--json", *arguments).out)  # type: ignore[no-any-return]

    base = plan("--speed", "8000")
    changed = plan("--speed", "4000", "--pue", "2.4", "--grid", "0", "--storage", "50")
    assert changed["time"]["seconds_per_step"] == pytest.approx(2 * base["time"]["seconds_per_step"])
    assert changed["energy"]["co2_tonnes"] == 0
    assert changed["checkpoints"]["seconds"] == pytest.approx(base["checkpoints"]["seconds"] / 10)
    per_hour = [p["energy"]["megawatt_hours"] / p["time"]["gpu_hours"] for p in (base, changed)]
    assert per_hour[1] == pytest.approx(2 * per_hour[0])


def test_a_cpu_plan_claims_no_speed() -> None:
    answer = emma("plan", "emma_llama3_8b_bi", "layout=local_cpu")
    assert answer.code == 0
    assert "No speed is published" in answer.out
    plan = json.loads(emma("plan", "emma_llama3_8b_bi", "layout=local_cpu", "--json").out)
    assert (plan["time"], plan["energy"], plan["alternatives"]) == (None, None, [])


def test_refusal_is_one_message_with_a_fix_and_exit_code_2() -> None:
    answer = emma("plan", "emma_llama3_8b_bi", "parallelism.tensor=1", "parallelism.sequence=false", "--json")
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.err.splitlines()) == 1
    assert "h100_64_bf16.yaml:7: parallelism: a GPU needs" in answer.err
    assert "parallelism.tensor=2 parallelism.sequence=true" in answer.err


def test_every_run_plans_on_every_layout_of_its_size() -> None:
    for run in ("emma_llama2_7b", "emma_llama3_8b_mono", "emma_llama3.1_8b_bi"):
        for layout in ("h100_8_bf16", "h100_64_fp8", "h100_512_fp8"):
            assert emma("plan", run, f"layout={layout}", "--json").code == 0


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["recipe", "list"], ["recipe", "show", "emma_llama3_8b_bi"], ["plan", "emma_llama3_8b_bi"]],
    ids=" ".join,
)
def test_imports_neither_torch_nor_megatron(arguments: list[str]) -> None:
    code = (
        "import sys; from unittest import mock\n"
        "from emma.cli import main\n"
        f"sys.argv = ['emma', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'megatron', 'transformers', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def _cpu_seconds(*arguments: str) -> float:
    """CPU time of a command, which other work on the machine does not change; the best of two (the first may
    compile)."""
    times = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([SCRIPT, *arguments], check=True, stdout=subprocess.DEVNULL, env={**os.environ})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_answers_fast() -> None:
    """0.1 and 0.8 s on an idle core; the bounds leave room for a slow or busy one and none for importing torch."""
    assert _cpu_seconds("--help") < 0.7
    assert _cpu_seconds("plan", "emma_llama3_8b_bi", "layout=h100_512_fp8") < 1.8


def test_the_documentation_shows_what_the_layouts_are_expected_to_take() -> None:
    text = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ")
        for line in text.splitlines()
        if line.startswith("|") and "`h100_" in line
    ]
    assert len(rows) == 14
    for gpus, layout, _, micro, memory, speed, _, _, hours in rows:
        plan = make_plan(load_recipe("emma_llama3_8b_bi", [f"layout={layout.strip('`')}"]))
        assert plan.throughput is not None
        assert plan.time is not None
        expected = (
            str(plan.recipe.cluster.world_size),
            str(plan.recipe.batch.micro),
            f"{plan.memory.total:.1f}",
            f"{plan.throughput.tokens_per_second_per_gpu:,.0f}",
            f"{plan.time.gpu_hours:,.0f}",
        )
        assert (gpus, micro, memory, speed, hours) == expected
