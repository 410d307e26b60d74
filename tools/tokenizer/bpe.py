"""A BPE tokenizer as the extension sees it: what it splits text into, how it spells bytes, what it may merge."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import batched, pairwise
from pathlib import Path
from typing import Any, Literal

import orjson

from emma.base.errors import UserError
from emma.base.files import read_json
from emma.recipes.schema.model import Tokenizer as Settings
from emma.tools.pack.tokenizer_file import TokenizerFile

__all__ = ["SPACE", "Bpe", "byte_characters", "open_tokenizer", "splitting_steps", "with_marks"]

SPACE = "▁"
"""What SentencePiece writes for a space."""

_JOINERS = "\u200c\u200d"
_BATCH = 50_000
_TOGETHER = 1000
_Split = Callable[[str], list[tuple[str, tuple[int, int]]]]
# Places where every published byte-level pattern begins a pre-token: the first character of a line, and punctuation after
# a letter. (So it is at a single space.) Where a pattern does not, the counts of the words around it are off, and with
# them at most the choice of tokens.
_FINE = re.compile(r"(?<=\n)(?=\S)|(?<=[^\W\d_])(?=[.,;:!?)\"])")
_BEFORE_SPACE = re.compile(f"(?<=[^{SPACE}])(?={SPACE})")


def byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    found = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in found:
            found[byte] = chr(256 + len(found) - len(printable))
    return [found[byte] for byte in range(256)]


_BYTES = {character: byte for byte, character in enumerate(byte_characters())}


def splitting_steps(tokenizer: str) -> tuple[Any, Any]:
    """The library's normalizer and pre-tokenizer of a tokenizer.json, each None where there is none."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(tokenizer)
    return own.normalizer, own.pre_tokenizer


