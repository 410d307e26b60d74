"""What an extended tokenizer promises, checked: old ids keep their meaning, and new tokens are old ones joined."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import batched
from pathlib import Path

from emma.base.errors import UserError
from emma.recipes.vocabulary import GROWTH_NAME, Growth, growth_of
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.agreement import Findings, compare_texts, loaded
from emma.tools.tokenizer.bpe import Bpe, open_tokenizer, with_marks
from emma.tools.tokenizer.extend import EXTENSION, KEPT, Extended, learn_from, read_extension, table_of
from emma.tools.tokenizer.words import by_language, documents

__all__ = ["Findings", "held_out", "verify"]


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
    compare_texts(old if not marks else None, old, own, extended, every, out, found)
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
        [language for language in extra["languages"] if language not in extra.get("without_pairs", ())],
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
        if row["pieces"] != pieces:
            yield f"{EXTENSION}: token {row['id']} ({row['token']!r}) has the pieces {row['pieces']}, the base spells it {pieces}"
            break
    for row in extended.rows:
        if row["bytes"] != own.bytes_of(row["token"]):
            yield f"{EXTENSION}: token {row['id']} ({row['token']!r}) has the bytes {row['bytes']!r}, which are not its own"
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
    before, after = loaded(base), loaded(out)
    with tempfile.TemporaryDirectory() as folder:
        after.save_pretrained(folder)
        again = loaded(Path(folder))
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
