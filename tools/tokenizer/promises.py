"""What an extended tokenizer promises, checked: old ids keep their meaning, and new tokens are old ones joined."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.vocabulary import GROWTH_NAME, Growth, growth_of
from emma.tools.inspection.models import tokenizer_options
from emma.tools.pack.encoded import Encoded
from emma.tools.pack.engine import ENGINES, REFERENCE, UnreadableTokenizerError, encode_or_none, load_engine
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.bpe import Bpe, open_tokenizer, with_marks
from emma.tools.tokenizer.extend import EXTENSION, KEPT, Extended, learn_from, read_extension, table_of
from emma.tools.tokenizer.words import by_language, documents

__all__ = ["Findings", "held_out", "verify"]

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


def held_out(corpus: Path, most: int, size: int) -> dict[str, list[str]]:
    """Validation documents of each language: at most `most`, and none after `size` characters."""
    found: dict[str, list[str]] = {}
    for language, parts in by_language(corpus).items():
        texts = found.setdefault(language, [])
        characters = 0
        for part, column in parts:
            for text in documents(corpus, part, column, "validation"):
                if len(texts) >= most or characters >= size:
                    break
                texts.append(text)
                characters += len(text)
    return found


def verify(
    base: Path,
    out: Path,
    texts: Mapping[str, Sequence[str]],
    *,
    corpus: Path | None = None,
    workers: int = 1,
) -> Findings:
    """Checks an extension.

    Args:
        base: folder of the base tokenizer.
        out: folder that `extend` wrote.
        texts: held-out texts by language.
        corpus: the corpus; with it, the extension is made once more from its training documents and compared.
        workers: processes for that.

    Raises:
        UserError: a folder cannot be read, or `out` does not extend `base`.
    """
    extended = read_extension(out)
    file = open_tokenizer(base)
    if file.sha256 != extended.manifest.extra["base"]["sha256"]:
        raise UserError(
            f"{base}: its tokenizer.json has the SHA-256 {file.sha256}, but {out} extends "
            f"{extended.manifest.extra['base']['sha256']}; name the folder of the tokenizer that was extended"
        )
    own = Bpe.read(extended.file)
    old = Bpe.read(file)
    marks = extended.settings.pattern == "marks"
    if marks:
        old = Bpe(file, with_marks(old.value, file.path))
    found = Findings()
    found.faults += [
        *_companions(base, extended),
        *_vocabulary(old, own, extended),
        *_pieces(old, own, extended),
        *_libraries(base, old, own, out),
        *_control(own),
    ]
    every = dict(texts)
    new = [row["bytes"].decode(errors="ignore") for row in extended.rows]
    every["(new tokens)"] = ["".join(few) for few in batched(new, 24)] + [
        " ".join(few) for few in batched(new, 24)
    ]
    _texts(old if not marks else None, old, own, extended, every, out, found)
    if missing := sorted(language for language, own_texts in texts.items() if not own_texts):
        found.unread.append(f"no held-out text in {len(missing)} languages: {', '.join(missing[:8])}")
    if marks:
        found.unread.append(
            "pattern: marks changes the ids of old text with combining marks, so they were not compared"
        )
    if corpus is None:
        found.unread.append("the extension was not made once more")
    else:
        found.faults += _repeated(file, extended, corpus, workers)
    return found


def _companions(base: Path, extended: Extended) -> Iterator[str]:
    """Faults of the files beside tokenizer.json, which tell a library how to use it and a reader what grew."""
    for name in KEPT:
        one, other = (folder / name for folder in (base, extended.folder))
        if other.is_file() != one.is_file() or (one.is_file() and other.read_bytes() != one.read_bytes()):
            yield f"{name} is not the base's"
    extra, settings = extended.manifest.extra, extended.settings
    made_of = Growth(
        extra["base"]["sha256"],
        extended.first,
        len(extended.rows),
        settings.pattern,
        settings.selection,
        list(extra["languages"]),
    )
    if growth_of(extended.folder) != made_of:
        yield f"{GROWTH_NAME} does not say what the manifest and {EXTENSION} say of the extension"
    if extra["vocab_size"] != extended.first + len(extended.rows):
        yield f"the manifest says vocab_size {extra['vocab_size']}, but with {len(extended.rows)} new tokens it is another"


def _vocabulary(old: Bpe, own: Bpe, extended: Extended) -> Iterator[str]:
    """Faults of the file itself."""
    first = extended.first
    if first != old.size:
        yield f"the first new id is {first}, but the base has {old.size} ids"
    for token, id_ in sorted(old.file.ids.items(), key=lambda item: item[1]):
        if own.file.ids.get(token) != id_:
            yield f"the base's token {token!r} has the id {id_}, now {own.file.ids.get(token)}"
            break
    rows = {row["token"]: row["id"] for row in extended.rows}
    more = {token: id_ for token, id_ in own.file.ids.items() if token not in old.file.ids}
    if more != rows or [row["id"] for row in extended.rows] != list(range(first, first + len(rows))):
        yield f"tokenizer.json has {len(more)} new tokens, which are not the {len(rows)} of extension.parquet in their order"
    for key in (
        "added_tokens",
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "decoder",
        "truncation",
        "padding",
    ):
        if old.value.get(key) != own.value.get(key):
            yield f"tokenizer.json: {key} is not the base's"
    one, other = (
        {k: v for k, v in each.value["model"].items() if k not in ("vocab", "merges")} for each in (old, own)
    )
    if one != other:
        yield f"tokenizer.json: model has {other}, the base {one}"
    vocab = own.value["model"]["vocab"]
    for token in own.value.get("added_tokens") or []:
        if vocab.get(token["content"]) != token["id"]:
            yield (
                f"the added token {token['content']!r} stands outside model.vocab, so whoever loads the file numbers it anew"
            )
            break
    merges, before = own.value["model"]["merges"], old.value["model"]["merges"]
    if merges[: len(before)] != before:
        yield "the base's merges don't come first and unchanged, so old text gets other ids"
    names = {id_: token for token, id_ in own.file.ids.items()}
    pairs = [
        (names.get(row["left"]), names.get(row["right"])) for row in extended.rows if row["left"] is not None
    ]
    if [
        tuple(each.split(" ")) if isinstance(each, str) else tuple(each) for each in merges[len(before) :]
    ] != pairs:
        yield "the new merges are not those of extension.parquet in their order"


def _pieces(old: Bpe, own: Bpe, extended: Extended) -> Iterator[str]:
    """Faults of the table of pieces, which the model's surgery relies on."""
    tokens = [row["token"] for row in extended.rows]
    expected = old.encode_words(tokens)
    for row, pieces in zip(extended.rows, expected, strict=True):
        if row["pieces"] != pieces or row["bytes"] != own.bytes_of(row["token"]):
            yield f"extension.parquet: token {row['id']} ({row['token']!r}) has the pieces {row['pieces']}, the base spells it {pieces}"
            break
    unreached = [
        row for row, ids in zip(extended.rows, own.encode_words(tokens), strict=True) if ids != [row["id"]]
    ]
    if unreached:
        yield f"{len(unreached)} new tokens are never made of their own bytes, the first is {unreached[0]['token']!r}"


