"""The authors' variants that came from lm-eval give the model exactly what lm-eval's own tasks give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emma.tools.evaluation.benchmarks.definitions import get_benchmark, sources
from emma.tools.evaluation.benchmarks.items import build_items
from emma.tools.evaluation.benchmarks.metrics import Resources
from emma.tools.evaluation.benchmarks.rows import read_rows
from emma.tools.evaluation.benchmarks.stores import Mirror

# lm-eval's task → ours, language, examples.
TASKS = {
    "xcopa_sw": ("xcopa_emma", "sw", 0),
    "xcopa_zh": ("xcopa_emma", "zh", 0),
    "xstorycloze_hi": ("xstorycloze_emma", "hi", 0),
    "xnli_sw": ("xnli_emma", "sw", 0),
    "xnli_hi": ("xnli_emma", "hi", 0),
    "belebele_zho_Hans": ("belebele_emma", "zho_Hans", 0),
    "arc_hi": ("arc_multilingual_emma", "hi", 0),
    "mgsm_direct_sw": ("mgsm_direct_emma", "sw", 0),
    "mgsm_direct_th": ("mgsm_direct_emma", "th", 3),
    "mgsm_native_cot_th": ("mgsm_cot_emma", "th", 3),
}


@pytest.mark.slow
def test_requests_are_those_of_lm_eval(store: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    from emma.tools.evaluation.benchmarks.tasks import BenchmarkTask

    by_repository = {source.repository: source for source in sources()}
    hub_names = {"training": "train", "examples": "train"}

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        source = by_repository[path]
        splits = {
            (published if split == "test" else hub_names[split]): read_rows(store, source, name or "", split)
            for split, published in source.splits.items()
        }
        # Splits that lm-eval only opens: examples that it could draw and does not.
        for split in ("train", "validation", "test", "eval"):
            splits.setdefault(split, splits[source.splits["test"]])
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}
        )

    # Nothing is fetched: lm-eval's tasks get the rows of the mirror.
    monkeypatch.setattr(datasets, "load_dataset", load)
    folder = Path(lm_eval.tasks.__file__).parent
    folders = ["xcopa", "xstorycloze", "xnli", "belebele", "okapi/arc_multilingual", "mgsm"]
    manager = TaskManager(include_path=[str(folder / name) for name in folders], include_defaults=False)
    for name, (ours, language, shots) in TASKS.items():
        (theirs,) = manager.load([name])["tasks"].values()
        theirs.set_config("num_fewshot", shots)
        theirs.set_fewshot_seed(1234)
        benchmark = get_benchmark(ours)
        items = build_items(benchmark, language, store, shots=shots)
        mine = BenchmarkTask(benchmark, language, items, 256, Resources())
        for task in (theirs, mine):
            task.build_all_requests(rank=0, world_size=1)
        wanted = [request.args for request in theirs.instances]
        found = [request.args for request in mine.instances]
        if benchmark.kind == "choice":
            assert found == wanted, name
            continue
        assert [prompt for prompt, _ in found] == [prompt for prompt, _ in wanted], name
        assert [options["until"] for _, options in found] == [options["until"] for _, options in wanted], name
        assert not any(options["do_sample"] for _, options in (*found, *wanted))
        assert [item.reference for item in items] == [
            str(theirs.doc_to_target(document)) for document in theirs.test_docs()
        ]
