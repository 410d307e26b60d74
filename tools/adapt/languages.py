"""Languages as people write them (codes, names, with a script or without) → the codes of the corpus."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import iso639

from emma.base.errors import UserError
from emma.tools.corpus.survey import Size, Survey
from emma.tools.languages.labels import LanguageResolver, UnknownLanguageError, language_name

__all__ = ["Wanted", "codes_of", "read_languages", "with_text"]

_SMALL = 0.02
"""A script with less than this share of a language's bytes is taken for mislabelled text."""


@dataclass(frozen=True)
class Wanted:
    """A language that was asked for.

    Attributes:
        given: as it was written.
        language: ISO 639-3.
        script: ISO 15924, where it was named.
        note: how it was read, where that is not plain.
    """

    given: str
    language: str
    script: str | None
    note: str = ""


@functools.cache
def _names() -> dict[str, frozenset[str]]:
    """Lower-case names, also without what stands in parentheses or behind a comma, → ISO 639-3 codes."""
    found: dict[str, set[str]] = {}
    for language in iso639.ALL_LANGUAGES:
        if language.status != "A" or language.scope == "S":
            continue
        names = [language.name, *(name.print for name in language.other_names or ())]
        for name in filter(None, names):
            for short in (name, re.sub(r" *\(.*\)", "", name)):
                found.setdefault(short.lower(), set()).add(language.part3)
    # Sorted, since the table of languages is a set.
    return {name: frozenset(codes) for name, codes in sorted(found.items(), key=lambda x: (len(x[0]), x[0]))}


def read_languages(given: Iterable[str], option: str = "--languages") -> list[Wanted]:
    """Reads labels or English names, separated by commas or given one by one; each language once.

    Raises:
        UserError: one names no language, or several; all such faults in one message, each with what is near.
    """
    labels = [part.strip() for text in given for part in text.split(",") if part.strip()]
    if not labels:
        raise UserError(f"{option}: names no language. Fix: give codes or names, e.g. swh,yor,Zulu")
    found: dict[tuple[str, str | None], Wanted] = {}
    faults = []
    for label in labels:
        try:
            wanted = _read(label)
        except UserError as error:
            faults.append(str(error))
            continue
        found.setdefault((wanted.language, wanted.script), wanted)
    if faults:
        raise UserError(f"{option}: " + "\n".join(faults))
    return list(found.values())


def _read(label: str) -> Wanted:
    codes = _names().get(label.lower())
    if codes and not re.fullmatch(r"[a-z]{2,3}", label):
        label, given = _one_of(label, codes), label
    else:
        given = label
    try:
        resolved = LanguageResolver().resolve(label)
    except UnknownLanguageError as error:
        said = str(error).split("; correct it in the source")[0]
        near = difflib.get_close_matches(given.lower(), list(_names()), n=3, cutoff=0.75)
        word = re.compile(rf"\b{re.escape(given.lower())}\b")
        if len(given) > 3 and (near := [*[name for name in _names() if word.search(name)][:6], *near][:6]):
            shown = ", ".join(f"{name.title()} ({'/'.join(sorted(_names()[name]))})" for name in near)
            said = f"`{given}` is no language that is known here; nearest: {shown}"
        raise UserError(f"{said}. Fix: give an ISO 639 code (`emma corpus languages CODE`)") from None
    note = ""
    if "macro-language" in resolved.decision or "region" in resolved.decision:
        name = language_name(resolved.language)
        note = f"`{given}` is read as {resolved.language} ({name}): {resolved.decision}"
    elif members := _members(resolved.language):
        note = f"`{given}` is a macro-language; text is taken that is labelled so, not its languages' ({', '.join(members[:8])})"
    return Wanted(given, resolved.language, resolved.script, note)


def _members(language: str) -> list[str]:
    """Individual languages of a macro-language."""
    members = (one for one in iso639.ALL_LANGUAGES if one.macrolanguage == language and one.status == "A")
    return sorted(one.part3 for one in members)


def _one_of(name: str, codes: Iterable[str]) -> str:
    """The code that a name stands for: a macro-language stands for its members of the same name."""
    own = set(codes)
    own -= {code for code in own if iso639.Language.from_part3(code).macrolanguage in own}
    if len(own) == 1:
        return own.pop()
    shown = ", ".join(f"{code} ({language_name(code)})" for code in sorted(own))
    raise UserError(f"`{name}` names several languages: {shown}. Fix: give the code of the one that is meant")


def codes_of(survey: Survey, wanted: Sequence[Wanted]) -> dict[str, Wanted]:
    """Codes with their scripts, as the text shows them, by the order of `wanted`.

    Raises:
        UserError: a language is written in two scripts here, of which none was chosen; or has no text.
    """
    found: dict[str, Wanted] = {}
    faults = []
    named = {f"{one.language}_{one.script}" for one in wanted if one.script}
    for one in wanted:
        here = with_text(survey, one.language)
        if one.script is not None:
            code = f"{one.language}_{one.script}"
            if code in here:
                found[code] = one
            else:
                faults.append(_none(survey, one, here))
            continue
        total = sum(size.bytes for size in here.values())
        large = {c: size for c, size in here.items() if size.bytes >= _SMALL * total and c not in named}
        if len(large) > 1:
            sizes = ", ".join(f"{code} ({size.bytes / 1e6:,.2f} MB)" for code, size in large.items())
            faults.append(
                f"`{one.given}` is written in {len(large)} scripts here: {sizes}. Fix: name those that are meant, "
                f"e.g. --languages {','.join(large)}"
            )
        elif not large and not named.intersection(here):
            faults.append(_none(survey, one, here))
        elif large:
            found[next(iter(large))] = one
    if faults:
        raise UserError("--languages: " + "\n".join(faults))
    return found


def with_text(survey: Survey, language: str) -> dict[str, Size]:
    """Text of a language, monolingual or in pairs, by its codes."""
    found: dict[str, Size] = {}
    for (kind, code), size in survey.sizes.items():
        for side in dict.fromkeys(code.split("-") if kind == "parallel" else [code]):
            if side.split("_")[0] == language:
                found[side] = found.get(side, Size()).plus(size)
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def _none(survey: Survey, one: Wanted, here: Mapping[str, Size]) -> str:
    name = f"{one.language}{f'_{one.script}' if one.script else ''} ({language_name(one.language)})"
    said = f"no text in {name}, asked for as `{one.given}`"
    if here:
        said += f"; of this language there is {', '.join(here)}"
    else:
        resolver, near = LanguageResolver(), []
        members = {one.language, *_members(one.language)}
        macro = iso639.Language.from_part3(one.language).macrolanguage
        members |= {macro, *_members(macro)} if macro else set()
        for label in {part for pair in survey.others for part in pair.split("-")}:
            try:
                if resolver.resolve(label).language in members:
                    near.append(label)
            except UserError:
                continue
        if near:
            said += f"; there is text labelled {', '.join(sorted(near)[:8])}, of the same macro-language"
    return f"{said}. Fix: leave it out, or name a file of its text with --text FILE={one.language}"