def open_tokenizer(path: Path, vocab_size: int | None = None) -> TokenizerFile:
    """A folder's tokenizer (or a tokenizer.json) without a recipe: its own end of text closes documents.

    Args:
        path: the folder or file.
        vocab_size: rows of the model's embedding; by default as many as the tokenizer has ids.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    folder = path.parent if path.suffix == ".json" else path
    settings_file = folder / "tokenizer_config.json"
    named = read_json(settings_file).get("eos_token") if settings_file.is_file() else None
    end = named.get("content") if isinstance(named, dict) else named
    file = TokenizerFile(Settings(path=str(path), end_of_text=end or ""), vocab_size or 1)
    size = max(file.ids.values()) + 1 if vocab_size is None else vocab_size
    return TokenizerFile(file.settings, size)


@dataclass(frozen=True)
class Bpe:
    """A BPE tokenizer that can be extended.

    Args:
        file: the tokenizer.
        value: its tokenizer.json, parsed, untouched.

    Raises:
        UserError: it is of a kind that cannot be extended.
    """

    file: TokenizerFile
    value: dict[str, Any]

    @classmethod
    def read(cls, file: TokenizerFile) -> Bpe:
        """Reads and checks a tokenizer."""
        assert file.sha256  # the file exists and is the recipe's
        found = cls(file, orjson.loads(file.path.read_bytes()))
        found._check()
        return found

    def _check(self) -> None:
        model = self.value["model"]
        kind = model.get("type", "BPE" if "merges" in model else "?")
        if kind != "BPE" or "merges" not in model:
            raise UserError(
                f"{self.file.path}: its model is {kind}, and only BPE can be extended by merges. Fix: keep this tokenizer, "
                "or start from a base with a BPE tokenizer"
            )
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            if model.get(key):
                raise UserError(
                    f"{self.file.path}: model.{key} is {model[key]!r}, which the extension does not know; keep this tokenizer"
                )
        if self.byte_fallback:
            if missing := [name for name in _FALLBACK if name not in model["vocab"]]:
                raise UserError(
                    f"{self.file.path}: byte_fallback without the token {missing[0]}; correct the file"
                )
        elif missing := sorted(set(byte_characters()) - model["vocab"].keys()):
            raise UserError(
                f"{self.file.path}: neither byte-level (no token for the byte {_BYTES[missing[0]]}) nor with byte fallback, "
                "so new tokens could not be taken apart into old ones; keep this tokenizer"
            )

    @property
    def byte_fallback(self) -> bool:
        """SentencePiece's kind (characters, and `<0xXX>` for those that it lacks) instead of the byte-level one."""
        return bool(self.value["model"].get("byte_fallback"))

    @property
    def ignore_merges(self) -> bool:
        """Whether a pre-token that is a token is taken whole."""
        return bool(self.value["model"].get("ignore_merges"))

    @property
    def size(self) -> int:
        """The largest id, plus one: the first new id."""
        return max(self.file.ids.values()) + 1

    @cached_property
    def names(self) -> list[str]:
        """Tokens by id; "" where there is none."""
        names = [""] * self.size
        for token, id_ in self.file.ids.items():
            names[id_] = token
        return names

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids of `<0xXX>`."""
        vocab = self.value["model"]["vocab"]
        return frozenset(vocab[name] for name in _FALLBACK) if self.byte_fallback else frozenset()

    def bytes_of(self, token: str) -> bytes:
        """The bytes that a token of the model (no added token) stands for."""
        if not self.byte_fallback:
            return bytes(_BYTES[character] for character in token)
        if token in _FALLBACK:
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE, " ").encode()

    # --- text to words ------------------------------------------------------------------------------------------

    @cached_property
    def _steps(self) -> tuple[Any, Any]:
        value = {**orjson.loads(self.file.plain), "pre_tokenizer": self.value.get("pre_tokenizer")}
        value |= {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
        return splitting_steps(orjson.dumps(value).decode())

    @cached_property
    def _chunked(self) -> bool:
        """Whether text may be cut at single spaces before it is split, so that each chunk is split once."""
        return not self.byte_fallback and '"add_prefix_space":true' not in json.dumps(
            self.value.get("pre_tokenizer"), separators=(",", ":")
        )

    def chunks(self, text: str) -> list[str]:
        """Parts of a text, normalised, whose words don't depend on the others."""
        normalizer, _ = self._steps
        if normalizer is not None and not (self._form and unicodedata.is_normalized(self._form, text)):
            text = normalizer.normalize_str(text)
        if self.byte_fallback:
            return _BEFORE_SPACE.split(text)
        if not self._chunked:
            return [text]
        first, *others = text.split(" ")
        return [first, *(f" {other}" for other in others)]

    def words(self, chunks: Mapping[str, int]) -> dict[str, int]:
        """What BPE sees of counted chunks, in the vocabulary's own spelling, counted: no token reaches from one word
        into the next."""
        if self._chunked:
            chunks = _counted((part, times) for chunk, times in chunks.items() for part in _FINE.split(chunk))
        _, pre_tokenizer = self._steps
        if pre_tokenizer is not None:
            split = pre_tokenizer.pre_tokenize_str
            if self._chunked:
                chunks = _counted(_split_in_bulk(split, chunks))
            else:
                chunks = _counted(
                    (part, times) for chunk, times in chunks.items() for part, _ in split(chunk)
                )
        if self.byte_fallback:
            chunks = _counted((word, times) for part, times in chunks.items() for word in self._cut(part))
        return {word: times for word, times in chunks.items() if word}

    @cached_property
    def _form(self) -> Literal["NFC", "NFD", "NFKC", "NFKD"] | None:
        """The form of Unicode that is all that the normalizer makes."""
        form = (self.value.get("normalizer") or {}).get("type")
        return form if form in ("NFC", "NFD", "NFKC", "NFKD") else None

    def _cut(self, text: str) -> Iterator[str]:
        first = 0
        for place, pair in enumerate(pairwise(text), start=1):
            if pair not in self._joined and not (
                (pair[0] == SPACE or is_letter(pair[0])) and is_letter(pair[1])
            ):
                yield text[first:place]
                first = place
        yield text[first:]

    @cached_property
    def _joined(self) -> frozenset[tuple[str, str]]:
        """Neighbours within some old token."""
        return frozenset(
            pair
            for token in self.value["model"]["vocab"]
            if token not in _FALLBACK
            for pair in pairwise(token)
        )

    def admits(self, token: str) -> bool:
        """Whether a token may be new: SentencePiece's are letters of one word, with its spaces in front."""
        return not self.byte_fallback or all(map(is_letter, token.lstrip(SPACE) or SPACE))

    # --- words to ids -------------------------------------------------------------------------------------------

    def encode_words(self, words: Sequence[str], more: Sequence[str] = ()) -> list[list[int]]:
        """Ids of words by the base's merges; `more` are new characters, with the ids from `size` on."""
        encoder = self._encoder(more) if more else self._own_encoder
        found: list[list[int]] = []
        for few in batched(words, _BATCH):
            found += [each.ids for each in encoder.encode_batch_fast(list(few), add_special_tokens=False)]
        return found

    @cached_property
    def _own_encoder(self) -> Any:
        return self._encoder(())

    def _encoder(self, more: Sequence[str]) -> Any:
        from tokenizers import Tokenizer

        value = orjson.loads(self.file.plain)
        value.update(normalizer=None, pre_tokenizer=None, decoder=None, added_tokens=[])
        value["model"]["vocab"] |= {token: self.size + place for place, token in enumerate(more)}
        return Tokenizer.from_str(orjson.dumps(value).decode())


