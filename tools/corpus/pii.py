"""Masks what identifies people: e-mail and IP addresses, account and card numbers, telephone numbers."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from emma.base.extras import need
from emma.recipes.corpus_tables import table

__all__ = ["MASKS", "Masker"]

MASKS = {
    "email": "email@example.com",
    "ip": "192.0.2.1",
    "iban": "XX00 0000 0000 0000 0000 00",
    "card": "0000 0000 0000 0000",
    "phone": "+1 555 0100",
}
"""What takes the place of each kind: reserved for documentation (RFC 2606, RFC 5737), or not valid."""

_IPV6_MASK = "2001:db8::1"  # RFC 3849

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+%-]+@(?:[\w-]+\.)+[^\W\d_]{2,}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})\d{2}(?=[ -]?[A-Z0-9])")
_CARD = re.compile(r"(?<![\w.+/-])\d(?:[ -]?\d){12,18}(?![\w/-]|\.\d)")
_DIGITS = re.compile(r"\d(?:[ ().\-/\xa0]{0,2}\d){6}")
"""A telephone number has at least seven digits."""


class Masker:
    """Masks text in one language.

    Attributes:
        counts: what was masked, by kind.

    Args:
        kinds: keys of `MASKS`.
        language: `xxx_Ssss`; its countries' national telephone numbers are looked for. "" for none.

    Raises:
        UserError: telephone numbers are asked for, but the package for them is not installed.
    """

    def __init__(self, kinds: Sequence[str], language: str) -> None:
        self.kinds = frozenset(kinds)
        self.counts: Counter[str] = Counter()
        regions = table("rules/pii")["regions"].get(language.partition("_")[0], ())
        self._phones = _phone_finder(tuple(regions)) if "phone" in self.kinds else None

    def __call__(self, text: str) -> str:
        """The text with placeholders; the same object if there is nothing to mask."""
        if "email" in self.kinds and "@" in text:
            text = self._replace("email", _EMAIL, text)
        if "iban" in self.kinds:
            text = self._ibans(text)
        if "card" in self.kinds:
            text = self._replace("card", _CARD, text, _is_card)
        if "ip" in self.kinds:
            if "." in text:
                text = self._replace("ip", _IPV4, text, _is_address)
            if ":" in text:
                text = self._replace("ip", _IPV6, text, _is_address, _IPV6_MASK)
        if self._phones is not None and _DIGITS.search(text):
            text = "\n".join(self._telephones(line) for line in text.split("\n"))
        return text

    def _replace(
        self,
        kind: str,
        pattern: re.Pattern[str],
        text: str,
        check: Callable[[str], bool] | None = None,
        mask: str | None = None,
    ) -> str:
        mask = mask or MASKS[kind]

        def placeholder(found: re.Match[str]) -> str:
            if found[0] == mask or (check is not None and not check(found[0])):
                return found[0]
            self.counts[kind] += 1
            return mask

        return pattern.sub(placeholder, text)

    def _ibans(self, text: str) -> str:
        pieces, done = [], 0
        for found in _IBAN.finditer(text):
            length = table("rules/pii")["iban_lengths"].get(found[1])
            if length is None or found.start() < done:
                continue
            end = _iban_end(text, found.start(), length)
            if end:
                pieces += [text[done : found.start()], MASKS["iban"]]
                done = end
                self.counts["iban"] += 1
        return "".join((*pieces, text[done:])) if pieces else text

    def _telephones(self, line: str) -> str:
        if self._phones is None or not _DIGITS.search(line):
            return line
        pieces, done = [], 0
        for start, end in self._phones(line):
            if line[start:end] in MASKS.values():
                continue
            pieces += [line[done:start], MASKS["phone"]]
            done = end
            self.counts["phone"] += 1
        return "".join((*pieces, line[done:])) if pieces else line


def _iban_end(text: str, start: int, length: int) -> int:
    """Where an IBAN of `length` characters ends; 0 if there is none (ISO 13616: modulo 97 it is 1)."""
    characters: list[str] = []
    position = start
    while position < len(text) and len(characters) < length:
        character = text[position]
        if character.isascii() and (character.isdigit() or character.isupper()):
            characters.append(character)
        elif character not in " -" or text[position - 1] in " -":
            return 0
        position += 1
    if len(characters) < length or text[position : position + 1].isalnum():
        return 0
    number = "".join(str(int(character, 36)) for character in characters[4:] + characters[:4])
    return position if int(number) % 97 == 1 else 0


@functools.cache
def _card_patterns() -> list[tuple[re.Pattern[str], frozenset[int]]]:
    lengths: dict[str, list[int]] = table("rules/pii")["card_lengths"]
    return [(re.compile(prefix), frozenset(allowed)) for prefix, allowed in lengths.items()]


def _is_card(found: str) -> bool:
    """Whether digits are an issuer's, and their check digit is right (Luhn; ISO/IEC 7812)."""
    digits = [int(character) for character in found if character.isdigit()]
    number = "".join(map(str, digits))
    if not any(prefix.match(number) and len(number) in allowed for prefix, allowed in _card_patterns()):
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_address(found: str) -> bool:
    """Whether it is an address of some machine, and not of this one (127.0.0.1, ::1) or none.

    Of an IPv6 address three groups must be written: `a::b` is a name in a program.
    """
    if ":" in found and sum(map(bool, found.split(":"))) < 3:
        return False
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


@functools.cache
def _phone_finder(regions: tuple[str, ...]) -> Callable[[str], list[tuple[int, int]]]:
    """A function that finds telephone numbers in a line: start and end of each.

    Numbers with a country code must be valid; national ones also grouped as people of the country group them.
    """
    need("corpus", "normalisation.mask_pii: phone", "phonenumbers")
    from phonenumbers import Leniency, PhoneNumberMatcher

    searches: list[tuple[str | None, Any]] = [(None, Leniency.VALID)]
    searches += [(region, Leniency.STRICT_GROUPING) for region in regions]

    def find(line: str) -> list[tuple[int, int]]:
        spans: list[tuple[int, int]] = []
        for region, leniency in searches:
            for match in PhoneNumberMatcher(line, region, leniency):
                if all(match.end <= start or match.start >= end for start, end in spans):
                    spans.append((match.start, match.end))
        return sorted(spans)

    return find
