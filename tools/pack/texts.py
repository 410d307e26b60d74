"""Packed documents, decoded batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.base.progress import progress
from emma.tools.corpus.overlap import Batch
from emma.tools.languages.scripts import SPACELESS, script_of
from emma.tools.pack.store import Component, open_component

__all__ = ["store_batches"]

_DOCUMENTS = 1024


def store_batches(store: Path, names: Sequence[str], tokenizer: Path) -> Iterator[Batch]:
    """Documents of a token store, decoded without control tokens.

    Args:
        store: folder of the store.
        names: components.
        tokenizer: the `tokenizer.json` that it was packed with.

    Raises:
        UserError: a component is missing, or was packed with another tokenizer.
    """
    from tokenizers import Tokenizer

    components = [open_component(store / name) for name in names]
    for component in components:
        sha256 = component.settings["tokenizer_sha256"]
        if not tokenizer.is_file() or sha256_file(tokenizer) != sha256:
            raise UserError(
                f"{tokenizer}: not the tokenizer that {component.folder} was packed with (SHA-256 {sha256})"
            )
    decoder = Tokenizer.from_file(str(tokenizer))
    for component in components:
        for shard in progress(component.shards, desc=f"overlap {component.name}", unit="shard"):
            tokens = (
                np.memmap(shard.bin_path, component.dtype, "r")
                if shard.bytes
                else np.zeros(0, component.dtype)
            )
            for record in shard.documents(["language", "document_id", "offset", "tokens"]):
                for begin in range(0, len(record), _DOCUMENTS):
                    rows = record.slice(begin, _DOCUMENTS).to_pylist()
                    width = component.dtype.itemsize
                    texts = decoder.decode_batch(
                        [tokens[r["offset"] // width :][: r["tokens"]].tolist() for r in rows]
                    )
                    yield from _by_language(component, rows, texts)


def _by_language(component: Component, rows: list[dict[str, object]], texts: list[str]) -> Iterator[Batch]:
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(str(row["language"]), []).append(place)
    for language, chosen in places.items():
        # A document of pairs holds both languages, so it is searched as text of either kind of script.
        kinds = {script_of(side) in SPACELESS: script_of(side) for side in language.split("-")}
        yield Batch(
            component.name,
            language,
            [str(rows[place]["document_id"]) for place in chosen],
            [[texts[place] for place in chosen]],
            [list(kinds.values())],
        )
