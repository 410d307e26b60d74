from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emma.recipes.schema.data import BilingualDocuments, Pack, PackComponent
from emma.tools.evaluation.heldout import find_heldout, read_documents
from tests.tools.evaluation.tiny_model import write_corpus


def write_pairs(folder: Path, count: int, split: str = "validation", part: int = 0) -> None:
    rows = [
        {
            "id": f"{split}-{number}",
            "src_lang": "eng_Latn",
            "src_text": f"one {number}",
            "tgt_lang": "spa_Latn",
            "tgt_text": f"uno {number}",
            "source": "udhr",
            "license": "CC0-1.0",
            "split": split,
        }
        for number in range(count)
    ]
    path = folder / "split" / "parallel" / "eng_Latn-spa_Latn" / f"part-{part:05d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_sentence_pairs_become_the_documents_of_training(tmp_path: Path) -> None:
    write_pairs(tmp_path, 13)
    write_pairs(tmp_path, 13, split="train", part=1)
    (heldout,) = find_heldout(tmp_path)
    assert (heldout.kind, heldout.language) == ("parallel", "eng_Latn-spa_Latn")
    documents = {document.id: document.text for document in read_documents(heldout)}
    assert set(documents) == {"validation-0", "validation-10"}
    assert documents["validation-0"].startswith("[English]: one 0\n[Spanish]: uno 0\n[English]: one 1\n")
    assert documents["validation-10"] == "".join(
        f"[Spanish]: uno {number}\n[English]: one {number}\n" for number in (10, 11, 12)
    )


def test_pairs_follow_the_recipe(tmp_path: Path) -> None:
    write_pairs(tmp_path, 4)
    settings = BilingualDocuments(pairs_per_document=2, template="{src} = {tgt};", direction="forward")
    pack = Pack(components={"bilingual": PackComponent(kind="bilingual")}, bilingual=settings)
    documents = read_documents(find_heldout(tmp_path)[0], pack=pack)
    assert {d.text for d in documents} == {"one 0 = uno 0;one 1 = uno 1;", "one 2 = uno 2;one 3 = uno 3;"}


def test_limit_keeps_the_same_documents_however_files_are_cut(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a", ("eng_Latn",), documents=20)
    whole = corpus / "split" / "monolingual" / "eng_Latn" / "part-00000.parquet"
    table = pq.read_table(whole)
    for part, begin in enumerate((0, 7)):
        path = tmp_path / "b" / "split" / "monolingual" / "eng_Latn" / f"part-{part:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(begin, 7 if part == 0 else None), path)
    one, other = (read_documents(find_heldout(folder)[0], limit=5) for folder in (corpus, tmp_path / "b"))
    assert one == other
    assert len(one) == 5
    assert all("train" not in document.id for document in one)
