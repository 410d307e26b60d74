from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emma.base.errors import UserError
from emma.recipes.schema.data import Pack
from emma.tools.pack.documents import DocumentMaker, spread
from emma.tools.pack.inputs import cut_units, list_inputs
from emma.tools.pack.languages import pair_labels
from emma.tools.pack.records import read_segment
from tests.tiny_text import SENTENCES, pairs


def make(
    tmp_path: Path, rows: Sequence[dict[str, Any]], kind: str, folder: str = "eng_Latn", **pack: Any
) -> tuple[list[dict[str, str]], DocumentMaker]:
    """Documents that records make, through a parquet file in a language's folder."""
    path = tmp_path / folder / "part-00000.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    section = Pack.model_validate({"components": {"c": {"kind": kind}}, **pack})
    maker = DocumentMaker(section.components["c"], section)
    documents: list[dict[str, str]] = []
    (unit,) = cut_units(list_inputs([path]), 1 << 30)
    for segment in unit.segments:
        for batch in read_segment(segment, *maker.fields, batch_bytes=2000):
            for table in maker.add(batch):
                documents += table.to_pylist()
    for table in maker.finish():
        documents += table.to_pylist()
    return documents, maker


def test_text_keeps_its_record(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "text": "one", "language": "swh_Latn", "source": "s", "split": "validation"},
        {"id": None, "text": "two", "language": None, "source": None, "split": None},
        {"id": "3", "text": "", "language": "x", "source": "s", "split": "train"},
        {"id": "4", "text": None, "language": "x", "source": "s", "split": "train"},
    ]
    documents, maker = make(tmp_path, rows, "text")
    assert documents == [
        {"text": "one", "language": "swh_Latn", "source": "s", "document_id": "1", "split": "validation"},
        {
            "text": "two",
            "language": "eng_Latn",
            "source": "eng_Latn",
            "document_id": "part-00000.parquet@1",
            "split": "train",
        },
    ]
    assert (maker.records, maker.removed) == (4, {"empty": 2})


def test_books_and_papers_stay_whole(tmp_path: Path) -> None:
    book = "\n".join(SENTENCES["eng_Latn"]) * 400
    documents, _ = make(tmp_path, [{"text": book}, {"text": "short"}], "text")
    assert [document["text"] for document in documents] == [book, "short"]


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"record part-00000\.parquet@1 has the split 'dev'; expected train or validation"
    ):
        make(tmp_path, [{"text": "a", "split": "train"}, {"text": "b", "split": "dev"}], "text")


def pair_rows(source: str, target: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"p{i}", "src_lang": source, "src_text": s, "tgt_lang": target, "tgt_text": t, **more}
        for i, (s, t) in enumerate(pairs(source, target, count))
    ]


def test_ten_pairs_make_a_document_with_labels_and_directions_in_turn(tmp_path: Path) -> None:
    rows = pair_rows("swh_Latn", "eng_Latn", 37)
    documents, _ = make(tmp_path, rows, "bilingual", "swh_Latn-eng_Latn")
    assert [document["text"].count("[Swahili]: ") for document in documents] == [10, 10, 10, 7]
    assert [document["text"].count("\n") for document in documents] == [20, 20, 20, 14]
    assert [document["text"].split(":")[0] for document in documents] == ["[Swahili]", "[English]"] * 2
    assert {document["language"] for document in documents} == {"swh_Latn-eng_Latn"}
    assert [document["document_id"] for document in documents] == ["p0", "p10", "p20", "p30"]
    first, second = rows[0], rows[10]
    assert documents[0]["text"].startswith(
        f"[Swahili]: {first['src_text']}\n[English]: {first['tgt_text']}\n[Swahili]: 1."
    )
    assert documents[1]["text"].startswith(
        f"[English]: {second['tgt_text']}\n[Swahili]: {second['src_text']}\n"
    )


