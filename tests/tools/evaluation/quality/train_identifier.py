"""Trains the fastText model in this folder, which tells the languages of the demo's declarations apart.

`fasttext-predict`, which the project installs, only reads models; this needs fastText itself, in an environment of its own:

    python -m venv fasttext && fasttext/bin/pip install fasttext==0.9.3 zstandard
    fasttext/bin/python tests/tools/evaluation/quality/train_identifier.py
"""

from __future__ import annotations

import importlib
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
TEXT = HERE.parents[3] / "recipes" / "data" / "demo_text" / "monolingual" / "udhr.jsonl.zst"
LABELS = {
    "eng": "eng_Latn",
    "spa": "spa_Latn",
    "por_PT": "por_Latn",
    "swh": "swh_Latn",
    "yor": "yor_Latn",
    "rus": "rus_Cyrl",
    "ukr": "ukr_Cyrl",
    "hin": "hin_Deva",
    "arb": "arb_Arab",
    "cmn_hans": "cmn_Hani",
}


def sentences(held_out: bool) -> Iterator[tuple[str, str]]:
    """Label and sentence; every sixth document is held out."""
    import zstandard

    with TEXT.open("rb") as handle, zstandard.ZstdDecompressor().stream_reader(handle) as stream:
        documents = [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]
    for name, label in LABELS.items():
        mine = [document["text"] for document in documents if document["id"].split("/")[1] == name]
        for place, text in enumerate(mine):
            if (place % 6 == 5) == held_out:
                for sentence in re.split(r"(?<=[.;।。；])\s*|\n+", text):
                    if sentence.strip():
                        yield label, " ".join(sentence.split())


def main() -> None:
    """Writes `identifier.ftz`."""
    fasttext = importlib.import_module("fasttext")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as handle:
        handle.writelines(f"__label__{label} {sentence}\n" for label, sentence in sentences(held_out=False))
        handle.flush()
        settings = {"dim": 8, "minn": 1, "maxn": 3, "bucket": 6000, "minCount": 1, "epoch": 100, "lr": 0.5}
        for _ in range(100):
            try:
                model = fasttext.train_supervised(handle.name, **settings, thread=1, seed=1, verbose=0)
                break
            except RuntimeError as error:
                # fastText 0.9.3 meets NaN in some of its runs, with the same seed too.
                print(error)
        model.quantize(input=handle.name, qnorm=True, retrain=False, cutoff=3000, dsub=2)
    model.save_model(str(HERE / "identifier.ftz"))


if __name__ == "__main__":
    main()
