"""The `corpus` part of the `data` section: sources of raw text and what is done to them before packing."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from emma.recipes.schema.section import Section
from emma.recipes.schema.sources import KINDS, Kind, Source

__all__ = [
    "KINDS",
    "Corpus",
    "Decontamination",
    "Deduplication",
    "Identification",
    "Kind",
    "Languages",
    "NearDuplicates",
    "Normalisation",
    "OwnLimits",
    "Source",
    "Split",
    "Thresholds",
]

_NEAR_KINDS: tuple[Kind, ...] = ("monolingual", "code", "papers", "books", "instruction")


class Languages(Section):
    """How language labels become ISO 639-3 and ISO 15924."""

    later: ClassVar[frozenset[str]] = frozenset({"only"})

    spelling: Literal["iso", "mala"] = "iso"
    """Codes of the output: `iso` (individual languages: `cmn_Hans`, `jpn_Jpan`, `npi_Deva`) or `mala` (the papers':
    `zho_Hani`, `jpn_Japn`, `nep_Deva`)."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels in the sources that the tables lack or get wrong, and the `xxx_Ssss` they stand for. With `only`, `und` says that
    a label names none of the languages to keep."""
    measure_script: bool = True
    """Measure each document's script, and use it where the label names no script, or another one that the language
    is also written in."""
    only: list[str] = Field(default_factory=list)
    """Codes (`xxx_Ssss`, in the output's spelling) of the languages to keep; default: all. Documents in other languages, and
    pairs with a side in another one, are removed while reading (rule `other_language`). Code is kept."""

    @field_validator("only")
    @classmethod
    def _codes(cls, only: list[str]) -> list[str]:
        for code in only:
            if not re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", code):
                raise ValueError(
                    f"only: `{code}` is not of the form xxx_Ssss; `emma corpus languages {code}` says what it is"
                )
        return only

    @model_validator(mode="after")
    def _undetermined(self) -> Self:
        if not self.only and "und" in self.labels.values():
            raise ValueError(
                "labels: `und` leaves a label's documents out, which needs `only`; name their language"
            )
        return self


class Normalisation(Section):
    """What is done to every text before it is filtered."""

    unicode: Literal["NFC", "NFKC"] = "NFC"
    """Unicode normalisation form."""
    mend_encoding: bool = True
    """Repair UTF-8 that was read as Latin-1 or Windows-1252 (`Ã©` → `é`)."""
    controls: bool = True
    """Remove control characters, zero-width spaces and byte-order marks; the joiners U+200C and U+200D stay where a
    script needs them (Arabic, Indic scripts, emoji)."""
    markup: bool = True
    """Turn HTML entities into characters and remove leftover tags (not in code)."""
    white_space: bool = True
    """One space between words, no spaces at the ends of lines, at most one blank line (not in code)."""
    mask_pii: bool | list[Literal["email", "ip", "iban", "card", "phone"]] = False
    """Replace what identifies people with fixed placeholders: the kinds listed, where `iban` and `card` numbers must have the
    right check digits, and `phone` finds national numbers too, as the language's countries write them (needs the extra
    `corpus`). `true`: e-mail addresses, IP addresses and international telephone numbers, by their form alone."""


class Identification(Section):
    """Language identification of documents. Those whose label it contradicts are removed, if the model knows the label's
    language."""

    later: ClassVar[frozenset[str]] = frozenset({"fallback"})

    backend: Literal["none", "fasttext", "py3langid"] = "none"
    """`none` trusts the label; `fasttext` reads any model in fastText's format (GlotLID, OpenLID, lid.176);
    `py3langid` brings its own model of 140 languages."""
    model: str | None = None
    """Path of the fastText model."""
    min_confidence: float = Field(0.9, ge=0, le=1)
    """A document is removed (`language_mismatch`) if the model is at least this confident of another language."""
    min_characters: int = Field(100, ge=0)
    """Shorter texts are not identified."""
    fallback: Literal["py3langid"] | None = Field(None)
    """What identifies languages where the fastText model's file is not there; without it, that is an error. The manifest
    names what was used."""

    @model_validator(mode="after")
    def _fallback(self) -> Self:
        if self.fallback is not None and self.backend != "fasttext":
            raise ValueError("fallback is for backend: fasttext; remove it")
        return self

    @model_validator(mode="after")
    def _model(self) -> Self:
        if (self.backend == "fasttext") != (self.model is not None):
            raise ValueError("backend: fasttext and model go together: give both or neither")
        return self


class Thresholds(Section):
    """Limits of the filter rules. A rule whose limit is `null` is off; limits that a recipe leaves out come from
    `recipes/corpus/filters.yaml`, by kind and script family."""

    later: ClassVar[frozenset[str]] = frozenset({"max_spam_share", "min_common_share"})

    min_characters: int | None = Field(None, ge=0)
    """Rule `too_short`: characters of a document (or of a side of a pair)."""
    max_characters: int | None = Field(None, gt=0)
    """Rule `too_long`: characters of a document (or of a side)."""
    min_words: int | None = Field(None, ge=0)
    """Rule `too_few_words`: words separated by whitespace; off in scripts without spaces."""
    min_mean_word_length: float | None = Field(None, ge=0)
    """Rule `word_length`: mean characters per word; off in scripts without spaces."""
    max_mean_word_length: float | None = Field(None, gt=0)
    """Rule `word_length`: mean characters per word."""
    min_letter_share: float | None = Field(None, ge=0, le=1)
    """Rule `few_letters`: letters and marks as a share of the characters that are not whitespace."""
    max_digit_share: float | None = Field(None, ge=0, le=1)
    """Rule `many_digits`: digits as a share of the characters that are not whitespace."""
    max_symbol_share: float | None = Field(None, ge=0, le=1)
    """Rule `many_symbols`: characters that are no letter, mark, digit or common punctuation, as a share of those
    that are not whitespace."""
    max_repeated_line_share: float | None = Field(None, ge=0, le=1)
    """Rule `repeated_lines`: characters in lines that occurred earlier in the document, as a share."""
    max_repeated_ngram_share: float | None = Field(None, ge=0, le=1)
    """Rule `repeated_ngrams`: word 5-grams (character 20-grams in scripts without spaces) that occurred earlier in the
    document, as a share."""
    max_line_characters: int | None = Field(None, gt=0)
    """Rule `long_lines`: characters of the longest line (in code, a sign of minified files)."""
    max_mean_line_characters: float | None = Field(None, gt=0)
    """Rule `long_lines`: mean characters per line."""
    max_boilerplate_share: float | None = Field(None, ge=0, le=1)
    """Rule `boilerplate`: lines that match a pattern in `recipes/corpus/boilerplate.yaml`, as a share of all lines."""
    min_script_share: float | None = Field(None, ge=0, le=1)
    """Rule `wrong_script`: letters of the language's script as a share of all letters."""
    max_replacement_share: float | None = Field(None, ge=0, le=1)
    """Rule `broken_encoding`: U+FFFD and mojibake that could not be repaired, as a share of all characters."""
    max_spam_share: float | None = Field(None, ge=0, le=1)
    """Rule `spam`: letters in words of spam for pornography and gambling (`recipes/corpus/rules/spam.yaml`) as a share of all
    letters, in documents with at least three different ones."""
    min_common_share: float | None = Field(None, ge=0, le=1)
    """Rule `word_salad`: words that are among the language's hundred most frequent, as a share of all words: text has them,
    lists of search terms don't. Needs `own_limits`, which finds these words; off in scripts without spaces."""
    max_length_ratio: float | None = Field(None, ge=1)
    """Pairs, rule `length_ratio`: longer side over shorter side, in characters weighted by script (a Han character
    counts for several Latin ones)."""
    max_similarity: float | None = Field(None, ge=0, le=1)
    """Pairs, rule `copy_of_source`: sides in the same script whose character 4-grams overlap by more than this."""
    numbers_match: bool | None = None
    """Pairs, rule `numbers_differ`: both sides must have the same numbers, in whatever digits."""
    max_target_repeats: int | None = Field(None, gt=0)
    """Pairs, rule `templated`: how many different sources may share one target text within a language pair, and vice
    versa."""