def _split_in_bulk(split: _Split, chunks: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Pre-tokens of counted chunks. A call costs more than what it splits, so words with a space in front are split in one
    text, and words without in one text of lines; where that is not the same as each by itself, each is."""
    spaced: list[str] = []
    lines: list[str] = []
    for chunk, times in chunks.items():
        if len(chunk.split(None, 1)) == 1 and not chunk[-1].isspace():
            if chunk[0] == " " and len(chunk) > 1 and not chunk[1].isspace():
                spaced.append(chunk)
                continue
            if not chunk[0].isspace() and chunk[-1].isalpha():
                lines.append(chunk)
                continue
        yield from ((part, times) for part, _ in split(chunk))
    for own, between in ((spaced, ""), (lines, "\n")):
        for few in batched(own, _TOGETHER):
            for chunk, parts in zip(few, _split_joined(split, few, between), strict=True):
                times = chunks[chunk]
                yield from ((part, times) for part in parts)


def _split_joined(split: _Split, chunks: Sequence[str], between: str) -> Iterator[list[str]]:
    """Pre-tokens of each chunk, from one text of all of them."""
    parts = split(between.join(chunks))
    found: list[list[str]] = []
    place, start, size = 0, 0, len(parts)
    for chunk in chunks:
        stop, own = start + len(chunk), []
        while place < size and parts[place][1][1] <= stop:
            own.append(parts[place][0])
            place += 1
        # The chunk ends where a pre-token ends, and what is between the chunks is one.
        if not own or parts[place - 1][1][1] != stop:
            break
        found.append(own)
        start = stop + len(between)
        if between and place < size:
            if parts[place][1] != (stop, start):
                break
            place += 1
    if len(found) < len(chunks):
        found = [[part for part, _ in split(chunk)] for chunk in chunks]
    yield from found


def _counted(parts: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part, times in parts:
        found[part] = found.get(part, 0) + times
    return found


_FALLBACK = {f"<0x{byte:02X}>" for byte in range(256)}


def is_letter(character: str) -> bool:
    """Letters, combining marks, and the joiners that belong to words."""
    return unicodedata.category(character)[0] in "LM" or character in _JOINERS


def with_marks(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """A parsed tokenizer.json whose pattern counts combining marks as letters.

    Raises:
        UserError: it has no pattern with `\\p{L}`, or one that knows marks.
    """
    value = orjson.loads(orjson.dumps(value))
    steps = value.get("pre_tokenizer") or {}
    for step in steps.get("pretokenizers", [steps]):
        pattern = step.get("pattern", {}).get("Regex", "") if step.get("type") == "Split" else ""
        if r"\p{M}" in pattern:
            raise UserError(
                f"{path}: its pattern already has combining marks in words; leave out --pattern marks"
            )
        if r"\p{L}" in pattern:
            step["pattern"]["Regex"] = _add_marks(pattern)
            return value
    raise UserError(
        f"{path}: has no pattern of letters (\\p{{L}}) that marks could join; leave out --pattern marks"
    )


def _add_marks(pattern: str) -> str:
    """`\\p{L}` becomes `[\\p{L}\\p{M}]`, and within brackets `\\p{L}\\p{M}`."""
    result, inside, place = [], False, 0
    while place < len(pattern):
        if pattern.startswith(r"\p{L}", place):
            result.append(r"\p{L}\p{M}" if inside else r"[\p{L}\p{M}]")
            place += 5
            continue
        size = 2 if pattern[place] == "\\" else 1
        part = pattern[place : place + size]
        inside = part == "[" or (inside and part != "]")
        result.append(part)
        place += size
    return "".join(result)
