"""lm-eval's own command line and ours agree item for item, and every name that lm-eval knows is known here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.lm_eval_command import compare, run_ours, run_theirs
from emma.base.errors import UserError
from emma.tools.evaluation.benchmarks import harness
from emma.tools.evaluation.benchmarks.command import parse_shots
from emma.tools.evaluation.benchmarks.records import read_samples, read_unit, unit_file, write_unit
from emma.tools.evaluation.benchmarks.stores import Mirror
from tests.tools.evaluation.benchmarks.harness_mirror import ITEMS, TASKS, write_harness_mirror
from tests.tools.evaluation.tiny_model import write_model

# The answers of MMLU-ProX have 2,048 tokens; `python -m benchmarks.lm_eval_command` has it, too.
NAMES = [name for names in TASKS.values() for name in names if "prox" not in name]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_harness_mirror(tmp_path_factory.mktemp("hub"))


@pytest.mark.slow
def test_its_command_and_ours_agree_item_for_item(hub: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "reader", seed=1, positions=1024)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    run_theirs(model, hub, NAMES, theirs, 1024)
    run_ours(model, hub, NAMES, ours, 1024)
    found = compare(NAMES, theirs, ours, "reader")
    assert [line for row in found for line in (row.task, *row.differences)] == NAMES
    assert sum(row.ties for row in found) < len(NAMES)
    for row in found:
        assert row.items >= ITEMS and row.values > 5 * row.items, row.task
    # The comparison notices: another prompt, score, likelihood, answer, a lost item.
    unit = unit_file(ours, "reader", "lm_eval.hellaswag", "eng_Latn")
    done, samples = read_unit(unit), list(read_samples(unit))
    assert done is not None
    samples[0]["prompt"] += " "
    samples[1]["scores"]["acc_norm"] = 1 - samples[1]["scores"]["acc_norm"]
    samples[2]["responses"][1][0][0] += 0.001
    write_unit(unit, done, samples[:3])
    math = unit_file(ours, "reader", "lm_eval.gsm8k", "eng_Latn")
    done, samples = read_unit(math), list(read_samples(math))
    assert done is not None
    samples[3]["filtered"]["flexible-extract"] = ["7"]
    write_unit(math, done, samples)
    swag, gsm = compare(["hellaswag", "gsm8k"], theirs, ours, "reader")
    assert [line.split(":")[0] for line in swag.differences] == ["0", "1", "2", "3"]
    assert [line.split(": ")[1] for line in gsm.differences] == ["answer after flexible-extract"]


@pytest.mark.slow
def test_every_name_of_lm_eval_is_known() -> None:
    from lm_eval.tasks import TaskManager

    manager, declared = TaskManager(), harness._declared()
    assert [name for name in manager.task_index if name not in declared] == []
    kinds = {name: entry.kind.name in ("TASK", "PY_TASK") for name, entry in manager.task_index.items()}
    assert [name for name, leaf in kinds.items() if declared[name][1] != leaf] == []
    # A tag whose tasks are in several folders; a tag of a template without an extension; quoted keys.
    for name in ("math_word_problems", "bertaqa", "mmlu"):
        assert set(harness._leaves(name)) == set(harness._leaves_in(manager, name)), name


def _build(name: str, store: Mirror, shots: int | None = None) -> dict[str, Any]:
    (unit,) = harness.harness_units([name])
    return harness.build_tasks(unit, store, shots)


def test_data_is_read_as_the_hub_s_library_reads_it(hub: Path) -> None:
    (task,) = _build("global_piqa_nonparallel_cloze_swh_latn", Mirror(hub)).values()
    rows = list(task.test_docs())
    assert [row["label"] for row in rows] == [0, 1, 0, 1]
    assert rows[0]["solution0"] == 'weka "maji" kwanza.' and rows[1]["solution1"] == "07"
    assert rows[0]["supplement"] is None
    (task,) = _build("mmlu_anatomy", Mirror(hub)).values()
    assert task.config.num_fewshot == 0 and len(task.test_docs()) == ITEMS + 1


def test_faults_of_a_mirror_name_the_repository(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jumelet/multiblimp, arb: no file of it in .*as it is on the hub"):
        _build("multiblimp_arb", Mirror(hub))
    broken = tmp_path / "openai" / "gsm8k"
    broken.mkdir(parents=True)
    (broken / "README.md").write_bytes((hub / "openai" / "gsm8k" / "README.md").read_bytes())
    with pytest.raises(UserError, match="openai/gsm8k, main: `datasets` cannot read"):
        _build("gsm8k", Mirror(tmp_path))
    (broken / "main").mkdir()
    for split in ("train", "test"):
        (broken / "main" / f"{split}-00000-of-00001.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="openai/gsm8k, main: `datasets` cannot read"):
        _build("gsm8k", Mirror(tmp_path))


def test_numbers_of_examples(hub: Path) -> None:
    assert parse_shots(["lm_eval:gsm8k=2", "lm_eval:mmlu_anatomy=5"]) == {
        "lm_eval.gsm8k": 2,
        "lm_eval.mmlu": 5,
    }
    (task,) = _build("gsm8k", Mirror(hub), 2).values()
    assert task.config.num_fewshot == 2
    with pytest.raises(UserError, match="lm-eval fixes it at 0 examples"):
        _build("multiblimp_abk", Mirror(hub), 1)
