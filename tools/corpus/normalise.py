"""Text normalisation: Unicode form, broken encodings, control characters, leftover markup, whitespace."""

from __future__ import annotations

import html
import re
import unicodedata

from emma.recipes.schema.corpus import Kind, Normalisation

__all__ = ["Normaliser"]

# UTF-8 bytes decoded as Latin-1 or Windows-1252: the characters of a lead byte and of a continuation byte.
_CONTINUATION = "\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122"
_MOJIBAKE = re.compile(f"[\u00c2-\u00f4][{_CONTINUATION}]")

# Controls except tab and line feed; soft hyphen, zero-width space, word joiner, direction marks, byte-order
# mark, interlinear annotation, tags, lone surrogates and noncharacters.
_CONTROLS = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0001-\U000e007f"
)
_CONTROL = re.compile(f"[{_CONTROLS}]")
_JOINER = re.compile("[\u200c\u200d]")
# Some control characters mean something in code, so only those that no source file needs are removed.
_CONTROL_IN_CODE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff\ud800-\udfff\ufffe\uffff]")

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SPACES = re.compile("[ \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_AROUND_LINES = re.compile(" ?\n ?")
_BLANK_LINES = re.compile("\n{3,}")

_ENTITY = re.compile("&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_TAG = re.compile(
    r"</?(?:a|abbr|acronym|article|aside|b|bdo|big|blockquote|body|br|caption|center|cite|code|col|colgroup|dd|del|dfn|"
    r"div|dl|dt|em|fieldset|figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|"
    r"label|legend|li|link|main|mark|meta|nav|nobr|noscript|object|ol|option|p|param|pre|q|s|samp|section|select|small|"
    r"span|strike|strong|sub|sup|table|tbody|td|textarea|tfoot|th|thead|title|tr|tt|u|ul|var|video)"
    r"(?:\s+[a-zA-Z:_-]+(?:\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))?)*\s*/?>",
    re.IGNORECASE,
)
_WITH_CONTENT = re.compile(r"<(script|style)\b[^>]*>.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_BREAKING = re.compile(
    r"^</?(?:p|div|br|li|tr|h[1-6]|table|ul|ol|dl|dt|dd|blockquote|section|article|pre|hr)\b", re.IGNORECASE
)

_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
_IPV4 = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}(?![\w:])")
_TELEPHONE = re.compile(r"(?<![\w+])(?:\+\d{1,3}[ .-]?)(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}(?!\w)")


class Normaliser:
    """Normalises texts of one kind.

    Code keeps its whitespace, entities and tags: they are part of the program.
    """

    def __init__(self, settings: Normalisation, kind: Kind) -> None:
        self.settings = settings
        self.code = kind == "code"

    def __call__(self, text: str) -> str:
        """The normalised text; the same object if there is nothing to do."""
        settings = self.settings
        if not self.code and settings.mend_encoding and may_be_mojibake(text):
            text = mend_encoding(text)
        if self.code:
            text = text.replace("\r\n", "\n")
            text = _CONTROL_IN_CODE.sub("", text) if settings.controls else text
        else:
            text = self._prose(text)
        if not unicodedata.is_normalized(settings.unicode, text):
            text = unicodedata.normalize(settings.unicode, text)
            if settings.white_space and not self.code:
                text = tidy_white_space(text)  # NFKC turns some characters into spaces
        # (What the recipe lists is masked once the language is known: see tools/corpus/pii.py.)
        return mask_pii(text) if settings.mask_pii is True else text

    def _prose(self, text: str) -> str:
        settings = self.settings
        if settings.markup and ("<" in text or "&" in text):
            text = remove_markup(text)
        # `isprintable` is many times faster than searching for rare characters, and false for each of them.
        if not (text.replace("\n", "") if "\n" in text else text).isprintable():
            text = _LINE_ENDS.sub("\n", text)
            if settings.controls:
                text = _CONTROL.sub("", text)
                if _JOINER.search(text):
                    text = keep_needed_joiners(text)
            if settings.white_space:
                text = _SPACES.sub(" ", text)
        return tidy_white_space(text) if settings.white_space else text


def may_be_mojibake(text: str) -> bool:
    """Quick test: could some character be a UTF-8 lead byte and the next one a continuation byte?"""
    if text.isascii() or b"\xc3" not in text.encode("utf-8", "surrogatepass"):
        return False
    return _MOJIBAKE.search(text) is not None


def mend_encoding(text: str) -> str:
    """Repairs UTF-8 that was decoded as Latin-1 or Windows-1252, if the result is plausible text.

    Repairs the text as a whole or, if that changes nothing, line by line.
    """
    import ftfy

    repaired = ftfy.fix_encoding(text)
    if repaired != text or "\n" not in text:
        return repaired
    # There may be one broken quotation in a sound document, so judge each line by itself.
    return "\n".join(ftfy.fix_encoding(line) if _MOJIBAKE.search(line) else line for line in text.split("\n"))


def remove_markup(text: str) -> str:
    """Decodes HTML entities and removes comments, scripts and known tags; `a < b` and `<unknown>` stay."""
    # Entities first: markup that a page escaped is still markup.
    if "&" in text:
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    if "<" in text:
        text = _WITH_CONTENT.sub(" ", text)
        text = _TAG.sub(lambda tag: "\n" if _BREAKING.match(tag[0]) else "", text)
    return text


def keep_needed_joiners(text: str) -> str:
    """Removes zero-width (non-)joiners except where a script or an emoji sequence needs them."""

    def keep(found: re.Match[str]) -> str:
        before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
        if before and after and _joins(before) and _joins(after):
            return found[0]
        # At the end of a word, a joiner in Indic scripts selects a form of the last letter.
        return found[0] if before and _joins(before) and unicodedata.combining(before) == 9 else ""

    return _JOINER.sub(keep, text)


# Arabic (with N'Ko) to Sinhala, Tibetan, Myanmar, Khmer, Mongolian and their extensions, Adlam, and emoji.
_JOINING_RANGES = (
    (0x0600, 0x08FF),
    (0x0900, 0x0DFF),
    (0x0F00, 0x109F),
    (0x1780, 0x18AF),
    (0x1A20, 0x1BFF),
    (0xA8E0, 0xA9DF),
    (0xAA60, 0xABFF),
    (0xFB50, 0xFEFF),
    (0x10A00, 0x10FFF),
    (0x11000, 0x11FFF),
    (0x1E900, 0x1E95F),
    (0x2190, 0x2BFF),  # symbols used in emoji sequences
    (0x1F000, 0x1FAFF),
)


def _joins(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in _JOINING_RANGES)


def tidy_white_space(text: str) -> str:
    """Leaves one space between words, none around line ends or at either end, and at most one blank line.

    Expects other whitespace to have been turned into spaces already.
    """
    if "  " in text:
        text = _SPACES.sub(" ", text)
    if " \n" in text or "\n " in text:
        text = _AROUND_LINES.sub("\n", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


def mask_pii(text: str) -> str:
    """Replaces e-mail addresses, IP addresses and international telephone numbers with fixed placeholders."""
    if "@" in text:
        text = _EMAIL.sub("email@example.com", text)
    if "." in text:
        text = _IPV4.sub("192.0.2.1", text)
    if ":" in text:
        text = _IPV6.sub("2001:db8:0:0:0:0:0:1", text)
    if "+" in text:
        text = _TELEPHONE.sub("+1 555 0100", text)
    return text
