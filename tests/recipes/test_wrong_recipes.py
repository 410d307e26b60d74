"""Each kind of wrong recipe gives one message that names place, key, value and fix, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import emma

HEAD = "extends: emma_llama3_8b_bi\n"

# What is wrong → text of the run file, and what the message has to say.
WRONG: dict[str, tuple[str, list[str]]] = {
    "unknown section": (
        HEAD + "optimiser: {beta1: 0.9}\n",
        ["wrong.yaml:2", "optimiser", "unknown key", "`optimizer`"],
    ),
    "unknown key": (
        HEAD + "schedule:\n  learnig_rate: 1.0e-5\n",
        ["wrong.yaml:3", "schedule.learnig_rate", "did you mean `learning_rate`?"],
    ),
    "unknown key, nothing near": (
        HEAD + "batch:\n  zzz: 1\n",
        ["wrong.yaml:3", "batch.zzz", "choose one of", "`micro`"],
    ),
    "a key of another section": (
        HEAD + "train: {steps: 100}\n",
        ["wrong.yaml:2", "train.steps", "did you mean `schedule.steps`?"],
    ),
    "a key without its section": (
        HEAD + "learning_rate: 1.0e-5\n",
        ["wrong.yaml:2", "learning_rate", "unknown key", "did you mean `schedule.learning_rate`?"],
    ),
    "unknown key deep inside": (
        HEAD + "data:\n  mix:\n    components:\n      code:\n        shar: 3\n",
        ["wrong.yaml:6", "data.mix.components.code.shar", "`share`"],
    ),
    "text for a number": (
        HEAD + "schedule:\n  steps: many\n",
        ["wrong.yaml:3", "schedule.steps", "'many'", "give", "integer"],
    ),
    "fraction for a whole number": (
        HEAD + "batch:\n  micro: 1.5\n",
        ["wrong.yaml:3", "batch.micro", "1.5", "integer"],
    ),
    "number for a text": (
        HEAD + "environment:\n  NCCL_DEBUG: 1\n",
        ["wrong.yaml:3", "environment.NCCL_DEBUG", "string"],
    ),
    "yes for true": (
        HEAD + "parallelism:\n  sequence: yes\n",
        ["wrong.yaml:3", "parallelism.sequence", "boolean"],
    ),
    "list for a mapping": (HEAD + "schedule: [1, 2]\n", ["wrong.yaml:2", "schedule", "list"]),
    "no choice": (
        HEAD + "schedule:\n  decay: exponential\n",
        ["wrong.yaml:3", "schedule.decay", "'exponential'", "'cosine'", "'wsd'"],
    ),
    "out of range": (
        HEAD + "optimizer:\n  beta2: 1.5\n",
        ["wrong.yaml:3", "optimizer.beta2", "1.5", "less than 1"],
    ),
    "negative": (
        HEAD + "schedule:\n  steps: -5\n",
        ["wrong.yaml:3", "schedule.steps", "-5", "greater than 0"],
    ),
    "infinite": (
        HEAD + "schedule:\n  learning_rate: .inf\n",
        ["wrong.yaml:3", "schedule.learning_rate", "finite"],
    ),
    "warm-up longer than the run": (
        HEAD + "schedule:\n  steps: 500\n",
        ["wrong.yaml:2", "schedule", "warmup_steps (1000)", "steps (500)"],
    ),
    "minimum above the peak": (
        HEAD + "schedule:\n  min_learning_rate: 1.0e-2\n",
        ["schedule", "min_learning_rate (0.01)", "learning_rate (4e-05)"],
    ),
    "missing section": (
        "model: llama3_8b\ndata: mala_bilingual\nlayout: h100_8_bf16\n",
        [
            "wrong.yaml: batch.global",
            "is required and absent (3 more after this one)",
            "add `global` to `batch`",
        ],
    ),
    "missing key": (
        HEAD + "start: null\n",
        ["wrong.yaml:2", "start"],
    ),
    "key given twice": (
        HEAD + "seed: 1\nschedule: {steps: 5000}\nseed: 2\n",
        ["wrong.yaml:4", "not valid YAML", "duplicate key", '"seed"'],
    ),
    "nested in itself": (HEAD + "environment: &a {b: *a}\n", ["wrong.yaml:2", "nested more than 32 deep"]),
    "no YAML": (HEAD + "schedule: {steps: 5000\nseed: 1\n", ["wrong.yaml:", "not valid YAML"]),
    "tab for indentation": (HEAD + "schedule:\n\tsteps: 5\n", ["wrong.yaml:3", "not valid YAML"]),
    "no mapping": ("- a\n- b\n", ["wrong.yaml", "a mapping of keys to values"]),
    "empty": ("", ["wrong.yaml", "is required and absent"]),
    "unknown model": (
        HEAD + "model: llama3_8\n",
        ["wrong.yaml:2", "model", "`llama3_8`", "did you mean `llama3_8b`"],
    ),
    "unknown layout": (HEAD + "layout: h100_65_bf16\n", ["wrong.yaml:2", "layout", "`h100_64_bf16`"]),
    "unknown parent": ("extends: emma_llama3_8b\n", ["wrong.yaml:1", "extends", "`emma_llama3_8b_bi`"]),
    "missing file of a section": (
        HEAD + "cluster: mine.yaml\n",
        ["wrong.yaml:2", "cluster", "mine.yaml: no such"],
    ),
    "number for a name": (
        HEAD + "model: 3\n",
        ["wrong.yaml:2", "model", "expected a name or a mapping, got 3"],
    ),
    "unknown second parent": (
        "extends:\n  - emma_llama3_8b_bi\n  - parts/llama3.1\n",
        ["wrong.yaml:3", "extends", "`parts/llama3.1`"],
    ),
    "parent without a name": (
        "extends: [emma_llama3_8b_bi, 3]\n",
        ["wrong.yaml:1", "extends", "a name or a list of names", "['emma_llama3_8b_bi', 3]"],
    ),
    "no parent": ("extends: []\n", ["wrong.yaml:1", "extends", "got []"]),
    "extends itself": (
        "extends: wrong.yaml\n",
        ["wrong.yaml:1", "extends", "loop", "wrong.yaml → wrong.yaml"],
    ),
    "name that is no folder name": (HEAD + "name: a/b\n", ["wrong.yaml:2", "name", "'a/b'"]),
    "component in the mix alone": (
        HEAD + "data:\n  mix:\n    components:\n      poems: {share: 3}\n",
        ["data", "mix.components.poems", "pack.components"],
    ),
    "misspelt template": (
        HEAD + "data:\n  pack:\n    bilingual:\n      template: '{source}'\n",
        ["wrong.yaml:5", "data.pack.bilingual.template", "lacks {src}"],
    ),
    "argument that belongs to a section": (
        HEAD + "megatron_args:\n  train-iters: 5\n",
        ["wrong.yaml:3", "megatron_args.train-iters", "schedule.steps"],
    ),
    "argument with dashes": (
        HEAD + "megatron_args:\n  --log-params-norm: true\n",
        ["wrong.yaml:3", "write `log-params-norm`"],
    ),
}


def _one_message(err: str) -> str:
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_file_gives_one_message(kind: str, tmp_path: Path) -> None:
    text, expected = WRONG[kind]
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    answer = emma("recipe", "show", str(path), "--json")
    assert (answer.code, answer.out) == (2, "")
    message = _one_message(answer.err)
    for part in expected:
        assert part in message, message


# Overrides → what the message has to say.
OVERRIDES: dict[str, list[str]] = {
    "schedule.steps": ["override `schedule.steps`", "expected section.key=value"],
    "=3": ["override `=3`", "expected section.key=value"],
    "schedule..steps=3": ["expected section.key=value"],
    "schedule.steps=[1": ["override `schedule.steps=[1`", "not valid YAML"],
    "schedule.stepz=3": ["command line", "schedule.stepz", "`steps`"],
    "schedule.steps=few": ["command line", "schedule.steps", "'few'"],
    "seed.part=3": ["command line", "`seed` is 1234", "override the whole value"],
    "data=mala": ["command line", "`mala`", "recipes/data"],
    "layout=h100_64": ["command line", "layout", "`h100_64_bf16`"],
    "layout=[a]": ["command line", "layout", "expected a name"],
    "batch.global=1000": ["command line", "batch.global", "1000 is not a multiple", "64"],
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_wrong_override_gives_one_message(override: str) -> None:
    arguments = ["emma_llama3_8b_bi", override]
    if override.startswith("seed."):
        arguments.insert(1, "seed=1234")
    answer = emma("recipe", "show", *arguments)
    assert (answer.code, answer.out) == (2, "")
    message = _one_message(answer.err)
    for part in OVERRIDES[override]:
        assert part in message, message


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("emma_llama3_8b_bj", ["no run `emma_llama3_8b_bj`", "`emma_llama3_8b_bi`"]),
        ("nowhere.yaml", ["nowhere.yaml: no such recipe file"]),
        (".", [".: not a run folder"]),
    ],
)
def test_wrong_run_gives_one_message(
    run: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = emma("recipe", "show", run)
    assert answer.code == 2
    message = _one_message(answer.err)
    for part in expected:
        assert part in message


def test_binary_file_gives_one_message(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(b"\xff\xfe\x00model")
    answer = emma("recipe", "show", str(path))
    assert answer.code == 2
    assert "UTF-8" in _one_message(answer.err)


def test_loop_of_bases_gives_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    path = tmp_path / "wrong.yaml"
    path.write_text(HEAD + "model: a.yaml\n")
    answer = emma("recipe", "show", str(path))
    assert answer.code == 2
    assert "a.yaml → b.yaml → a.yaml" in _one_message(answer.err)


@pytest.mark.parametrize(
    "arguments", [["recipe", "show"], ["recipe", "shwo", "x"], ["plan", "a", "--speed", "-3"]]
)
def test_wrong_command_line_is_misuse(arguments: list[str]) -> None:
    answer = emma(*arguments)
    assert answer.code == 2
    assert "Traceback" not in answer.err


def test_a_key_missing_in_a_section_names_the_section_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("nodes: 1\ngpus_per_node: 8\n")
    path = tmp_path / "wrong.yaml"
    path.write_text(HEAD + "cluster: mine.yaml\n")
    message = _one_message(emma("recipe", "show", str(path)).err)
    assert f"{tmp_path / 'mine.yaml'}: cluster.device: is required and absent" in message


def test_a_fault_of_a_section_names_the_section_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("nodes: 1\ngpus_per_node: 8\ndevice: h101\n")
    path = tmp_path / "wrong.yaml"
    path.write_text(HEAD + "cluster: mine.yaml\n")
    message = _one_message(emma("recipe", "show", str(path)).err)
    assert f"{tmp_path / 'mine.yaml'}:3: cluster.device" in message
    assert "'h101'" in message
    assert "'h100'" in message


@pytest.mark.parametrize("kind", ["unknown key", "key given twice", "unknown model"])
def test_console_script(kind: str, tmp_path: Path) -> None:
    text, expected = WRONG[kind]
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    script = Path(sys.executable).parent / "emma"
    done = subprocess.run(
        [script, "plan", path],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    message = _one_message(done.stderr)
    for part in expected:
        assert part in message
