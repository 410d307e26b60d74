"""lm-eval's `hf` backend runs a task on a released folder without importing this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.evaluation.tiny_model import TEXTS

_EVALUATE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
task = {
    "task": "next_word",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": sys.argv[2]}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_choice": "choices",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}],
}
found = simple_evaluate(
    model="hf", model_args={"pretrained": sys.argv[1], "dtype": "float32"}, device="cpu", batch_size=2, tasks=[task],
    task_manager=TaskManager(include_defaults=False), log_samples=True, bootstrap_iters=0,
)
assert not {"recipes", "tools", "checkpoints_conversion"} & {name.split(".")[0] for name in sys.modules}
samples = found["samples"]["next_word"]
print(json.dumps({
    "accuracy": found["results"]["next_word"]["acc,none"],
    "scores": [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples],
}))
"""


@pytest.mark.slow
def test_a_task_runs(released: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = []
    for text in TEXTS.values():
        middle = len(text) // 2
        choices = [text[middle:], text[middle:][::-1]]
        rows.append({"text": text[:middle], "choices": choices, "label": 0})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _EVALUATE, str(released), str(data)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # The same sums of log-probabilities, computed by hand.
    tokenizer = AutoTokenizer.from_pretrained(released)
    model = AutoModelForCausalLM.from_pretrained(released, dtype=torch.float32)
    right = 0
    for row, scores in zip(rows, found["scores"], strict=True):
        expected = []
        for choice in row["choices"]:
            context = tokenizer(row["text"]).input_ids
            ids = tokenizer(f"{row['text']} {choice}").input_ids
            with torch.no_grad():
                logs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
            positions = range(len(context), len(ids))
            expected.append(sum(logs[place - 1, ids[place]].item() for place in positions))
        assert scores == pytest.approx(expected, abs=1e-3)
        right += expected[0] > expected[1]
    assert found["accuracy"] == pytest.approx(right / len(rows))
