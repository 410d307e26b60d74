"""A small built corpus with a few languages, as `emma corpus build` leaves it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SENTENCES = {
    "eng_Latn": "All human beings are born free and equal in dignity and rights. ",
    "deu_Latn": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. ",
    "yor_Latn": "Gbogbo ènìyàn ni a bí ní òmìnira; iyì àti ẹ̀tọ́ kọ̀ọ̀kan sì dọ́gba. ",
}


def write_corpus(root: Path, documents: int = 40) -> Path:
    """Writes `split/monolingual/…` and `split/parallel/eng_Latn-deu_Latn/…`; returns `root`."""
    for language, sentence in SENTENCES.items():
        rows = [
            {
                "id": f"{language}/{index}",
                "text": f"{index} " + sentence * (1 + index % 5),
                "language": language,
                "split": "validation" if index % 10 == 0 else "train",
            }
            for index in range(documents)
        ]
        folder = root / "split/monolingual" / language
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "part-00000.parquet")
    pair = {
        "id": "p/0",
        "src_lang": "eng_Latn",
        "src_text": SENTENCES["eng_Latn"],
        "tgt_lang": "deu_Latn",
        "tgt_text": SENTENCES["deu_Latn"],
        "split": "train",
    }
    folder = root / "split/parallel/eng_Latn-deu_Latn"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([pair]), folder / "part-00000.parquet")
    return root
