"""A mirror with the files and fields of the real repositories, and a few items in three or more languages each."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

TOPICS = ["science/technology", "travel", "politics", "sports", "health", "entertainment", "geography"]
LABELS = ["Recommendation", "Faith", "Description", "Sin", "Grace", "Violence"]

# One sentence per language, used for all its texts.
SENTENCES = {
    "eng_Latn": "All human beings are born free and equal in dignity and rights.",
    "swh_Latn": "Watu wote wamezaliwa huru, hadhi na haki zao ni sawa.",
    "hin_Deva": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "zho_Hans": "人人生而自由,在尊严和权利上一律平等。",
    "tha_Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}
SHORT = {"en": "eng_Latn", "sw": "swh_Latn", "hi": "hin_Deva", "zh": "zho_Hans", "th": "tha_Thai"}
LONG = ("eng_Latn", "swh_Latn", "hin_Deva", "zho_Hans")


def text(code: str, number: int) -> str:
    """Text number `number` in a language."""
    return f"{SENTENCES[SHORT.get(code, code)]} ({number})"


def write_mirror(root: Path, items: int = 6) -> Path:
    """The whole mirror, without a model of spBLEU."""
    _sib(root, items)
    _taxi(root, items)
    _lm_eval_tasks(root, items)
    _flores(root, items)
    _summaries(root, items)
    for folder in ("glot500c", "pbc"):
        for code in ("eng_Latn", "swh_Latn", "hin_Deva"):
            _write(root / folder / f"{code}.txt", "".join(text(code, n) + "\n" for n in range(items)))
    _open_ended(root, items)
    return root


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A parquet file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A file of JSON lines."""
    _write(path, "".join(orjson.dumps(row).decode() + "\n" for row in rows))


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _tsv(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerows([*([header] if header else []), *rows])
    return buffer.getvalue()


def _sib(root: Path, items: int) -> None:
    for code in LONG:
        for split, count in (("train", 12), ("dev", 3), ("test", items)):
            rows = [[str(n), TOPICS[n % 7], f'{text(code, n)} "quoted" {split}'] for n in range(count)]
            path = root / "Davlan" / "sib200" / "data" / code / f"{split}.tsv"
            _write(path, _tsv(rows, ["index_id", "category", "text"]))


def _taxi(root: Path, items: int) -> None:
    for code in ("eng_Latn", "swh_Latn", "hin_Deva"):
        for split, count in (("train", 12), ("dev", 3), ("test", items)):
            lines = [f"{40001000 + n}\t{LABELS[n % 6]}\t{text(code, n)} {split}\n" for n in range(count)]
            # A quote that opens and never closes, as verses have.
            lines[0] = lines[0].replace("\t" + text(code, 0), '\t"' + text(code, 0))
            _write(root / "taxi1500" / code / f"{code}_{split}.tsv", "".join(lines))


def _lm_eval_tasks(root: Path, items: int) -> None:
    for code in ("sw", "zh", "th"):
        rows = [
            {
                "premise": f"{text(code, n)}.",
                "choice1": f"Abc {text(code, n)}",
                "choice2": f"Xyz {text(code, n + 1)}",
                "question": ("cause", "effect")[n % 2],
                "label": n % 2,
                "idx": n,
                "changed": False,
            }
            for n in range(items)
        ]
        write_parquet(root / "cambridgeltl" / "xcopa" / code / "test-00000-of-00001.parquet", rows)
    for code in ("en", "sw", "hi"):
        rows = [
            {
                "story_id": str(n),
                **{f"input_sentence_{k}": f"{text(code, n)} {k}." for k in range(1, 5)},
                "sentence_quiz1": f"{text(code, n)} A",
                "sentence_quiz2": f"{text(code, n)} B",
                "answer_right_ending": 1 + n % 2,
            }
            for n in range(items)
        ]
        for split in ("train", "eval"):
            write_parquet(root / "juletxara" / "xstory_cloze" / code / split / "0000.parquet", rows)
    for code in ("en", "sw", "hi"):
        rows = [
            {"premise": text(code, n), "hypothesis": text(code, n + 1), "label": n % 3} for n in range(items)
        ]
        for split in ("test", "validation"):
            write_parquet(root / "facebook" / "xnli" / code / f"{split}-00000-of-00001.parquet", rows)
    configs = []
    for code in ("eng_Latn", "swh_Latn", "zho_Hans"):
        rows = [
            {
                "link": "https://example.org",
                "question_number": n,
                "flores_passage": text(code, n),
                "question": f" {text(code, n)}? ",
                **{f"mc_answer{k}": f"{text(code, n)} {k}" for k in range(1, 5)},
                "correct_answer_num": str(1 + n % 4),
                "dialect": code,
                "ds": "2023-05-03",
            }
            for n in range(items)
        ]
        write_jsonl(root / "facebook" / "belebele" / "data" / f"{code}.jsonl", rows)
        configs.append(
            f"- config_name: {code}\n  data_files:\n  - split: test\n    path: data/{code}.jsonl\n"
        )
    _write(
        root / "facebook" / "belebele" / "README.md",
        "---\nconfigs:\n" + "".join(configs) + "---\n# Belebele\n",
    )
    for code in ("hi", "zh", "vi"):
        shown = code if code in SHORT else "en"
        rows = [
            {
                "id": f"ARC-Challenge/test/{n}",
                "answer": "ABCD"[n % 4],
                "instruction": f"{text(shown, n)} [b] x  y",
                **{f"option_{k}": f"{text(shown, n)} {k}" for k in "abcd"},
                "option_e": None,
            }
            for n in range(items)
        ]
        write_parquet(root / "alexandrainst" / "m_arc" / code / "test" / "0000.parquet", rows)
    for code, question, steps in (
        ("en", "Question:", "Step-by-Step Answer:"),
        ("sw", "Swali:", "Jibu la Hatua kwa Hatua:"),
        ("th", "โจทย์:", "คำตอบทีละขั้นตอน:"),
    ):
        folder = root / "juletxara" / "mgsm" / code
        train = [
            {
                "question": f"{question} {text(code, n)}?",
                "answer": f"{steps} {n} + 1. The answer is {n + 1}.",
                "answer_number": n + 1,
                "equation_solution": f"{n} + 1 = {n + 1}.",
            }
            for n in range(8)
        ]
        test = [
            {"question": f"{text(code, n)}?", "answer": None, "answer_number": n, "equation_solution": None}
            for n in range(items)
        ]
        write_parquet(folder / "train-00000-of-00001.parquet", train)
        write_parquet(folder / "test-00000-of-00001.parquet", test)


def _flores(root: Path, items: int) -> None:
    for code, (split, count) in itertools.product(LONG, (("dev", 9), ("devtest", items))):
        lines = "".join(f"{text(code, n)} {split}\n" for n in range(count))
        _write(root / "flores200_dataset" / split / f"{code}.{split}", lines)
    # FLORES+ has other codes, variants, and languages without devtest.
    plus = {
        "eng_Latn": "eng_Latn",
        "swh_Latn": "swh_Latn",
        "cmn_Hans": "zho_Hans",
        "twi_Latn_akua1239": "swh_Latn",
    }
    for code, (split, count) in itertools.product([*plus, "arg_Latn"], (("dev", 9), ("devtest", items))):
        if (code, split) == ("arg_Latn", "devtest"):
            continue
        rows = [
            {
                "id": n,
                "iso_639_3": code[:3],
                "iso_15924": code[4:8],
                "glottocode": "stan1293",
                "text": f"{text(plus.get(code, 'eng_Latn'), n)} {split}",
                "url": f"https://en.wikinews.org/{n // 3}",
                "domain": "wikinews",
                "topic": "health",
                "has_image": "no",
                "has_hyperlink": "no",
                "last_updated": "1.0",
            }
            for n in range(count)
        ]
        write_parquet(root / "openlanguagedata" / "flores_plus" / split / f"{code}.parquet", rows)


def _summaries(root: Path, items: int) -> None:
    for code, config in (
        ("eng_Latn", "english"),
        ("swh_Latn", "swahili"),
        ("zho_Hans", "chinese_simplified"),
    ):
        rows = [
            {
                "id": str(n),
                "url": "https://example.org",
                "title": text(code, n),
                "summary": text(code, n),
                "text": " ".join(text(code, k) for k in range(1, 12)),
            }
            for n in range(items)
        ]
        write_parquet(root / "csebuetnlp" / "xlsum" / config / "test" / "0000.parquet", rows)
    for length in ("long", "short"):
        rows = [
            {
                "url": "https://example.org",
                "title": text(code, n),
                "text": " ".join(text(code, k) for k in range(1, 40 if length == "long" else 8)),
                "summary": text(code, n),
                "language": listed,
            }
            for code, listed in (("eng_Latn", "fra_Latn"), ("hin_Deva", "hin_Deva"), ("tha_Thai", "tha_Thai"))
            for n in range(items)
        ]
        name = f"MassiveSumm_{length}"
        write_parquet(root / "MaLA-LM" / name / "data" / "train-00000-of-00001.parquet", rows)


def _open_ended(root: Path, items: int) -> None:
    for config, codes in (
        ("aya_human_annotated", ("tur", "yor")),
        ("dolly_machine_translated", ("tur", "fra", "hin")),
    ):
        rows = [
            {
                "id": n,
                "inputs": f"{text('eng_Latn', n)} {config}",
                "targets": text("swh_Latn", n),
                "language": code,
                "script": "Deva" if code == "hin" else "Latn",
                "source_id": None,
            }
            for code in codes
            for n in range(items)
        ]
        path = root / "CohereLabs" / "aya_evaluation_suite" / config / "test-00000-of-00001.parquet"
        write_parquet(path, rows)
    rows = [
        {
            "category": "letter",
            "name": str(n),
            "prompt_en": text("eng_Latn", n),
            "lang_script": code,
            "prompt_translated": text("hin_Deva" if code == "hin_Deva" else "swh_Latn", n),
            "uuid": f"{code}-{n}",
        }
        for code in ("vie_Latn", "yor_Latn", "hin_Deva")
        for n in range(items)
    ]
    write_parquet(root / "MaLA-LM" / "PolyWrite" / "data" / "train-00000-of-00001.parquet", rows)


def write_sentencepiece(path: Path) -> Path:
    """A small sentencepiece model trained on the sentences above."""
    import sentencepiece

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as handle:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(list(SENTENCES.values()) * 4),
            model_writer=handle,
            vocab_size=400,
            hard_vocab_limit=False,
            character_coverage=1.0,
            minloglevel=2,
        )
    return path
