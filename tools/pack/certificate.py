"""The proof, made once for a tokenizer and an engine, that packing gives the ids of `transformers`.

A certificate says that every entry of the vocabulary has its id, and that the texts of `probes.py` get the ids of
`transformers`' own tokenizer, except that no text becomes a control token. It is kept in `cache_folder()` under the
tokenizer's SHA-256, its document boundaries, the engine and all versions, so another engine, version or file gets its
own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import batched, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import pyarrow as pa

from emma.base.errors import UserError
from emma.base.files import read_json, write_json
from emma.base.manifest import package_versions
from emma.base.processes import result_of
from emma.base.writers import sole_writer
from emma.tools.pack.encoded import Encoded, joined
from emma.tools.pack.engine import (
    REFERENCE,
    Engine,
    EngineName,
    UnreadableTokenizerError,
    choose_engine,
    encode_or_none,
    engines_for,
    load_engine,
)
from emma.tools.pack.probes import PROBES, probes
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = ["Certificate", "cache_folder", "certified_engine", "certify", "is_certified"]

_BATCH = 256


@dataclass(frozen=True)
class Certificate:
    """What the comparison of one engine with `transformers` found.

    Attributes:
        tokenizer_sha256: of the tokenizer.json.
        engine: the engine.
        versions: of the packages that took part.
        fault: why the engine may not be used, in words; None: nothing speaks against it.
        readable: whether the engine can load the tokenizer at all.
        entries: entries of the vocabulary, added tokens included.
        texts: texts compared.
        bytes: their size in UTF-8.
        unknown: texts of which a part became the token for what the vocabulary lacks.
        seconds: that the comparison took.
    """

    tokenizer_sha256: str
    engine: EngineName
    versions: dict[str, str]
    fault: str | None
    readable: bool
    entries: int
    texts: int
    bytes: int
    unknown: int
    seconds: float

    def __str__(self) -> str:
        size = f"{self.entries:,} entries, {self.texts:,} texts, {self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s"
        verdict = "the ids of transformers" if self.fault is None else f"refused: {self.fault}"
        return f"tokenizer {self.tokenizer_sha256[:12]} with {self.engine}: {verdict} ({size})"


def cache_folder() -> Path:
    """`$EMMA_CACHE`, else `emma` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get("EMMA_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emma"


def certified_engine(
    wanted: str, tokenizer: TokenizerFile, pool: Executor, workers: int
) -> tuple[EngineName, dict[str, str], list[Certificate]]:
    """The engine that `data.pack.engine` of a recipe selects for a tokenizer, why faster ones were passed over, and
    the certificates that decided.

    Args:
        wanted: the recipe's `data.pack.engine`.
        tokenizer: the tokenizer.
        pool: processes that make what certificates are missing.
        workers: their number.

    Raises:
        UserError: the wanted engine is not installed or cannot read this tokenizer, an installed one is broken, or the
            tokenizer cannot be packed with any.
    """
    passed_over: dict[str, str] = {}
    used: list[Certificate] = []
    for name in engines_for(wanted):
        found = certify([name] if name == REFERENCE else [REFERENCE, name], tokenizer, pool, workers)
        if (fault := found[0].fault) is not None:
            raise UserError(f"{tokenizer.path}: this tokenizer cannot be packed: {fault}")
        used += [each for each in found if each not in used]
        if found[-1].fault is None:
            return name, passed_over, used
        if not found[-1].readable and wanted == name:
            raise UnreadableTokenizerError(found[-1].fault)
        passed_over[name] = found[-1].fault
    return REFERENCE, passed_over, used


def is_certified(wanted: str, tokenizer: TokenizerFile) -> bool:
    """Whether all certificates that `certified_engine` may ask for are at hand.

    Raises:
        UserError: the wanted engine is not installed.
    """
    names = {REFERENCE, *engines_for(wanted)}
    return all(_read(_path(name, tokenizer)) is not None for name in names)


def certify(
    names: Sequence[EngineName], tokenizer: TokenizerFile, pool: Executor, workers: int
) -> list[Certificate]:
    """Certificates of engines for a tokenizer, from the cache if they were made before; other processes that need the
    same ones wait for them.

    Raises:
        UserError: an engine is not installed, or broken.
    """
    paths = {choose_engine(name): _path(name, tokenizer) for name in names}
    if all(found := [_read(path) for path in paths.values()]):
        return [each for each in found if each is not None]
    folder = next(iter(paths.values())).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        print(f"{folder}: cannot be written, so each pack certifies its tokenizer anew. Fix: set EMMA_CACHE to a folder "
              "that can", file=sys.stderr)  # fmt: skip
    made: dict[EngineName, Certificate] = {}
    with sole_writer(folder / tokenizer.sha256[:32], wait=True) if writable else nullcontext():
        missing = [name for name, path in paths.items() if _read(path) is None]
        for certificate in _make(missing, tokenizer, pool, workers) if missing else []:
            print(certificate, file=sys.stderr)
            made[certificate.engine] = certificate
            if writable:
                write_json(paths[certificate.engine], asdict(certificate))
        return [made.get(name) or cast(Certificate, _read(path)) for name, path in paths.items()]


def _versions(name: EngineName) -> dict[str, str]:
    return package_versions(("tokenizers", "transformers", name))


def _path(name: EngineName, tokenizer: TokenizerFile) -> Path:
    value = [PROBES, tokenizer.sha256, tokenizer.control_ids.tolist(), name, _versions(name)]
    if name != REFERENCE:  # which encodes each text by itself
        value.append(tokenizer.boundary_names)
    key = hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return cache_folder() / "certificates" / f"{name}-{key[:32]}.json"


def _read(path: Path) -> Certificate | None:
    if not path.is_file():
        return None
    try:
        return Certificate(**read_json(path))
    except (TypeError, UserError):
        return None  # damaged, or of another version: made anew


@dataclass
class _Part:
    """What a worker found in its part of the texts; `faults` has the place and the words of each engine's first."""

    entries: int = 0
    texts: int = 0
    bytes: int = 0
    unknown: int = 0
    faults: dict[EngineName, tuple[int, str]] = field(default_factory=dict)
    unreadable: dict[EngineName, str] = field(default_factory=dict)


def _make(
    names: Sequence[EngineName], tokenizer: TokenizerFile, pool: Executor, workers: int
) -> list[Certificate]:
    started = time.perf_counter()
    tasks = [pool.submit(_compare, names, tokenizer, part, workers) for part in range(workers)]
    parts = [result_of(task) for task in tasks]
    seconds = round(time.perf_counter() - started, 2)
    certificates = []
    for name in names:
        unreadable = parts[0].unreadable.get(name)
        faults = sorted(part.faults[name] for part in parts if name in part.faults)
        certificates.append(
            Certificate(
                tokenizer_sha256=tokenizer.sha256,
                engine=name,
                versions=_versions(name),
                fault=unreadable or (faults[0][1] if faults else None),
                readable=unreadable is None,
                entries=parts[0].entries,
                texts=sum(part.texts for part in parts),
                bytes=sum(part.bytes for part in parts),
                unknown=sum(part.unknown for part in parts),
                seconds=seconds,
            )
        )
    return certificates


def _compare(names: Sequence[EngineName], tokenizer: TokenizerFile, part: int, parts: int) -> _Part:
    """Runs in a worker: compares every `parts`-th batch of texts, from the `part`-th, with `transformers`."""
    own, found = _transformers(tokenizer), _Part(len(tokenizer.ids))
    engines: dict[EngineName, Engine] = {}
    for name in names:
        try:
            engines[name] = load_engine(name, tokenizer)
        except UnreadableTokenizerError as error:
            found.unreadable[name] = str(error)
    if (fault := _misnumbered(own, tokenizer)) is not None:
        found.faults = dict.fromkeys(names, (-1, fault))
        return found
    for number, few in islice(enumerate(batched(_texts(own, tokenizer), _BATCH)), part, None, parts):
        encodings = own.encode_batch_fast(few, add_special_tokens=False)
        expected = joined([np.array(encoding.ids, np.uint32) for encoding in encodings])
        texts = pa.array(few, pa.large_string())
        found.texts, found.bytes = (
            found.texts + len(few),
            found.bytes + sum(len(text.encode()) for text in few),
        )
        if tokenizer.unknown_id is not None:
            found.unknown += len(_documents_with(expected, [tokenizer.unknown_id]))
        for name, engine in list(engines.items()):
            fault = _difference(few, expected, encode_or_none(engine, texts), tokenizer)
            if fault is not None:
                found.faults[name] = number, f"{name} {fault}"
                del engines[name]
        if not engines:
            break
    return found


def _transformers(tokenizer: TokenizerFile) -> Any:
    """The tokenizer as `transformers` loads the untouched file, told not to make control tokens of text; where it is
    not installed, the library that it wraps."""
    if importlib.util.find_spec("transformers") is not None:
        from transformers import PreTrainedTokenizerFast

        own = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.path)).backend_tokenizer
    else:
        from tokenizers import Tokenizer

        own = Tokenizer.from_file(str(tokenizer.path))
    own.encode_special_tokens = True
    own.no_truncation()
    own.no_padding()
    return own