class OwnLimits(Section):
    """Limits that each language's own text sets: median ± `spread` × its robust standard deviation, within the bounds of
    `recipes/corpus/rules/own_limits.yaml`. They take the place of limits by kind that are not `null`; `language_filters` win.
    `statistics/limits.csv` lists them."""

    spread: float = Field(5.0, gt=0)
    """Distance of a limit from the median, in standard deviations (1.4826 × the median absolute deviation)."""
    documents: int = Field(20_000, gt=0)
    """Most documents of a language that are measured, evenly over its parts."""
    min_documents: int = Field(300, gt=0)
    """A language with fewer documents keeps the tables' limits, and its rule `word_salad` is off."""
    kinds: list[Kind] = Field(default_factory=lambda: list[Kind](["monolingual"]), min_length=1)
    """Kinds whose languages get limits of their own."""

    @field_validator("kinds")
    @classmethod
    def _of_languages(cls, kinds: list[Kind]) -> list[Kind]:
        if other := sorted({"parallel", "code"} & set(kinds)):
            raise ValueError(f"kinds: {other[0]} has no limits by language; remove it")
        return kinds


class NearDuplicates(Section):
    """MinHash LSH; candidates are verified by the exact Jaccard index of their shingle sets."""

    jaccard: float = Field(0.8, gt=0, le=1)
    """Documents with at least this Jaccard index are duplicates."""
    bands: int = Field(20, gt=0)
    """Bands of the signature."""
    rows: int = Field(6, gt=0)
    """Rows per band. A pair with Jaccard index s becomes a candidate with probability 1 − (1 − s^rows)^bands."""
    word_shingle: int = Field(5, gt=0)
    """Words per shingle."""
    character_shingle: int = Field(10, gt=0)
    """Characters per shingle in scripts without spaces between words."""
    min_characters: int = Field(100, ge=0)
    """Shorter texts are compared for equality only."""
    kinds: list[Kind] = Field(default_factory=lambda: [*_NEAR_KINDS])
    """Kinds that are searched."""