@pytest.mark.parametrize(("direction", "first"), [("forward", "[eng_Latn]"), ("reverse", "[rus_Cyrl]")])
def test_one_direction_and_codes_as_labels(tmp_path: Path, direction: str, first: str) -> None:
    options = {"direction": direction, "language_labels": "code", "pairs_per_document": 4}
    documents, _ = make(tmp_path, pair_rows("eng_Latn", "rus_Cyrl", 12), "bilingual", bilingual=options)
    assert len(documents) == 3
    assert all(document["text"].startswith(first) for document in documents)


def test_template_of_the_recipe(tmp_path: Path) -> None:
    options = {"template": "{src} = {tgt}; ", "pairs_per_document": 2}
    rows = [{"src_text": "a", "tgt_text": "b"}, {"src_text": "c {x}", "tgt_text": "d"}]
    documents, _ = make(tmp_path, rows, "bilingual", "eng_Latn-fra_Latn", bilingual=options)
    assert [document["text"] for document in documents] == ["a = b; c {x} = d; "]


def test_languages_come_from_the_folder_and_half_pairs_are_counted(tmp_path: Path) -> None:
    rows = [
        {"src_text": "a", "tgt_text": ""},
        {"src_text": None, "tgt_text": "b"},
        {"src_text": "c", "tgt_text": "d"},
    ]
    documents, maker = make(tmp_path, rows, "bilingual", "deu_Latn-yor_Latn")
    assert [document["text"] for document in documents] == ["[German]: c\n[Yoruba]: d\n"]
    assert maker.removed == {"empty": 2}
    with pytest.raises(UserError, match="the folder is not a pair: 'eng_Latn' is not a language pair"):
        make(tmp_path, rows, "bilingual", "eng_Latn")
    half = [{"src_lang": "eng_Latn", "src_text": "a", "tgt_lang": None, "tgt_text": "b"}]
    with pytest.raises(UserError, match="names only one language of its pair"):
        make(tmp_path, [*half, {**half[0], "tgt_lang": "fra_Latn"}], "bilingual", "x-y")


def test_splits_and_pairs_are_not_mixed_in_a_document(tmp_path: Path) -> None:
    rows = [
        {**row, "split": "validation" if i % 3 == 0 else "train"}
        for i, row in enumerate(pair_rows("eng_Latn", "fra_Latn", 30) + pair_rows("eng_Latn", "swh_Latn", 30))
    ]
    documents, _ = make(tmp_path, rows, "bilingual")
    for document in documents:
        labels = set(re.findall(r"^\[(\w+)\]: ", document["text"], re.M))
        assert labels == {"English", "French"} or labels == {"English", "Swahili"}
    assert Counter((d["language"], d["split"]) for d in documents) == {
        ("eng_Latn-fra_Latn", "train"): 2,
        ("eng_Latn-fra_Latn", "validation"): 1,
        ("eng_Latn-swh_Latn", "train"): 2,
        ("eng_Latn-swh_Latn", "validation"): 1,
    }


def test_the_same_pair_is_never_twice_in_a_document(tmp_path: Path) -> None:
    once = pair_rows("eng_Latn", "fra_Latn", 12)
    rows = [row for row in once for _ in range(3)]
    documents, _ = make(tmp_path, rows, "bilingual", bilingual={"direction": "forward"})
    seen: Counter[str] = Counter()
    for document in documents:
        lines = re.findall(r"\[English\]: .*\n\[French\]: .*\n", document["text"])
        assert len(lines) == len(set(lines)) <= 10
        seen.update(lines)
    assert len(seen) == 12 and set(seen.values()) == {3}


def test_many_copies_of_one_pair_are_not_held_back_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emma.tools.pack.documents._HELD_PAIRS", 64)
    rows = pair_rows("eng_Latn", "fra_Latn", 1) * 200
    documents, maker = make(tmp_path, rows, "bilingual")
    assert len(documents) == 200
    assert all(buffer.rows <= 64 for buffer in maker._pairs.values())