def _misnumbered(own: Any, tokenizer: TokenizerFile) -> str | None:
    """The first entry that `transformers`, or the reference, gives another id than the file does."""
    for who, found in (
        ("transformers", own.get_vocab(with_added_tokens=True)),
        ("the reference", tokenizer.shown(load_engine(REFERENCE, tokenizer).vocabulary())),  # type: ignore[attr-defined]
    ):
        if found == tokenizer.ids:
            continue
        for token, id_ in sorted(tokenizer.ids.items(), key=lambda item: item[1]):
            if found.get(token) != id_:
                other = "no id" if token not in found else f"the id {found[token]}"
                return f"the file gives {token!r} the id {id_}, {who} {other}"
        extra = sorted(set(found) - set(tokenizer.ids))[0]
        return f"{who} knows the token {extra!r}, which the file lacks"
    return None


def _texts(own: Any, tokenizer: TokenizerFile) -> Iterator[str]:
    ids = sorted(set(tokenizer.ids.values()))
    entries = own.decode_batch([[id_] for id_ in ids], skip_special_tokens=False)
    return probes([entry for entry in entries if entry], tokenizer.added)


def _documents_with(encoded: Encoded, ids: Sequence[int] | np.ndarray) -> set[int]:
    """Documents of a batch that hold one of the ids."""
    places = np.flatnonzero(np.isin(encoded.ids, ids))
    return set((np.searchsorted(encoded.offsets, places, side="right") - 1).tolist())


