"""Documents compared piece by piece: the rule holds for every style of tokenizer that has one, and no wrong id passes."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from emma.recipes.schema.model import Tokenizer
from emma.tools.pack import pieces
from emma.tools.pack.encoded import Encoded, joined
from emma.tools.pack.engine import REFERENCE, load_engine
from emma.tools.pack.pieces import Pieces
from emma.tools.pack.probes import probes
from emma.tools.pack.split_rule import split_rule
from emma.tools.pack.tokenizer_file import TokenizerFile
from tests.tiny_text import SENTENCES
from tests.tokenizer_styles import STYLES, write_style

RULES = {
    "qwen": "spaces and lines",
    "llama3": "spaces and lines",
    "mistral": "spaces and lines",
    "olmo": "spaces",
}
# Whatever might make white space, letters, digits and signs depend on each other.
PARTS = [
    *(" ", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n "),
    *"\u00a0\u3000\u2028\u2029\u0085\x0b\x0c\x1c\x1f\u1680\u180e\u2000\u202f\u205f\u200b\ufeff",
    *("a", "Ab", "é", "1", "12345", "'s", "'", "'LL", ".", "..", "/", "//", "—", "(", "世界", "の", "\u0301", "ა", "ក", "አ", "က"),
    *("ไทย", "😀", "x", "the", "Ω", "ﬁ", "₂", "\u200d", "\x00", "|", "¿", "à", "𝒳", "한"),
]  # fmt: skip


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenizerFile]:
    found = {}
    for name, style in STYLES.items():
        folder = write_style(tmp_path_factory.mktemp(name), name)
        found[name] = TokenizerFile(
            Tokenizer(path=str(folder), begin_of_text=style.begin, end_of_text=style.end), 2000
        )
    return found


def parsed(tokenizer: TokenizerFile) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(tokenizer.path.read_text())
    return value


def encoded(tokenizer: TokenizerFile, texts: list[str]) -> tuple[pa.Array, Encoded]:
    array = pa.array(texts, pa.large_string())
    return array, load_engine(REFERENCE, tokenizer).encode(array)


def texts_of(tokenizer: TokenizerFile) -> list[str]:
    generator = random.Random(5)
    texts = ["".join(generator.choices(PARTS, k=generator.randint(1, 24))) for _ in range(3000)]
    texts += [sentence for sentences in SENTENCES.values() for sentence in sentences]
    everything = list(probes(sorted(tokenizer.ids), tokenizer.added))
    return texts + everything[::97] + everything[-800:]


@pytest.mark.parametrize("name", STYLES)
def test_byte_level_tokenizers_have_a_rule(styles: dict[str, TokenizerFile], name: str) -> None:
    assert styles[name].split_rule == RULES.get(name)


@pytest.mark.parametrize("name", RULES)
def test_the_reference_cuts_text_as_the_rule_says(styles: dict[str, TokenizerFile], name: str) -> None:
    tokenizer = styles[name]
    own = Pieces(tokenizer, load_engine(REFERENCE, tokenizer))
    texts = [text for text in texts_of(tokenizer) if text]
    array, found = encoded(tokenizer, texts)
    unsure = own.unsure(array, found)
    eligible = np.array(
        [
            unicodedata.normalize("NFC", text) == text
            and not any(token in text for token in tokenizer.ordinary)
            for text in texts
        ]
    )
    # Where runs of spaces are added tokens, a piece that ends with a space makes one with what is put after it.
    assert np.mean(unsure[eligible]) <= (0.3 if name == "olmo" else 0), [
        texts[row] for row in np.flatnonzero(unsure & eligible)[:3]
    ]
    assert np.mean(eligible) > 0.5
    cuts = own._cuts(*pieces._content(array))
    assert len(cuts) > 2 * len(texts), "texts fall into several pieces"


@pytest.mark.parametrize("name", RULES)
def test_no_wrong_id_passes(styles: dict[str, TokenizerFile], name: str) -> None:
    tokenizer = styles[name]
    own = Pieces(tokenizer, load_engine(REFERENCE, tokenizer))
    texts = [s for sentences in SENTENCES.values() for s in sentences if s == unicodedata.normalize("NFC", s)]
    texts = [text for text in texts if not any(token in text for token in tokenizer.ordinary)]
    array, found = encoded(tokenizer, texts)
    assert not own.unsure(array, found).any()
    ids = [found.ids[found.offsets[row] : found.offsets[row + 1]] for row in range(len(texts))]
    letters = {id_: token for token, id_ in tokenizer.ids.items() if token not in tokenizer.added}
    generator = random.Random(1)
    planted = {"other": 0, "lost": 0, "split": 0, "swapped": 0, "beyond": 0, "appended": 0}
    for row, right in enumerate(ids):
        at = generator.randrange(len(right))
        token = letters[int(right[at])]
        changes: dict[str, list[int]] = {
            "other": [*right[:at], (int(right[at]) + 1) % len(letters), *right[at + 1 :]],
            "lost": [*right[:at], *right[at + 1 :]],
            "beyond": [*right[:at], 4_000_000_000, *right[at + 1 :]],
            "appended": [*right, int(right[-1])],
        }
        if len(token) > 1:  # the same text in other tokens
            changes["split"] = [*right[:at], *(tokenizer.ids[each] for each in token), *right[at + 1 :]]
        if at and right[at] != right[at - 1]:
            changes["swapped"] = [*right[: at - 1], right[at], right[at - 1], *right[at + 1 :]]
        for kind, changed in changes.items():
            batch = [ids[row - 1], np.array(changed, np.uint32)]
            few = pa.array([texts[row - 1], texts[row]], pa.large_string())
            assert own.unsure(few, joined(batch)).tolist() == [False, True], (kind, texts[row])
            planted[kind] += 1
    assert min(planted.values()) > 20


def test_long_documents_are_looked_at_in_parts(
    styles: dict[str, TokenizerFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = styles["llama3"]
    own = Pieces(tokenizer, load_engine(REFERENCE, tokenizer))
    monkeypatch.setattr(pieces, "_WINDOW_BYTES", 97)
    long = " ".join(sentence for sentences in SENTENCES.values() for sentence in sentences)
    array, found = encoded(tokenizer, ["before", long, "after", "x" * 500])
    assert own.unsure(array, found).tolist() == [False, False, False, True], "no cut in 500 bytes"
    for at in np.linspace(found.offsets[1], found.offsets[2] - 1, 40).astype(int).tolist():
        wrong = found.ids.copy()
        wrong[at] = 5 if wrong[at] != 5 else 6
        assert own.unsure(array, Encoded(wrong, found.offsets))[1]
    short = Encoded(np.delete(found.ids, found.offsets[2] - 1), found.offsets - [0, 0, 1, 1, 1])
    assert own.unsure(array, short)[1], "its end is missing"


def test_every_32nd_document_is_compared_whole(styles: dict[str, TokenizerFile]) -> None:
    own = Pieces(styles["qwen"], load_engine(REFERENCE, styles["qwen"]))
    lengths = np.full(144, 20)
    lengths[64] = 10**9
    turns = np.concatenate([own.turns(few) for few in np.split(lengths, [1, 1, 41, 44])])
    assert np.flatnonzero(turns).tolist() == [0, 32, 96, 128], "not the one of a thousand million tokens"


def test_what_was_asked_is_shared(styles: dict[str, TokenizerFile], tmp_path: Path) -> None:
    tokenizer = styles["qwen"]
    array, found = encoded(tokenizer, ["one word and another one", "another word"])

    class Silent:
        def encode(self, texts: pa.Array) -> Encoded:
            raise AssertionError(texts)

    first = Pieces(tokenizer, load_engine(REFERENCE, tokenizer))
    assert not first.unsure(array, found).any()
    first.save(tmp_path, 3)
    other = Pieces(tokenizer, Silent())
    with pytest.raises(AssertionError):
        other.unsure(array, found)
    other.load(tmp_path)
    assert not other.unsure(array, found).any()
    wrong = Encoded(found.ids[::-1].copy(), found.offsets)
    assert other.unsure(array, wrong).all()


def changed(value: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {**value, "model": {**value["model"], **model}}


def with_pattern(value: dict[str, Any], pattern: str) -> dict[str, Any]:
    steps = [dict(step) for step in value["pre_tokenizer"]["pretokenizers"]]
    steps[0]["pattern"] = {"Regex": pattern}
    return {**value, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def test_a_tokenizer_that_may_look_across_has_no_rule(styles: dict[str, TokenizerFile]) -> None:
    value = parsed(styles["llama3"])
    pattern = value["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    assert split_rule(value) == "spaces and lines"
    assert split_rule(with_pattern(value, pattern)) == "spaces and lines"
    without = pattern.replace(r"|\s*[\r\n]+", "")
    assert split_rule(with_pattern(value, without)) == "spaces"
    for other in (
        pattern + r"|\w+ \w+",
        pattern.replace(r"|\s+(?!\S)", ""),
        pattern.replace(r"\s+(?!\S)|\s+", r"\s+|\s+(?!\S)"),
        pattern.replace(r"\p{N}{1,3}", r"(?<=a)\p{N}{1,3}"),
        pattern.replace(r"\p{L}+", r"[\p{L} ]+"),
        "",
    ):
        assert split_rule(with_pattern(value, other)) is None, other
    assert split_rule(changed(value, dropout=0.1)) is None
    assert split_rule(changed(value, continuing_subword_prefix="##")) is None
    assert split_rule(changed(value, end_of_word_suffix="</w>")) is None
    assert split_rule({**value, "normalizer": {"type": "NFKC"}}) is None
    assert split_rule({**value, "normalizer": {"type": "NFC"}}) == "spaces and lines"
    assert split_rule({**value, "pre_tokenizer": None}) is None
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert split_rule({**value, "pre_tokenizer": plain}) == "spaces"
    assert split_rule({**value, "pre_tokenizer": {**plain, "add_prefix_space": True}}) is None


def test_right_pieces_of_another_text_do_not_pass(styles: dict[str, TokenizerFile]) -> None:
    tokenizer = styles["llama3"]
    own = Pieces(tokenizer, load_engine(REFERENCE, tokenizer))
    array, found = encoded(tokenizer, ["one cat sat", "one dog sat", "x" * 900])
    assert not own.unsure(array, found).any()
    assert own.unsure(array.take(pa.array([1, 0, 2])), found).tolist() == [True, True, False]
    assert found.lengths[2] > pieces._LONGEST
    wrong = found.ids.copy()
    wrong[-1] += 1
    assert own.unsure(array, Encoded(wrong, found.offsets)).tolist() == [False, False, True]
