"""In which language a model answers, by a fastText model such as GlotLID, and where it mixes languages.

Line-level and word-level pass rates are those of Marchisio et al. (2024), arxiv.org/abs/2406.20052, as in
github.com/for-ai/language-confusion, with these differences: any fastText model; scripts without spaces are cut by
characters, not by a tokenizer of one language; a word list is given, not shipped.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Sequence
from pathlib import Path

import regex

from emma.base.errors import UserError
from emma.base.files import sha256_file
from emma.tools.corpus.identification import FastText
from emma.tools.evaluation.benchmarks.scores import Score, mean_score
from emma.tools.evaluation.quality.seen import place_of
from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError
from emma.tools.languages.scripts import SPACELESS, compatible, family

__all__ = ["KEYS", "Confusion"]

KEYS = ("in_language", "line_pass_rate", "word_pass_rate", "reference_in_language")

_CONFIDENT = 0.3
_WORDS = 5
_CHARACTERS = 10
"""Shorter texts and lines are left out: five words, or ten characters of a script without spaces (about five words)."""
_LONGEST = 2000
"""Characters of a text that are identified."""
_SHORTEST_WORD = 4

_SPACELESS = regex.compile(
    "[" + "".join(rf"\p{{{name}}}" for name in sorted(SPACELESS & {"Hani", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Java", "Bali"})) + "]"
)  # fmt: skip
_LATIN = regex.compile(r"\p{Latin}+")
_PLAIN = str.maketrans({**dict.fromkeys(string.punctuation, ""), "—": " ", "،": ""})


class Confusion:
    """Identifies languages of outputs.

    Args:
        model: fastText model whose labels are languages.
        words: list of English words, one per line; None: words are not looked at.

    Raises:
        UserError: one of the files is missing or something else, or the package is not installed.
    """

    def __init__(self, model: Path, words: Path | None = None) -> None:
        self.backend = FastText(str(model), option="--glotlid")
        self.labels = {label: _place(label) for label in self.backend.labels}
        if not any(self.labels.values()):
            raise UserError(f"{model}: no label of this fastText model is a language")
        self.words = frozenset[str]()
        self.signature = f"lid:{model.stem}|sha256:{sha256_file(model)[:12]}"
        if words is not None:
            if not words.is_file():
                raise UserError(f"--english-words {words}: no such file; give a list with one word per line")
            lines = (line.strip() for line in words.read_text(encoding="utf-8").splitlines())
            self.words = frozenset(word for word in lines if word.islower() and len(word) >= _SHORTEST_WORD)
            if not self.words:
                raise UserError(
                    f"--english-words {words}: holds no lower-case word of {_SHORTEST_WORD} letters"
                )
            self.signature += f"|words:{sha256_file(words)[:12]}"

    def knows(self, asked: str) -> bool:
        """Whether some label means the language."""
        return bool(self._right(asked))

    def scores(self, asked: str, outputs: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
        """Rates of a language's outputs, 0 to 1; empty where the model does not know the language.

        `in_language`: outputs whose language is the asked one. `line_pass_rate`: outputs of which all lines are.
        `word_pass_rate`: among those, outputs without English words, in scripts other than Latin. `reference_in_language`:
        references that the model finds to be in the asked language, so what a perfect output can be expected to get.
        """
        right = self._right(asked)
        if not right:
            return {}
        lines = [self._lines(output, right) for output in outputs]
        whole = [self._whole(output, right) for output in outputs]
        found = {
            "in_language": whole,
            "line_pass_rate": [None if not passed else float(all(passed)) for _, passed in lines],
            "reference_in_language": [self._whole(text, right) for text in references],
        }
        _, script = place_of(asked) or ("", "Latn")
        if self.words and script != "Latn":
            found["word_pass_rate"] = [
                float(not self._has_english(kept, script)) if passed and all(passed) else None
                for kept, passed in lines
            ]
        scores = {key: mean_score(items, self.signature) for key, items in found.items() if items}
        return {key: score for key, score in scores.items() if score.n}

    @functools.cache  # noqa: B019 - one object a run, and a few hundred languages
    def _right(self, asked: str) -> frozenset[str]:
        """Labels that stand for the language: its own or, where the model has none, its macro-language's."""
        place = _place(asked)
        if place is None:
            return frozenset()
        language, script = place

        def fits(found: tuple[str, str | None]) -> bool:
            return found[1] is None or script is None or found[1] == script or compatible(found[1], script)

        known = {label: found for label, found in self.labels.items() if found and fits(found)}
        own = frozenset(label for label, found in known.items() if found[0] == language)
        return own or frozenset(
            label for label, found in known.items() if _macro(found[0]) == _macro(language)
        )

    def _said(self, text: str, right: frozenset[str]) -> bool:
        label, probability = self.backend.predict(text[:_LONGEST])
        return label in right and probability > _CONFIDENT

    def _whole(self, text: str, right: frozenset[str]) -> float | None:
        plain = " ".join(text.translate(_PLAIN).split())
        return float(self._said(plain, right)) if _long_enough(plain) else None

    def _lines(self, text: str, right: frozenset[str]) -> tuple[list[str], list[bool]]:
        lines = [line for line in text.strip().translate(_PLAIN).split("\n") if _long_enough(line)]
        return lines, [self._said(line, right) for line in lines]

    def _has_english(self, lines: Sequence[str], script: str) -> bool:
        if family(script) == "spaceless":
            return any(word in self.words for line in lines for word in _LATIN.findall(line))
        return any(word in self.words for line in lines for word in line.split())


def _long_enough(line: str) -> bool:
    return len(line.split()) >= _WORDS or len(_SPACELESS.findall(line)) >= _CHARACTERS


@functools.cache
def _place(label: str) -> tuple[str, str | None] | None:
    try:
        found = LanguageResolver().resolve(label)
    except UnknownLanguageError:
        return None
    return found.language, found.script


@functools.cache
def _macro(language: str) -> str:
    import iso639

    try:
        return str(iso639.Language.from_part3(language).macrolanguage or language)
    except iso639.LanguageNotFoundError:
        return language
