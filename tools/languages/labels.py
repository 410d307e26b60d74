"""Any label of a language → ISO 639-3 and ISO 15924.

A label may be BCP 47 (`pt-BR`, `sr-Latn`), ISO 639-1, -2 or -3, a macro-language, a withdrawn code, a locale
(`zh_TW.UTF-8`, `sr@latin`), or a spelling of OPUS (`zh_cn`, `sr_latin`) or FLORES (`zho_Hans`).
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import iso639

from emma.base.errors import UserError
from emma.recipes.corpus_tables import scripts_of_languages, table
from emma.tools.languages.names import language_name

__all__ = ["LanguageResolver", "Resolved", "UnknownLanguageError", "all_scripts", "language_name"]

Spelling = Literal["iso", "mala"]


class UnknownLanguageError(UserError):
    """A label names no language; the message gives the nearest codes."""


@dataclass(frozen=True)
class Resolved:
    """What a label means.

    `language` is an ISO 639-3 code (with the spelling `mala`, also one of the papers' other codes), `script`
    an ISO 15924 code or None if neither label nor region implies one; `decision` says briefly how the label
    was read.
    """

    language: str
    script: str | None
    decision: str


@functools.cache
def all_scripts() -> frozenset[str]:
    """ISO 15924 codes of Unicode's scripts, and of mixed and variant scripts used in labels."""
    from GlotScript.GlotScript import SCRIPT_RANGES

    single = set(SCRIPT_RANGES) - {"Zinh", "Zzzz"}
    return frozenset(
        single | {"Hans", "Hant", "Jpan", "Japn", "Kore", "Hrkt", "Aran", "Syre", "Syrj", "Syrn", "Latf"}
    )


@functools.cache
def _names() -> dict[str, str]:
    """Lower-case English name → ISO 639-3 code."""
    return {language.name.lower(): language.part3 for language in iso639.ALL_LANGUAGES if language.name}


def _lookup(subtag: str) -> tuple[str, str] | None:
    """ISO 639-3 code of a language subtag, and the standard that defines it."""
    finders = {
        2: [("ISO 639-1", iso639.Language.from_part1)],
        3: [
            ("ISO 639-3", iso639.Language.from_part3),
            ("ISO 639-2/B", iso639.Language.from_part2b),
        ],
    }
    for standard, find in finders.get(len(subtag), []):
        try:
            language = find(subtag)
        except iso639.LanguageNotFoundError:
            continue
        if language.scope == "S":  # und, mul, mis, zxx: no language
            return None
        if language.status == "R":
            return _successor(language)
        return language.part3, standard
    return None


def _successor(language: Any) -> tuple[str, str]:
    """The code that replaced a withdrawn one; a code that was split stays, since it is still in use."""
    if language.retire_change_to:
        return language.retire_change_to, f"withdrawn for {language.retire_change_to}"
    return language.part3, "withdrawn from ISO 639-3, kept"


@dataclass
class LanguageResolver:
    """Reads labels for one corpus.

    Args:
        labels: the recipe's own decisions, label → `xxx_Ssss` (or `xxx`), which overrule the tables.
        spelling: codes of the output; see `recipes.schema.corpus.Languages`.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    spelling: Spelling = "iso"
    _cache: dict[str, Resolved] = field(default_factory=dict, repr=False)

    def resolve(self, label: str) -> Resolved:
        """What `label` means by itself, without looking at any text.

        Raises:
            UnknownLanguageError: it names no language; the message gives the nearest codes and a recipe key.
        """
        if label not in self._cache:
            self._cache[label] = self._resolve(label)
        return self._cache[label]

    def spell(self, language: str, script: str) -> str:
        """`xxx_Ssss` in the output's spelling."""
        if self.spelling == "mala":
            script = table("languages")["mala"]["scripts"].get(script, script)
        return f"{language}_{script}"

    def scripts(self, language: str) -> tuple[str, ...]:
        """Scripts in customary use for an ISO 639-3 code, most common first; empty if unknown."""
        return scripts_of_languages().get(language, ())

    def _resolve(self, label: str) -> Resolved:
        given = label
        decision: list[str] = []
        if label in self.labels:
            label = self.labels[label]
            decision.append("recipe")
        key = re.sub(r"[-_@. ]+", "_", label.strip().lower().removesuffix(".utf-8").removesuffix(".utf8"))
        known = table("languages")["labels"]
        if key in known:
            label = key = str(known[key])
            decision.append(f"table: {key}")
        subtags = re.split(r"[-_@. ]+", key.lower()) if key else []
        if not subtags:
            raise UnknownLanguageError("empty language code; give one in the source")
        language, how = self._language(subtags[0], given)
        decision.append(how)
        script, region = self._rest(subtags[1:], given)
        if region:
            language, script, how = self._region(language, script, region)
            decision.append(how)
        language, how = self._individual(language)
        decision.append(how)
        return Resolved(language, script, ", ".join(d for d in dict.fromkeys(decision) if d))

    def _language(self, subtag: str, given: str) -> tuple[str, str]:
        if self.spelling == "mala" and subtag in table("languages")["mala"]["other"]:
            return subtag, "the papers' list"
        if subtag in table("languages")["labels"]:
            code = str(table("languages")["labels"][subtag])
            return code.split("_")[0], f"table: {code}"
        found = _lookup(subtag)
        if found is None and subtag in _names():
            found = _names()[subtag], "name"
        if found is None:
            raise UnknownLanguageError(
                f"unknown language code `{given}`; {self._nearest(subtag)}; {self._fix(given)}"
            )
        return found

    def _rest(self, subtags: list[str], given: str) -> tuple[str | None, str | None]:
        """Script and region among the subtags after the language; variants are ignored."""
        names, script, region = table("languages")["script_names"], None, None
        for subtag in subtags:
            if subtag in names:
                script = names[subtag]
            elif len(subtag) == 4 and subtag.isalpha():
                if subtag.title() not in all_scripts():
                    close = difflib.get_close_matches(subtag.title(), sorted(all_scripts()), n=3, cutoff=0.5)
                    hint = f"nearest: {', '.join(close)}" if close else "see ISO 15924"
                    raise UnknownLanguageError(
                        f"unknown script `{subtag}` in `{given}`; {hint}; {self._fix(given)}"
                    )
                script = subtag.title()
            elif region is None and re.fullmatch(r"[a-z]{2}|[0-9]{3}", subtag):
                region = subtag.upper()
        return (None if script == "Zyyy" else script), region

    def _region(self, language: str, script: str | None, region: str) -> tuple[str, str | None, str]:
        code = table("languages")["regions"].get(language, {}).get(region)
        if code is None:
            return language, script, ""
        individual, _, implied = code.partition("_")
        if script is not None and script != implied:
            return language, script, ""
        return individual, implied, f"region {region}"

    def _individual(self, language: str) -> tuple[str, str]:
        """The language's code in the output: an individual language's, or the papers' choice."""
        rules = table("languages")
        individuals: Mapping[str, str] = rules["individual_of_macrolanguage"]
        if self.spelling == "iso":
            if language in individuals:
                return individuals[language], f"macro-language {language}"
            return language, ""
        macros = {individual: macro for macro, individual in individuals.items()}
        if language in macros and language not in rules["mala"]["individual"]:
            return macros[language], f"the papers' {macros[language]}"
        return language, ""

    def _nearest(self, subtag: str) -> str:
        codes = [str(x.part3) for x in iso639.ALL_LANGUAGES if x.status == "A" and x.scope != "S"]
        codes += [str(x.part1) for x in iso639.ALL_LANGUAGES if x.part1]
        close = difflib.get_close_matches(subtag, codes, n=3, cutoff=0.5)
        names = difflib.get_close_matches(subtag, list(_names()), n=2, cutoff=0.75)
        close += [code for name in names if (code := _names()[name]) not in close]
        if not close:
            return "no known code is near it"
        return "nearest: " + ", ".join(f"{code} ({self._describe(code)})" for code in close)

    @staticmethod
    def _describe(code: str) -> str:
        found = _lookup(code)
        return language_name(found[0]) if found else code

    @staticmethod
    def _fix(label: str) -> str:
        return f"correct it in the source, or say what it stands for in data.corpus.languages.labels: {{{label}: xxx_Ssss}}"