def _libraries(base: Path, old: Bpe, own: Bpe, out: Path) -> Iterator[str]:
    """Ids under which `transformers` and `tokenizers` know the tokens, as loaded, and saved and loaded again."""
    from tokenizers import Tokenizer

    for who, tokenizer in (("tokenizers", Tokenizer.from_file(str(own.file.path))),):
        yield from _ids(who, tokenizer.get_vocab(with_added_tokens=True), own)
    if importlib.util.find_spec("transformers") is None:
        return
    before, after = _loaded(base), _loaded(out)
    with tempfile.TemporaryDirectory() as folder:
        after.save_pretrained(folder)
        again = _loaded(Path(folder))
    for who, tokenizer in (("transformers", after), ("transformers, saved and loaded,", again)):
        yield from _ids(who, tokenizer.get_vocab(), own)
        for name in ("bos", "eos", "pad", "unk"):
            one, other = (getattr(each, f"{name}_token_id") for each in (before, tokenizer))
            if one != other:
                yield f"{who}: the {name} token has the id {other}, in the base {one}"


def _ids(who: str, found: Mapping[str, int], own: Bpe) -> Iterator[str]:
    for token, id_ in sorted(own.file.ids.items(), key=lambda item: item[1]):
        if found.get(token) != id_:
            yield f"{who} gives {token!r} the id {found.get(token)}, the file {id_}"
            return


