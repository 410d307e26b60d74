"""lm-eval's own tasks from a mirror: the same answers, item for item, as lm-eval gives by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from emma.base.errors import UserError
from emma.commands.evaluate import group
from emma.tools.evaluation.benchmarks import harness
from emma.tools.evaluation.benchmarks.records import read_samples, read_unit, unit_file
from emma.tools.evaluation.benchmarks.stores import Mirror
from emma.tools.evaluation.results import read_results
from tests.tools.evaluation.benchmarks.sample_mirror import write_jsonl, write_parquet

ITEMS = 4
TASKS = ("multiblimp_abk", "global_mmlu_full_sw_anatomy", "global_mmlu_full_sw_virology", "arc_easy", "hellaswag",
         "gsm8k")  # fmt: skip


def _rows() -> dict[tuple[str, str | None], dict[str, list[dict[str, Any]]]]:
    """Rows with the fields of the real repositories, by repository and configuration, and by split."""
    subjects = ("anatomy", "virology")
    global_mmlu = [
        {
            "sample_id": f"{subject}/{n}",
            "subject": subject,
            "subject_category": "Medical",
            "question": f"Swali {n} la {subject}?",
            **{f"option_{letter}": f"jibu {letter} {n}" for letter in "abcd"},
            "answer": "ABCD"[n % 4],
        }
        for subject in subjects
        for n in range(ITEMS)
    ]
    arc = [
        {
            "id": str(n),
            "question": f"What is {n}?",
            "choices": {"text": [f"it is {k}" for k in range(4)], "label": list("ABCD")},
            "answerKey": "ABCD"[n % 4],
        }
        for n in range(ITEMS)
    ]
    swag = [
        {
            "ind": n,
            "activity_label": "Running",
            "ctx_a": f"A man runs {n} miles.",
            "ctx_b": "he",
            "endings": [f"stops [title] after {k} hours." for k in range(4)],
            "label": str(n % 4),
        }
        for n in range(ITEMS)
    ]
    gsm = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(8)]
    pairs = [{"sen": f"she sings {n}", "wrong_sen": f"she sing {n}"} for n in range(ITEMS)]
    return {
        ("jumelet/multiblimp", "abk"): {"train": pairs},
        ("CohereForAI/Global-MMLU", "sw"): {"test": global_mmlu, "dev": global_mmlu},
        ("allenai/ai2_arc", "ARC-Easy"): {"train": arc, "validation": arc, "test": arc},
        ("Rowan/hellaswag", None): {"train": swag, "validation": swag, "test": swag},
        ("openai/gsm8k", "main"): {"train": gsm, "test": gsm[:3]},
    }


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("modern")
    for (repository, config), splits in _rows().items():
        for split, rows in splits.items():
            if repository == "jumelet/multiblimp":
                write_jsonl(root / repository / str(config) / f"{split}.jsonl", rows)
            else:
                folder = root / repository / (config or "data")
                write_parquet(folder / f"{split}-00000-of-00001.parquet", rows)
    return root


def _run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(group, ["run", *map(str, arguments)], catch_exceptions=False)


def test_items_are_scored_as_by_lm_eval(
    reader: Path, modern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    output = tmp_path / "evaluation"
    arguments: list[str | Path] = [
        *(reader, "--mirror", modern, "--output", output, "--device", "cpu", "--max-length", "512"),
        *("--benchmarks", ",".join(f"lm_eval:{name}" for name in TASKS)),
    ]
    assert _run(*arguments).exit_code == 0

    tables = _rows()

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        splits = tables[path, name]
        return datasets.DatasetDict({key: datasets.Dataset.from_list(rows) for key, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load)
    folders = frozenset({"multiblimp", "global_mmlu", "arc", "hellaswag", "gsm8k"})
    theirs = simple_evaluate(
        model=HFLM(pretrained=str(reader), device="cpu", dtype="float32", max_length=512, batch_size=2),
        tasks=list(TASKS),
        task_manager=harness._manager(folders),
        bootstrap_iters=0,
        log_samples=True,
    )
    assert theirs is not None
    compared = 0
    for name in TASKS:
        family, language = harness._place(name)
        unit = unit_file(output, "reader", f"lm_eval.{family}", language)
        mine = {sample["index"]: sample for sample in read_samples(unit)}
        for sample in theirs["samples"][name]:
            index = str(sample["doc_id"])
            found = mine[index if index in mine else f"{name}/{index}"]
            for metric in sample["metrics"]:
                key = (
                    metric if sample["filter"] in ("none", "strict-match") else f"{metric}:{sample['filter']}"
                )
                assert found["scores"][key] == sample[metric], (name, index, metric)
                compared += 1
    assert compared > 5 * ITEMS + 6

    rows = {(row.benchmark, row.language, row.metric): row for row in read_results(output)}
    both = rows["lm_eval.global_mmlu_full", "sw", "acc"]
    assert both.n == 2 * ITEMS and both.error is not None
    wanted = [theirs["results"][name]["acc,none"] for name in TASKS if "global" in name]
    assert both.value == pytest.approx(sum(wanted) / 2)
    assert rows["lm_eval.gsm8k", "eng_Latn", "exact_match:flexible-extract"].n == 3
    # Nothing is run twice.
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.json")}
    monkeypatch.undo()
    assert _run(*arguments).exit_code == 0
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*.json")}
    assert {path: time for path, time in before.items() if path.name != "models.json"} == {
        path: time for path, time in after.items() if path.name != "models.json"
    }
    done = read_unit(unit_file(output, "reader", "lm_eval.arc_easy", "eng_Latn"))
    assert done is not None and done.details["tokens_forwarded"] > 0
    assert json.loads(json.dumps(done.details["settings"]))["tasks"] == ["arc_easy"]


def test_groups_families_and_patterns() -> None:
    (unit,) = harness.harness_units(["lm_eval:mmlu"])
    assert (unit.name, len(unit.tasks)) == ("lm_eval.mmlu/eng_Latn", 57)
    (unit,) = harness.harness_units(["global_mmlu_full_sw"])
    assert (unit.name, len(unit.tasks)) == ("lm_eval.global_mmlu_full/sw", 57)
    family = harness.harness_units(["lm_eval:multiblimp"])
    assert len(family) == 101 and {unit.family for unit in family} == {"multiblimp"}
    albanian = [unit for unit in harness.harness_units(["include_base_44"]) if unit.language == "albanian"]
    assert len(albanian) == 1 and not any("few_shot" in task for task in albanian[0].tasks)
    assert [unit.language for unit in harness.harness_units(["multiblimp_a?k"])] == ["abk"]
    with pytest.raises(UserError, match=r"lm_eval:hellaswagg: lm-eval has no such task .* `hellaswag`"):
        harness.harness_units(["lm_eval:hellaswagg"])
    assert harness.expand(["retention", "belebele"])[-1] == "belebele"


def test_missing_data_and_generated_code_are_refused(modern: Path) -> None:
    with pytest.raises(UserError, match="jumelet/multiblimp, arb: no file of it in"):
        harness.build_tasks(harness.harness_units(["multiblimp_arb"])[0], Mirror(modern))
