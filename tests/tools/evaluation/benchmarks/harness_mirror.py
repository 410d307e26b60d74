"""A mirror of the repositories that lm-eval's tasks read: their folders, front matter, file formats and fields, few items."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.tools.evaluation.benchmarks.sample_mirror import text, write_jsonl, write_parquet

__all__ = ["ITEMS", "TASKS", "write_harness_mirror"]

ITEMS = 4

TASKS = {
    "modern": (
        "global_mmlu_full_sw_anatomy",
        "include_base_44_albanian_stem",
        "mmlu_prox_sw_biology",
        "global_piqa_nonparallel_cloze_swh_latn",
        "multiblimp_abk",
        "belebele_swh_Latn",
    ),
    "retention": ("mmlu_anatomy", "hellaswag", "arc_easy", "arc_challenge", "gsm8k"),
}
"""lm-eval's tasks of each shipped list that the mirror has data for."""

_LETTERS = "ABCD"

type _Rows = Sequence[Mapping[str, Any]]


def write_harness_mirror(root: Path) -> Path:
    """The whole mirror."""
    subjects = ("anatomy", "virology")
    global_mmlu = [row for subject in subjects for row in _global_mmlu(subject)]
    _parquet(root / "CohereForAI" / "Global-MMLU", "sw", {"test": global_mmlu, "dev": global_mmlu[::-1]})
    _parquet(
        root / "CohereForAI" / "include-base-44",
        "Albanian",
        {"test": _include(), "validation": _include()[:1]},
    )
    _parquet(root / "li-lab" / "MMLU-ProX", "sw", {"test": _prox(ITEMS), "validation": _prox(6)})
    _tables(root / "mrlbenchmarks" / "global-piqa-nonparallel", "swh_latn", "test", _piqa())
    _tables(root / "jumelet" / "multiblimp", "abk", "train", _pairs())
    # One JSON file per language, whose only split is called test.
    write_jsonl(root / "facebook" / "belebele" / "data" / "swh_Latn.jsonl", _belebele())
    _readme(root / "facebook" / "belebele", {"swh_Latn": {"test": "data/swh_Latn.jsonl"}})
    for subject in subjects:
        _parquet(
            root / "cais" / "mmlu",
            subject,
            {"test": _mmlu(subject), "validation": _mmlu(subject), "dev": _mmlu(subject)},
        )
    for level in ("ARC-Easy", "ARC-Challenge"):
        _parquet(
            root / "allenai" / "ai2_arc",
            level,
            {"train": _arc(level), "validation": _arc(level), "test": _arc(level)},
        )
    _parquet(root / "openai" / "gsm8k", "main", {"train": _gsm8k(8), "test": _gsm8k(ITEMS)})
    # One configuration, which lm-eval does not name.
    folder = root / "Rowan" / "hellaswag"
    for split in ("train", "validation", "test"):
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", _swag())
    _readme(folder, {"default": {split: f"data/{split}-*" for split in ("train", "validation", "test")}})
    return root


def _parquet(folder: Path, config: str, splits: Mapping[str, _Rows]) -> None:
    for split, rows in splits.items():
        write_parquet(folder / config / f"{split}-00000-of-00001.parquet", rows)
    _readme(folder, {config: {split: f"{config}/{split}-*" for split in splits}})


def _tables(folder: Path, config: str, split: str, rows: _Rows) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = folder / config / "data.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table.getvalue(), encoding="utf-8")
    _readme(folder, {config: {split: f"{config}/data.tsv"}}, 'sep: "\\t"')


def _readme(folder: Path, configs: Mapping[str, Mapping[str, str]], option: str = "") -> None:
    """Adds configurations to the front matter, from which the hub's library knows a repository's files."""
    path = folder / "README.md"
    old = path.read_text(encoding="utf-8").splitlines()[2:-1] if path.is_file() else []
    lines = ["---", "configs:", *old]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", *([f"  {option}"] if option else []), "  data_files:"]
        for split, place in splits.items():
            lines += [f"  - split: {split}", f"    path: {place}"]
    path.write_text("\n".join([*lines, "---"]) + "\n", encoding="utf-8")


def _global_mmlu(subject: str) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": f"{subject}/test/{n}",
            "subject": subject,
            "subject_category": "Medical",
            "question": f" {text('swh_Latn', n)} {subject}?\n",
            **{f"option_{letter.lower()}": f"jibu {letter} {n}" for letter in _LETTERS},
            "answer": _LETTERS[n % 4],
            "required_knowledge": None,
            "time_sensitive": "[]",
        }
        for n in range(ITEMS)
    ]