def test_held_pairs_free_the_batches_that_they_are_slices_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many of one pair, which fill documents in each batch, and few of others, which wait.
    rows = [
        row
        for turn in range(40)
        for target, count in (("fra_Latn", 20), ("swh_Latn", 1), ("rus_Cyrl", 1))
        for row in pair_rows("eng_Latn", target, count)
    ]
    for number, row in enumerate(rows):
        row["tgt_text"] = f"{number} {row['tgt_text']}"
    monkeypatch.setattr("emma.tools.pack.documents._HELD_PAIRS", 64)
    expected, _ = make(tmp_path, rows, "bilingual")
    pinned: list[int] = []
    copy = DocumentMaker._copy_held

    def copied(maker: DocumentMaker) -> int:
        pinned.append(copy(maker))
        tables = [table for buffer in maker._pairs.values() for table in buffer.tables]
        assert sum(map(len, tables)) == sum(buffer.rows for buffer in maker._pairs.values())
        chunks = [chunk for table in tables for chunk in table["tgt"].chunks]
        memory = {each.address: each.size for chunk in chunks for each in chunk.buffers()[1:]}
        assert sum(memory.values()) < 2 * sum(table["tgt"].nbytes for table in tables) + 1000
        return pinned[-1]

    monkeypatch.setattr(DocumentMaker, "_copy_held", copied)
    documents, _ = make(tmp_path, rows, "bilingual")
    assert documents == expected and not pinned
    monkeypatch.setattr("emma.tools.pack.documents._SLACK", 5000)
    assert make(tmp_path, rows, "bilingual")[0] == expected
    assert len(pinned) > 3


def test_spread_keeps_every_element_and_the_order_where_it_can() -> None:
    order, sizes, rest = spread(np.arange(25), 10, last=False)
    assert (
        order.tolist() == list(range(20))
        and sizes.tolist() == [10, 10]
        and rest.tolist() == list(range(20, 25))
    )
    rng = np.random.default_rng(0)
    for _ in range(50):
        codes = rng.integers(0, 8, int(rng.integers(1, 60)))
        last = bool(rng.integers(2))
        order, sizes, rest = spread(codes, 4, last=last)
        assert sorted([*order.tolist(), *rest.tolist()]) == list(range(len(codes)))
        assert not (last and len(rest))
        for part in np.split(codes[order], np.cumsum(sizes)[:-1]):
            assert len(set(part.tolist())) == len(part) <= 4


def test_labels_with_the_same_name_carry_their_script() -> None:
    assert pair_labels("srp_Cyrl", "srp_Latn") == ("Serbian (Cyrl)", "Serbian (Latn)")
    assert pair_labels("ell_Grek", "swh_Latn") == ("Modern Greek", "Swahili")
    assert pair_labels("qaa_Latn", "eng_Latn") == ("qaa_Latn", "English")


def test_instruction_data_by_template(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate.", "input": "mto", "response": "river"},
        {"instruction": "Say hello.", "input": "", "response": "Hello!"},
        {"instruction": "Say hello.", "input": None, "response": "Hi!"},
        {"instruction": "No answer", "input": "", "response": ""},
    ]
    templates = {
        "template": "Q: {instruction}\nA: {response}",
        "template_with_input": "Q: {instruction} ({input})\nA: {response}",
    }
    documents, maker = make(tmp_path, rows, "instruction", instruction=templates)
    assert [document["text"] for document in documents] == [
        "Q: Translate. (mto)\nA: river",
        "Q: Say hello.\nA: Hello!",
        "Q: Say hello.\nA: Hi!",
    ]
    assert maker.removed == {"empty": 1}
    plain, _ = make(tmp_path, [{"instruction": "a", "response": "b"}], "instruction")
    assert plain[0]["text"] == "a\n\nb"


def test_code_gets_a_header_where_the_recipe_has_one(tmp_path: Path) -> None:
    code = "def f():\n    return {'a': 1}\n"
    rows = [{"text": code, "language": "Python", "path": "src/f.py"}]
    documents, _ = make(tmp_path, rows, "code", "Python")
    assert documents[0]["text"] == code
    header = {"header": "<file: {path}, {language}>\n"}
    documents, _ = make(tmp_path, rows, "code", "Python", code=header)
    assert documents[0]["text"] == "<file: src/f.py, Python>\n" + code
    with pytest.raises(UserError, match=r"header uses \{path\}, but the records have no field 'path'"):
        make(tmp_path, [{"text": code}], "code", "Python", code=header)
