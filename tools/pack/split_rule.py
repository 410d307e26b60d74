"""Where a tokenizer provably cuts text, read from its tokenizer.json.

With the pre-tokenizers of GPT-2, Llama 3, Qwen, o200k, tekken and their like, text falls apart before each space that
another character than white space follows. So the ids of a text are those of its pieces, one after another, and the
pieces can be looked at by themselves (`pieces.py`).

Why: the pattern matches from left to right, none of its alternatives looks back, and each that takes a space after
another character is `\\s+(?!\\S)`, which leaves the last space of a run to what follows, `\\s*[\\r\\n]+`, which ends with
a newline, or `\\s+` after those two have failed. So a match ends before such a space. What comes before is cut as if the text
ended there: only `(?!\\S)` looks ahead, at that space, where it finds what it finds at the end of a text. With `\\s*[\\r\\n]+`,
a match also ends after the last newline of a run of white space; it may go on with a slash in `[\\r\\n/]*`, so a slash after it
is no cut. NFC neither joins nor reorders anything across these places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["SplitRule", "split_rule"]

SplitRule = Literal["spaces", "spaces and lines"]
"""Cuts before spaces, or also after newlines."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOOKAHEAD, _SPACES = r"\s+(?!\S)", r"\s+"
_LINES = (r"\s*[\r\n]+", r"\s*[\r\n]")
_KNOWN = {
    *_GPT2.split("|"),
    _SHORT,
    r"'(?i:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"\p{N}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    *_WORDS,
    *(f"{word}{_SHORT}?" for word in _WORDS),
    *_LINES,
}


def split_rule(value: Mapping[str, Any]) -> SplitRule | None:
    """The rule that holds for a parsed tokenizer.json; None if none is known to.

    It does not hold for texts in which an added token occurs: these are cut out before anything else.
    """
    model, normalizer = value["model"], value.get("normalizer")
    plain = model.get("type", "BPE") == "BPE" and "merges" in model
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if not plain or any(model.get(key) for key in odd):
        return None
    if normalizer is not None and normalizer != {"type": "NFC"}:
        return None
    steps = value.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1 and last.get("use_regex", True):
        return _rule_of(_GPT2)
    if len(steps) != 2 or last.get("use_regex", True):
        return None
    split = steps[0]
    if split.get("type") != "Split" or split.get("behavior") != "Isolated" or split.get("invert"):
        return None
    return _rule_of(split["pattern"].get("Regex", ""))


def _rule_of(pattern: str) -> SplitRule | None:
    alternatives = _alternatives(pattern)
    places = {alternative: place for place, alternative in enumerate(alternatives)}
    if not set(alternatives) <= _KNOWN or not places.get(_LOOKAHEAD, len(places)) < places.get(_SPACES, -1):
        return None
    lines = [places[each] for each in _LINES if each in places]
    return "spaces and lines" if lines and min(lines) < places[_LOOKAHEAD] else "spaces"


def _alternatives(pattern: str) -> list[str]:
    """The alternatives of a pattern that has no escaped brackets."""
    found, depth = [""], 0
    for letter in pattern:
        depth += (letter in "([") - (letter in ")]")
        if letter == "|" and not depth:
            found.append("")
        else:
            found[-1] += letter
    return found
