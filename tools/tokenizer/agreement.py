"""Text encoded by a base and by its extension: ids, decoded text, and every engine's and `transformers`' view of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from emma.base.files import read_json
from emma.tools.inspection.models import tokenizer_options
from emma.tools.pack.encoded import Encoded, agree
from emma.tools.pack.engine import (
    ENGINES,
    REFERENCE,
    Engine,
    UnreadableTokenizerError,
    encode_or_none,
    load_engine,
)
from emma.tools.tokenizer.bpe import Bpe
from emma.tools.tokenizer.extend import Extended

__all__ = ["Findings", "compare_texts", "loaded"]

_BATCH = 512


@dataclass
class Findings:
    """What `verify` found.

    Attributes:
        faults: broken promises, in words; the first of each kind.
        counts: languages, documents and tokens that were compared.
        engines: engines that were compared with the reference; of others, why they cannot read the tokenizer.
        unread: what was not checked, and why.
    """

    faults: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    engines: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def loaded(folder: Path) -> Any:
    """The tokenizer as `transformers` loads a folder."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = folder / "tokenizer_config.json"
    if settings.is_file() and read_json(settings).get("tokenizer_class"):
        return AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def compare_texts(
    plain: Bpe | None,
    old: Bpe,
    own: Bpe,
    extended: Extended,
    texts: Mapping[str, Sequence[str]],
    out: Path,
    found: Findings,
) -> None:
    """Compares held-out text: with the base's ids, between engines, with `transformers`, and decoded.

    Args:
        plain: the base, if new tokens must spell its ids.
    """
    from tokenizers import Tokenizer

    expand = _expansion(extended)
    engines = {}
    for name in ENGINES:
        if name == REFERENCE or importlib.util.find_spec(name) is None:
            continue
        try:
            engines[name] = load_engine(name, own.file)
            found.engines[name] = "equal"
        except UnreadableTokenizerError as error:
            found.engines[name] = str(error)
    before, after = (_reference(each) for each in (old, own))
    others: dict[str, Callable[[Sequence[str]], list[list[int]]]] = {}
    if importlib.util.find_spec("transformers") is not None:
        known = loaded(out)
        others["transformers"] = lambda few: known(
            list(few), add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
    decode = Tokenizer.from_file(str(own.file.path)).decode_batch
    decode_old = Tokenizer.from_file(str(old.file.path)).decode_batch
    used: set[int] = set()
    counts = dict.fromkeys(("languages", "documents", "tokens", "new_tokens_used"), 0)
    for language, own_texts in texts.items():
        counts["languages"] += bool(own_texts) and language[0] != "("
        faults: dict[str, str] = {}
        for few in batched(own_texts, _BATCH):
            ids = after(few)
            counts["documents"] += len(few)
            counts["tokens"] += len(ids.ids)
            used.update(np.unique(ids.ids[ids.ids >= extended.first]).tolist())
            rows = [ids.ids[ids.offsets[n] : ids.offsets[n + 1]] for n in range(len(few))]
            base_ids = before(few)
            base_rows = [base_ids.ids[base_ids.offsets[n] : base_ids.offsets[n + 1]] for n in range(len(few))]
            if plain is not None:
                for text, row, right in zip(few, rows, base_rows, strict=True):
                    if not np.array_equal(expand(row), right):
                        faults["its new tokens' pieces are not the base's ids"] = text
                        break
            for text, one, other in zip(
                few,
                decode([row.tolist() for row in rows], skip_special_tokens=False),
                decode_old([row.tolist() for row in base_rows], skip_special_tokens=False),
                strict=True,
            ):
                if one != other:
                    faults["decoded, it is another text than the base's ids are"] = text
                    break
            for name, engine in list(engines.items()):
                differs = _differing(engine, few, ids)
                if not differs:
                    continue
                both = _differing(
                    load_engine(name, old.file), differs, _reference(Bpe.read(old.file))(differs)
                )
                if len(both) < len(differs):
                    text = next(text for text in differs if text not in both)
                    faults[f"{name} gives other ids than the reference"] = text
                else:
                    found.engines[name] = (
                        f"gives other ids than the reference for the text {both[0][:60]!r}, as it does with the base; "
                        "emma pack compares it with the reference before it may encode"
                    )
            for library, encode in others.items():
                for text, own_ids, row in zip(few, encode(few), rows, strict=True):
                    if own_ids != row.tolist():
                        faults[f"{library} gives other ids than the reference"] = text
                        break
        found.faults += [f"{language}: {words} (text {text[:60]!r})" for words, text in faults.items()]
    counts["new_tokens"] = len(extended.rows)
    counts["new_tokens_used"] = len(used)
    found.counts = counts


def _expansion(extended: Extended) -> Callable[[np.ndarray], np.ndarray]:
    """Replaces each new id by its pieces."""
    first = extended.first
    pieces = {row["id"]: np.array(row["pieces"], np.int64) for row in extended.rows}
    none = np.array([-1])  # of a token that the table lacks

    def expand(ids: np.ndarray) -> np.ndarray:
        if not (ids >= first).any():
            return ids
        return np.concatenate(
            [
                pieces.get(id_, none) if id_ >= first else np.array([id_])
                for id_ in ids.astype(np.int64).tolist()
            ]
        )

    return expand


def _differing(engine: Engine, texts: Sequence[str], expected: Encoded) -> list[str]:
    """Texts that an engine gives other ids than expected, or none."""
    found = encode_or_none(engine, pa.array(texts, pa.large_string()))
    if agree(found, expected):
        return []
    if found is None:  # one text is enough for that
        return list(texts)
    ours, theirs = ([each.ids[a:b] for a, b in pairwise(each.offsets)] for each in (found, expected))
    return [
        text for text, one, other in zip(texts, ours, theirs, strict=True) if not np.array_equal(one, other)
    ]


def _reference(bpe: Bpe) -> Callable[[Sequence[str]], Encoded]:
    """The reference's encoding under a pattern that may not be the file's."""
    from tokenizers import Tokenizer

    from emma.tools.pack.encoded import joined

    value = orjson.loads(bpe.file.plain)
    value["pre_tokenizer"] = bpe.value.get("pre_tokenizer")
    own = Tokenizer.from_str(orjson.dumps(value).decode())
    return lambda texts: joined(
        [
            np.array(each.ids, np.uint32)
            for each in own.encode_batch_fast(list(texts), add_special_tokens=False)
        ]
    )
