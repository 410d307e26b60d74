"""Makes an extended tokenizer: base and corpus in, a folder out that is complete or does not exist."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from emma.base.errors import UserError
from emma.base.files import atomic_write, read_json
from emma.base.garbage import no_garbage_collection
from emma.base.manifest import MANIFEST_NAME, FileRecord, Manifest
from emma.base.staging import staged_folder
from emma.recipes.schema import Recipe
from emma.recipes.schema.tokenizer import Extension
from emma.recipes.vocabulary import Growth
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.bpe import Bpe, open_tokenizer, with_marks
from emma.tools.tokenizer.learn import NewToken, learn
from emma.tools.tokenizer.words import Words, count_words

__all__ = [
    "EXTENSION",
    "KEPT",
    "STAGE",
    "Learnt",
    "extend",
    "extension_of",
    "learn_from",
    "read_extension",
    "table_of",
]

STAGE = "tokenizer.extend"
EXTENSION = "extension.parquet"

# Files that hold for the extended tokenizer as they are. Others (tokenizer.model, vocab.json, merges.txt, …) describe the
# base's vocabulary, and some programs would read them instead of tokenizer.json.
KEPT = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
_STALE = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")

_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("token", pa.string()),
        ("bytes", pa.binary()),
        ("left", pa.int64()),
        ("right", pa.int64()),
        ("weighted_count", pa.int64()),
        ("count", pa.int64()),
        ("pieces", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class Learnt:
    """New tokens, the tokenizer whose pattern they were learnt under, and the text they were learnt from."""

    bpe: Bpe
    tokens: list[NewToken]
    words: Words


def extension_of(recipe: Recipe, tokens: int | None = None) -> Extension:
    """The settings of a recipe; `tokens` takes precedence."""
    settings = recipe.tokenizer_extension or Extension()
    return settings if tokens is None else Extension(**{**settings.model_dump(), "tokens": tokens})


@no_garbage_collection()
def learn_from(file: TokenizerFile, corpus: Path, settings: Extension, workers: int) -> Learnt:
    """Chooses the new tokens.

    Raises:
        UserError: the base cannot be extended, or the corpus has no training text, or too little of it.
    """
    bpe = Bpe.read(file)
    if settings.pattern == "marks":
        bpe = Bpe(file, with_marks(bpe.value, file.path))
    parity = settings.selection == "parity"
    words = count_words(
        bpe, corpus, round(settings.max_mib_per_language * (1 << 20)), workers=workers, pairs=parity
    )
    if parity and not words.english.any():
        raise UserError(
            f"{corpus}: no training pair with English (eng_Latn), which tokenizer_extension.selection: parity compares "
            "languages by; add pairs, or use temperature"
        )
    tokens = learn(
        bpe,
        words,
        settings.tokens,
        temperature=settings.temperature,
        min_count=settings.min_count,
        max_token_bytes=settings.max_token_bytes,
        selection=settings.selection,
    )
    if not tokens:
        raise UserError(
            f"{corpus}: no pair of tokens occurs {settings.min_count} times and is no token yet, so there is nothing to "
            "add; add text or lower tokenizer_extension.min_count"
        )
    return Learnt(bpe, tokens, words)


def table_of(learnt: Learnt) -> pa.Table:
    """`extension.parquet`: one row per new token, in the order of ids; `pieces` are the base's ids for its bytes."""
    tokens = learnt.tokens
    pieces = learnt.bpe.encode_words([each.token for each in tokens])
    rows = [
        {
            "id": each.id,
            "token": each.token,
            "bytes": learnt.bpe.bytes_of(each.token),
            "left": each.pair and each.pair[0],
            "right": each.pair and each.pair[1],
            "weighted_count": each.weighted,
            "count": each.raw,
            "pieces": own,
        }
        for each, own in zip(tokens, pieces, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _written(learnt: Learnt) -> dict[str, Any]:
    """The extended tokenizer.json."""
    value: dict[str, Any] = orjson.loads(orjson.dumps(learnt.bpe.value))
    model, names = value["model"], [*learnt.bpe.names, *(each.token for each in learnt.tokens)]
    # Added tokens outside the vocabulary would be numbered anew, after the new tokens, by whoever loads the file.
    added = {token["content"]: token["id"] for token in value.get("added_tokens") or []}
    model["vocab"] = {**added, **model["vocab"], **{each.token: each.id for each in learnt.tokens}}
    model["vocab"] = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    pairs = [(names[each.pair[0]], names[each.pair[1]]) for each in learnt.tokens if each.pair]
    model["merges"] += [" ".join(pair) if as_text else list(pair) for pair in pairs]
    return value


def extend(
    file: TokenizerFile,
    corpus: Path,
    destination: Path,
    settings: Extension,
    *,
    recipe_sha256: str = "",
    workers: int = 1,
    overwrite: bool = False,
    check: Any = None,
) -> Manifest:
    """Extends a tokenizer by tokens of a corpus's training documents and writes it to a folder.

    Args:
        file: the base.
        corpus: a built corpus (its stage `split`).
        destination: gets `tokenizer.json`, the base's settings, `extension.parquet` and `manifest.json`.
        settings: how tokens are chosen.
        recipe_sha256: of the run's recipe.
        workers: processes; any number gives the same bytes.
        overwrite: replace `destination`.
        check: called with the finished folder before it gets its name; raises to refuse it, and returns what the
            manifest records.

    Raises:
        UserError: see `learn_from`; or `destination` exists. Leaves nothing behind.
    """
    split = corpus / "split" / MANIFEST_NAME
    built = Manifest.read(split.parent)
    manifest = Manifest(STAGE, recipe_sha256)
    with staged_folder(destination, overwrite=overwrite) as staging:
        learnt = learn_from(file, corpus, settings, workers)
        with atomic_write(staging / "tokenizer.json") as handle:
            handle.write(
                orjson.dumps(_written(learnt), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            )
        folder = file.path.parent
        for name in KEPT:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, staging / name)
        with atomic_write(staging / EXTENSION) as handle:
            pq.write_table(table_of(learnt), handle, compression="zstd")
        words, size = learnt.words, learnt.bpe.size
        unserved = words.without_pairs if settings.selection == "parity" else []
        grown = Growth(
            file.sha256,
            size,
            len(learnt.tokens),
            settings.pattern,
            settings.selection,
            [language for language in words.languages if language not in unserved],
        )
        grown.write(staging)
        manifest.inputs = [FileRecord.of(file.path), FileRecord.of(split)]
        manifest.counts = {
            "in": int(words.documents.sum()),
            "kept": int(words.documents.sum()),
            "removed_by": {},
        }
        manifest.extra = {
            "settings": settings.model_dump(),
            "base": {"path": str(file.path.parent), "sha256": file.sha256, "tokens": size},
            "corpus": {"path": str(corpus), "fingerprint": built.extra["fingerprint"]},
            "tokens": len(learnt.tokens),
            "characters": sum(each.pair is None for each in learnt.tokens),
            "vocab_size": size + len(learnt.tokens),
            "bytes": int(words.bytes.sum()),
            "words": len(words.words),
            "languages": dict(zip(words.languages, words.bytes.tolist(), strict=True)),
            "without_pairs": unserved,
            "left_out": [name for name in _STALE if (folder / name).is_file()],
        }
        manifest.outputs = [FileRecord.of(path, staging) for path in sorted(staging.iterdir())]
        manifest.write(staging)
        if check is not None:
            manifest.extra["verified"] = check(staging)
            manifest.outputs = [
                FileRecord.of(path, staging)
                for path in sorted(staging.iterdir())
                if path.name != MANIFEST_NAME
            ]
            manifest.write(staging)
    return manifest


@dataclass(frozen=True)
class Extended:
    """An extended tokenizer on disk.

    Attributes:
        folder: where it is.
        manifest: what it was made of.
        rows: `extension.parquet`.
    """

    folder: Path
    manifest: Manifest
    rows: Sequence[Mapping[str, Any]]

    @property
    def file(self) -> TokenizerFile:
        """The tokenizer."""
        return open_tokenizer(self.folder)

    @property
    def first(self) -> int:
        """The first new id."""
        return int(self.manifest.extra["base"]["tokens"])

    @property
    def settings(self) -> Extension:
        """How its tokens were chosen."""
        return Extension(**self.manifest.extra["settings"])


def read_extension(folder: Path) -> Extended:
    """Reads what `extend` wrote.

    Raises:
        UserError: it is no such folder, or a file is missing or not the one that was written.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise UserError(
            f"{folder}: no {MANIFEST_NAME}; it must be a folder that `emma tokenizer extend` wrote"
        )
    if read_json(folder / MANIFEST_NAME).get("stage") != STAGE:
        raise UserError(
            f"{folder}: its manifest is not of `emma tokenizer extend`; name the extended tokenizer's folder"
        )
    manifest = Manifest.read(folder)
    if faults := manifest.check_outputs(folder, contents=True):
        raise UserError(f"{faults[0]}; make the extension again")
    try:
        # Not `read_table`, which imports pyarrow's data sets and with them pandas.
        with pq.ParquetFile(folder / EXTENSION) as parquet:
            rows = parquet.read().cast(_SCHEMA).to_pylist()
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(
            f"{folder / EXTENSION}: cannot be read ({str(error).splitlines()[0]}); make it again"
        ) from None
    return Extended(folder, manifest, rows)