def _include() -> list[dict[str, Any]]:
    return [
        {
            "language": "Albanian",
            "country": "Albania",
            "domain": "STEM" if n % 3 else "Social science",
            "subject": "Physics",
            "regional_feature": "agnostic",
            "level": "Academic",
            "question": f"Cili është numri {n}? ",
            **{f"option_{letter.lower()}": f"përgjigja {letter} {n}" for letter in _LETTERS},
            "answer": n % 4,
        }
        for n in range(2 * ITEMS)
    ]


def _prox(items: int) -> list[dict[str, Any]]:
    """Ten options, of which most questions leave some empty; worked answers in the examples."""
    return [
        {
            "question_id": n,
            "question": f"Swali la {n}: seli ni nini?",
            **{f"option_{k}": f"chaguo {k} ({n})" if k < 4 + 2 * n else None for k in range(10)},
            "answer": "ABCDEFGHIJ"[n % 4],
            "answer_index": n % 4,
            "cot_content": f"J: Tufikirie hatua kwa hatua. Jibu ni ({_LETTERS[n % 4]}).",
            "category": "biology",
            "src": "stemez-Biology",
            "question_id_src": n,
        }
        for n in range(items)
    ]


def _piqa() -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Ukitaka kupika wali {n},",
            # What readers of tables take for numbers and quotation marks.
            "solution0": ('weka "maji" kwanza.', "12", "weka chumvi.", "weka maji, kisha wali.")[n],
            "solution1": ("weka mafuta kwanza.", "07", "na", "weka moto.")[n],
            "label": n % 2,
            "language": "swh_latn",
            "supplement": "",
        }
        for n in range(ITEMS)
    ]


def _pairs() -> list[dict[str, Any]]:
    return [
        {
            "sen": f"Абаҩцәа {n} цоит",
            "wrong_sen": f"Абаҩцәа {n} дцоит",
            "phenomenon": "SV-#",
            "grammatical_feature": "Number=Plur",
            "num_attractors": n,
            "child_verb": "цоит",
        }
        for n in range(ITEMS)
    ]


def _belebele() -> list[dict[str, Any]]:
    return [
        {
            "link": "https://en.wikinews.org/",
            "question_number": n % 2 + 1,
            "flores_passage": text("swh_Latn", n // 2),
            "question": f" Swali {n}? ",
            **{f"mc_answer{k}": f"jibu {k} {n}" for k in range(1, 5)},
            "correct_answer_num": str(n % 4 + 1),
            "dialect": "swh_Latn",
            "ds": "2023-05-03",
        }
        for n in range(ITEMS)
    ]


def _mmlu(subject: str) -> list[dict[str, Any]]:
    return [
        {
            "question": f"What is {subject} {n}? ",
            "subject": subject,
            "choices": [f"it is {k} of {n}" for k in range(4)],
            "answer": n % 4,
        }
        for n in range(ITEMS + 1)
    ]


def _swag() -> list[dict[str, Any]]:
    return [
        {
            "ind": n,
            "activity_label": "Running",
            "ctx_a": f"A man runs {n} miles.",
            "ctx_b": "he",
            "ctx": f"A man runs {n} miles. he",
            "endings": [f"stops [title] after  {k} hours [step]." for k in range(4)],
            "source_id": f"activitynet~v_{n}",
            "split": "val",
            "split_type": "indomain",
            "label": str(n % 4),
        }
        for n in range(ITEMS)
    ]


def _arc(level: str) -> list[dict[str, Any]]:
    """One question in five has three options, one has numbers for labels."""
    rows = []
    for n in range(ITEMS + 1):
        labels = list("1234" if n == 2 else "ABC" if n == 3 else _LETTERS)
        rows.append(
            {
                "id": f"{level}_{n}",
                "question": f"Which {level} is {n}?",
                "choices": {"text": [f"the {k}th one" for k in range(len(labels))], "label": labels},
                "answerKey": labels[n % len(labels)],
            }
        )
    return rows


def _gsm8k(items: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Ann has {n} eggs and buys 1,0{n:02d} more. How many has she?",
            "answer": f"She has {n}+1{n:03d}=<<{n}+1{n:03d}={1000 + 2 * n}>>{1000 + 2 * n:,} eggs.\n#### {1000 + 2 * n:,}",
        }
        for n in range(items)
    ]