def _difference(
    texts: Sequence[str], expected: Encoded, found: Encoded | None, tokenizer: TokenizerFile
) -> str | None:
    """The first text whose ids are not those of `transformers`, in words.

    Where `transformers` makes a control token (or the one for the unknown) of text that spells it, the ids differ on
    purpose; where an engine makes one of ordinary text, packing refuses the document.
    """
    if found is None:
        return f"failed on one of the texts from {texts[0][:60]!r} on"
    exempt = _documents_with(expected, tokenizer.control_ids) | _documents_with(found, tokenizer.control_ids)
    if tokenizer.unknown_id is not None:
        unknown = next(name for name, id_ in tokenizer.ids.items() if id_ == tokenizer.unknown_id)
        exempt |= {row for row in _documents_with(expected, [tokenizer.unknown_id]) if unknown in texts[row]}
    for row, text in enumerate(texts):
        right, ids = (each.ids[each.offsets[row] : each.offsets[row + 1]] for each in (expected, found))
        if row in exempt or np.array_equal(right, ids):
            continue
        same = min(len(right), len(ids))
        wrong = right[:same] != ids[:same]
        at = int(np.argmax(wrong)) if wrong.any() else same
        excerpt = text if len(text) <= 60 else f"{text[:60]}…"
        return (
            f"gives {excerpt!r} the ids {ids[at : at + 4].tolist()} from place {at} on, transformers "
            f"{right[at : at + 4].tolist()}"
        )
    return None