class Deduplication(Section):
    """Which copies are removed. Of equal documents, the one whose source comes first in the recipe is kept."""

    later: ClassVar[frozenset[str]] = frozenset({"counts"})

    exact: bool = True
    """Remove documents that are equal apart from case, whitespace and punctuation; pairs in both directions."""
    paragraphs: bool = False
    """Cut out paragraphs that occurred in an earlier document of the language, and remove documents left empty."""
    near: NearDuplicates | None = None
    """How near duplicates are found; `null` keeps them."""
    counts: bool = Field(False)
    """Add a column `copies` to the rows: how many documents each one stands for, itself and its removed copies."""


class Decontamination(Section):
    """What happens to documents that overlap with evaluation texts."""

    benchmarks: str
    """Folder with the benchmarks' texts (jsonl, json, csv, tsv, parquet or txt, compressed or not); every text field
    counts."""
    ngram: int = Field(13, gt=0)
    """Words of an n-gram that count as overlap."""
    character_ngram: int = Field(40, gt=0)
    """Characters of an n-gram in scripts without spaces between words."""
    action: Literal["remove", "report"] = "remove"
    """`remove` removes contaminated documents (rule `contaminated`); `report` only lists them."""


class Split(Section):
    """Which documents train and which validate: a hash of the text decides, and nothing else except `floor` and
    `min_train`, so no text changes sides when the corpus grows. Monolingual validation text trains nowhere, not even as
    one side of a pair; a pair validates if the text of either side would."""

    share: float = Field(0.01, ge=0, lt=1)
    """Share of texts that never train: those with the lowest hashes."""
    shares: dict[str, float] = Field(default_factory=dict)
    """Share for single languages or pairs (`eng_Latn: 0.0001`) for which `share` would hold out too much."""
    cap: int = Field(1000, ge=0)
    """Most validation documents per language or pair: those with the lowest hashes. The rest of the share is removed
    (rule `validation_cap`), since it must not train. With 0 everything trains."""
    floor: int = Field(0, ge=0)
    """Fewest validation documents per language or pair, provided that `min_train` remain: those with the lowest
    hashes. `split_choices.parquet`, beside the stages, records what the floors chose, for later builds. With 0 the
    choice depends on the text alone."""
    min_train: int = Field(1, ge=0)
    """Documents of a language or pair that train before any validates."""

    @field_validator("shares")
    @classmethod
    def _range(cls, shares: dict[str, float]) -> dict[str, float]:
        for language, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"shares.{language} is {share}; it must be in [0, 1)")
        return shares


class Corpus(Section):
    """Raw text → integrated → filtered → deduplicated → split."""

    later: ClassVar[frozenset[str]] = frozenset({"own_limits"})

    sources: dict[str, Source] = Field(default_factory=dict)
    """Sources by name, best provenance first: of equal documents, the one from the earlier source is kept."""
    languages: Languages = Languages()
    normalisation: Normalisation = Normalisation()
    identification: Identification = Identification()
    filters: dict[Kind, Thresholds] = Field(default_factory=dict)
    """Limits by kind, where they differ from `recipes/corpus/filters.yaml`."""
    language_filters: dict[str, Thresholds] = Field(default_factory=dict)
    """Limits by language (`tha_Thai`) or pair (`eng_Latn-tha_Thai`); they win over `filters`."""
    own_limits: OwnLimits | None = Field(None)
    """Limits from each language's own text; `null` takes the tables'."""
    deduplication: Deduplication = Deduplication()
    decontamination: Decontamination | None = None
    split: Split = Split()
    max_document_megabytes: float = Field(32.0, gt=0)
    """Longer lines and documents are removed while reading (rule `oversized`), before they fill memory."""
    part_megabytes: float = Field(256.0, gt=0)
    """Approximate size of a part file in MB of UTF-8 text; a part is also the unit of parallel work."""
    memory_gib: float = Field(4.0, gt=0)
    """Approximate memory of a worker process; buffers and hash tables are sized to fit."""
    samples: int = Field(20, ge=0)
    """Removed documents kept per rule, kind and language, for `emma corpus peek`."""

    @field_validator("sources")
    @classmethod
    def _names(cls, sources: dict[str, Source]) -> dict[str, Source]:
        for name in sources:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"source name `{name}`: letters, digits, `.`, `_` and `-` only")
        return sources