def _loaded(folder: Path) -> Any:
    """The tokenizer as `transformers` loads a folder."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = folder / "tokenizer_config.json"
    if settings.is_file() and read_json(settings).get("tokenizer_class"):
        return AutoTokenizer.from_pretrained(folder, **tokenizer_options(folder))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def _control(own: Bpe) -> Iterator[str]:
    """Control tokens that text can spell, although they are told to stay text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(own.file.path))
    tokenizer.encode_special_tokens = True
    control = set(own.file.control_ids.tolist())
    for token in own.value.get("added_tokens") or []:
        ids = tokenizer.encode(token["content"], add_special_tokens=False).ids
        if token.get("special") and control & set(ids):
            yield f"the text {token['content']!r} becomes the control token"
            return


def _texts(
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
        loaded = _loaded(out)
        others["transformers"] = lambda few: loaded(
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
            array = pa.array(few, pa.large_string())
            ids = after(array)
            counts["documents"] += len(few)
            counts["tokens"] += len(ids.ids)
            used.update(np.unique(ids.ids[ids.ids >= extended.first]).tolist())
            rows = [ids.ids[ids.offsets[n] : ids.offsets[n + 1]] for n in range(len(few))]
            base_ids = before(array)
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
                fast = encode_or_none(engine, array)
                if fast is None or not (
                    np.array_equal(fast.ids, ids.ids) and np.array_equal(fast.offsets, ids.offsets)
                ):
                    faults[f"{name} gives other ids than the reference"] = few[0]
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
    pieces = [np.array(row["pieces"], np.int64) for row in extended.rows]

    def expand(ids: np.ndarray) -> np.ndarray:
        if not (ids >= first).any():
            return ids
        return np.concatenate(
            [pieces[id_ - first] if id_ >= first else np.array([id_]) for id_ in ids.astype(np.int64)]
        )

    return expand


def _reference(bpe: Bpe) -> Callable[[pa.Array], Encoded]:
    """The reference's encoding under a pattern that may not be the file's."""
    from tokenizers import Tokenizer

    from emma.tools.pack.encoded import joined

    value = orjson.loads(bpe.file.plain)
    value["pre_tokenizer"] = bpe.value.get("pre_tokenizer")
    own = Tokenizer.from_str(orjson.dumps(value).decode())
    return lambda texts: joined(
        [
            np.array(each.ids, np.uint32)
            for each in own.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        ]
    )


def _repeated(file: TokenizerFile, extended: Extended, corpus: Path, workers: int) -> Iterator[str]:
    """Makes the extension once more: what it read beyond the training documents, or left out, shows in its counts."""
    table = table_of(learn_from(file, corpus, extended.settings, workers))
    for mine, theirs in zip(table.to_pylist(), extended.rows, strict=False):
        if mine != theirs:
            yield (
                f"made once more from the training documents of {corpus}, the token {mine['id']} is {mine['token']!r} with "
                f"the count {mine['count']}, here it is {theirs['token']!r} with {theirs['count']}: it was made of other "
                "text (validation text, another corpus), with other settings or by another version"
            )
            return
    if len(table) != len(extended.rows):
        yield f"made once more from the training documents of {corpus}, it has {len(table)} tokens, here {len(extended.rows)}"
