"""Texts on which a tokenizer's engines are compared before anything is packed: every vocabulary entry, every Unicode
code point in context, spellings of added tokens, long runs, random strings."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import batched

__all__ = ["PROBES", "probes"]

PROBES = 2
"""Version of the texts, and of how the reference is loaded; certificates of other versions are made anew."""

_TOKENS_A_TEXT = 24
_CODE_POINTS_A_TEXT = 48
_RANDOM_TEXTS = 4000
_RUNS = (*range(2, 34), 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 4097, 10_000)
_RUN_OF = (" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "a", "Z", "0", "-", "=", ".", "é", "е", "世", "ไ", "😀", "\u0301",
           "\u200d", "ab", "a ", " \n", "1,", "世 ")  # fmt: skip
_POOLS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789٣४๕",
    "   \t\n\r\u00a0\u2003\u3000\u2028\u0085",
    ".,;:!?'\"()[]{}<>|/\\-_=+*&^%$#@~`…—«»“”。、،؟",
    "àéîõüßøæłđıIİſǆŉ",
    "абвгдеёжзийклмнопрстуфхцчшщъыьэюяІЇЄ",
    "αβγδεζηθικλμνξοπρσςτυφχψω",
    "אבגדהוזחטיךכלםמןנסעףפץצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "अआइईउऊकखगघचछजझटठडढतथदधनपफबभमयरलवशषसह़ािीुूेैोौ्",
    "กขคงจฉชซญฎฏฐณดตถทธนบปผพฟภมยรลวศษสหอฮะัาำิีึืุูเแโใไ็่้๊๋์",
    "가나다라마바사아자차카타파하힣각",
    "世界人民大会堂你好日本語東京",
    "ひらがなカタカナー",
    "\u0300\u0301\u0308\u0323\u200b\u200c\u200d\ufe0f\ufeff\u202e",
    "😀👩\u200d👩\u200d👧🇫🇷🏽",
    "\x00\x01\x1b\x7f\ue000\uffff\U0010ffff",
)


def probes(entries: Sequence[str], added: Sequence[str], *, seed: int = 0) -> Iterator[str]:
    """All texts, in a fixed order.

    Args:
        entries: the vocabulary's tokens as text.
        added: contents of the added tokens, control tokens included.
        seed: of the random texts.
    """
    for few in batched(entries, _TOKENS_A_TEXT):
        yield "".join(few)
        yield " ".join(few)
    yield from entries[:: max(1, len(entries) // 20_000)]
    yield from _code_points()
    yield from _spellings(added)
    for piece in _RUN_OF:
        for length in _RUNS:
            yield piece * (length // len(piece) + 1)
            if length < 70:
                yield f"x{piece * length}y {piece * length}1"
    yield from _random_texts(added, seed)


def _code_points() -> Iterator[str]:
    """Every code point that UTF-8 can hold, between letters, after a space, and before a digit; those without a
    character, which texts hardly have, between letters alone."""
    ordinals = (ordinal for ordinal in range(0x110000) if not 0xD800 <= ordinal < 0xE000)
    for few in batched(ordinals, _CODE_POINTS_A_TEXT):
        parts = []
        for ordinal in few:
            letter = chr(ordinal)
            bare = unicodedata.category(letter) in ("Cn", "Co")
            parts.append(f"{letter}a" if bare else f"a{letter}b {letter}1 ")
        yield "".join(parts)


def _spellings(added: Iterable[str]) -> Iterator[str]:
    """Added tokens, control tokens among them, whole and in part, beside other text and each other."""
    for token in added:
        yield from (
            token,
            f"a{token}b",
            f"A sentence. {token} Another.",
            f"  {token}  \n{token}\n\n{token}\t{token}",
            token * 3,
            f"{token[:-1]} {token[1:]}{token[:-1]}",
            token.swapcase(),
            f"世{token}é{token}1",
        )


def _random_texts(added: Sequence[str], seed: int) -> Iterator[str]:
    generator = random.Random(seed)
    for _ in range(_RANDOM_TEXTS):
        pools = generator.sample(_POOLS, k=generator.randint(1, 5))
        parts = []
        for _ in range(generator.randint(1, 24)):
            if added and generator.random() < 0.06:
                parts.append(generator.choice(added))
            else:
                parts.append("".join(generator.choices(generator.choice(pools), k=generator.randint(1, 9))))
        yield "".join(parts)
