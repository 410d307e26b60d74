"""The `data` section: which text, how it becomes tokens, and which tokens training sees."""

from __future__ import annotations

import re
from string import Formatter
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from emma.recipes.schema.corpus import Corpus
from emma.recipes.schema.section import Section

__all__ = [
    "BilingualDocuments",
    "Category",
    "CodeDocuments",
    "Consumed",
    "Data",
    "InstructionDocuments",
    "Mix",
    "MixComponent",
    "MixValidation",
    "Pack",
    "PackComponent",
    "Rehydrated",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


def _check_template(
    template: str, key: str, required: set[str], optional: frozenset[str] = frozenset()
) -> str:
    """Refuses a template that lacks a placeholder, or has one that nothing would fill."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(
            f"{key}: {template!r} is not a template ({error}); write {{{{ and }}}} for literal braces"
        ) from None
    if missing := sorted(required - found):
        raise ValueError(f"{key}: {template!r} lacks {', '.join(f'{{{name}}}' for name in missing)}")
    if unknown := sorted(found - required - optional):
        known = ", ".join(f"{{{name}}}" for name in sorted(required | optional))
        raise ValueError(
            f"{key}: {template!r} has the unknown placeholder {{{unknown[0]}}}; expected one of {known}"
        )
    return template


def _check_names(names: dict[str, object], key: str) -> None:
    """Component names become folder names and parts of validation groups' names, so '-' and '/' are refused."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{key}: {name!r} is not a component name; use letters, digits, '_' and '.'")


class BilingualDocuments(Section):
    """How sentence pairs become documents."""

    pairs_per_document: int = Field(10, gt=0)
    """Sentence pairs per document; the last document of a language pair may have fewer."""
    template: str = "[{src_lang}]: {src}\n[{tgt_lang}]: {tgt}\n"
    """Text of one sentence pair; a document is their concatenation. Placeholders: `{src_lang}` `{src}` `{tgt_lang}`
    `{tgt}`."""
    language_labels: Literal["name", "code"] = "name"
    """What `{src_lang}` and `{tgt_lang}` become: the language's English name in ISO 639-3 (with the script if both
    sides have the same name, as in `srp_Cyrl-srp_Latn`), or the code, e.g. `swh_Latn`. A code without a name in ISO
    639-3 stays a code."""
    direction: Literal["forward", "reverse", "balanced"] = "balanced"
    """`forward`: from the pair's source language to its target language; `reverse`: the other way round; `balanced`:
    alternating from document to document."""

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return _check_template(value, "template", {"src", "tgt"}, frozenset({"src_lang", "tgt_lang"}))


class InstructionDocuments(Section):
    """How instruction data becomes documents."""

    template: str = "{instruction}\n\n{response}"
    """Text of a record. Placeholders: `{instruction}` `{response}` and, where records have one, `{input}`."""
    template_with_input: str = "{instruction}\n\n{input}\n\n{response}"
    """Text of a record whose `input` is not empty."""

    @field_validator("template")
    @classmethod
    def _template(cls, value: str) -> str:
        return _check_template(value, "template", {"instruction", "response"})

    @field_validator("template_with_input")
    @classmethod
    def _template_with_input(cls, value: str) -> str:
        return _check_template(value, "template_with_input", {"instruction", "input", "response"})


class CodeDocuments(Section):
    """How source files become documents."""

    header: str = ""
    """Text before the file's own, e.g. `"<file: {path}, language: {language}>\\n"`; default: none.
    Placeholders: `{path}` `{language}`."""

    @field_validator("header")
    @classmethod
    def _header(cls, value: str) -> str:
        return _check_template(value, "header", set(), frozenset({"path", "language"}))


class PackComponent(Section):
    """A component of the token store: the kind of its documents and where their text is."""

    kind: Literal["text", "bilingual", "instruction", "code"] = "text"
    """How records become documents: `text` (a document per record: web text, papers, books), `bilingual` (sentence
    pairs), `instruction` or `code`; the last three as the sections of these names say."""
    inputs: list[str] | None = None
    """Files, folders or glob patterns; relative paths start at the working folder. Parquet, Arrow, JSON lines, CSV, TSV,
    TMX and plain text (`.txt`, one document a file) are told by their content, plain or compressed (gzip, zstd, bzip2,
    xz). Default: everything in `<paths.corpus>/split/<component>/`, or for `kind: bilingual` in
    `<paths.corpus>/split/parallel/`."""
    language: str | None = None
    """Language of records that name none; default: the name of the file's folder."""
    max_bad_lines: float = Field(0.0, ge=0, le=1)
    """Share of a component's records that may be unusable (not JSON, a field missing, invalid UTF-8, half a surrogate
    pair). They go to `quarantine.jsonl` beside the shards with file, line and reason; above this share the component
    isn't finished. With 0 the first one stops the pack."""


class Pack(Section):
    """From clean text to the token store. The tokens that begin and end a document are the model's
    (`model.tokenizer`); every shard is checked for them."""

    components: dict[str, PackComponent]
    """Components of the store by name, e.g. `monolingual`, `bilingual`, `code`, `papers`, `instruction`, `books`."""
    bilingual: BilingualDocuments = Field(default_factory=BilingualDocuments)
    """How sentence pairs become documents."""
    instruction: InstructionDocuments = Field(default_factory=InstructionDocuments)
    """How instruction data becomes documents."""
    code: CodeDocuments = Field(default_factory=CodeDocuments)
    """How source files become documents."""
    shard_mib: int = Field(8192, gt=0)
    """Largest `.bin` shard, in MiB; no document is split between shards."""
    min_tokens: int = Field(2, gt=0)
    """Documents with fewer tokens (not counting those that begin and end a document) are dropped and counted: a
    single token predicts nothing."""
    max_tokens: int | None = Field(None, gt=1)
    """Longest document in tokens (not counting those that begin and end it); default: no limit, so books stay whole."""
    long_documents: Literal["split", "drop"] = "split"
    """What happens to documents longer than `max_tokens`: split into documents of at most that length, or dropped;
    both are counted."""
    engine: Literal["fastest", "fastokens", "gigatoken", "tokenizers"] = "fastest"
    """Tokenizer engine. `tokenizers` is the reference; any other is used only if it gives the ids of `transformers` on
    the texts of its certificate, and for a language only if its ids equal the reference's on `gate_documents` documents.
    `fastest` takes the fastest one that does."""
    gate_documents: int = Field(32, gt=0)
    """Documents per language that are also encoded with the reference before packing, up to 8 KiB of text."""
    fault_share: float = Field(0.001, gt=0, le=1)
    """Share of documents with wrong ids that packing finds with a probability above 99.9 %: so many documents, drawn at
    random from all of a component, are encoded with the reference too (some 7,000 for 0.001, or all of up to 3,000)."""
    max_unknown: float = Field(0.01, ge=0, le=1)
    """Largest share of a language's tokens that may be the token for what the tokenizer's vocabulary lacks (`<unk>`, where
    text can become it); above it the component isn't finished."""

    @field_validator("components")
    @classmethod
    def _components(cls, value: dict[str, PackComponent]) -> dict[str, PackComponent]:
        if not value:
            raise ValueError("components is empty; name at least one, e.g. monolingual: {kind: text}")
        _check_names(dict(value), "components")
        return value


class Category(Section):
    """A resource category: the sources with at least this many words and fewer than the next category requires."""

    at_least: int = Field(ge=0)
    """Smallest size in words separated by whitespace (both sides of a pair together)."""
    factor: float = Field(1.0, gt=0)
    """Sampling weight per token, relative to the other categories: tokens at 2 are seen twice as often as at 1."""
    max_epochs: float | None = Field(None, gt=0)
    """Most epochs over a source of this category; default: the component's."""


class Rehydrated(Section):
    """How often documents are read that the web repeats."""

    copies: int = Field(ge=2)
    """Documents with at least so many copies in the raw text, the kept one included, and fewer than the next entry's."""
    times: int = Field(ge=1, le=100)
    """So often each of them is read while the source's other documents are read once."""


class MixComponent(Section):
    """One component's part in the mix, and how it is divided among its sources (languages or pairs)."""

    later: ClassVar[frozenset[str]] = frozenset({"rehydrate", "factor_of"})

    share: float = Field(gt=0)
    """Part of the mix's tokens, relative to the other components' shares (percentages are fine)."""
    categories: dict[str, Category] = Field(default_factory=dict)
    """Resource categories by name. Sources below the smallest `at_least` are left out. Default: one category for
    everything."""
    temperature: float | None = Field(None, ge=1)
    """Sources are weighted by tokens^(1/temperature) instead of by tokens × category factor; 1 is proportional."""
    max_epochs: float = Field(4.0, gt=0)
    """Most epochs over a source. What a capped source cannot give, the others of its component do."""
    max_epochs_of: dict[str, float] = Field(default_factory=dict)
    """Caps for single languages or pairs."""
    factor_of: dict[str, float] = Field(default_factory=dict)
    """Factors for single languages or pairs, on top of their weights."""
    include: list[str] = Field(default_factory=lambda: ["*"])
    """Patterns (`*`, `?`) of languages or pairs that take part, e.g. `eng_Latn-*`."""
    exclude: list[str] = Field(default_factory=list)
    """Patterns of languages or pairs that do not take part."""
    rehydrate: list[Rehydrated] = Field(default_factory=list)
    """Reads documents more often that had copies before deduplication; default: all equally often. Documents with fewer
    copies than the first entry count once. Shares, caps and epochs stay those of the distinct text: this says only which
    documents of a source its tokens come from. The store must have the counts: `deduplication.counts` of its corpus."""
    declared_tokens: int | None = Field(None, gt=0)
    """Tokens of this component, for planning from published statistics that do not list it; a store's own counts take
    precedence."""

    @field_validator("rehydrate")
    @classmethod
    def _once(cls, value: list[Rehydrated]) -> list[Rehydrated]:
        copies = [entry.copies for entry in value]
        if len(set(copies)) != len(copies):
            raise ValueError(
                "rehydrate: two entries have the same copies; every entry needs a number of its own"
            )
        return value

    @field_validator("max_epochs_of")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for language, cap in value.items():
            if cap <= 0:
                raise ValueError(
                    f"max_epochs_of.{language} is {cap}; give a cap above 0, or exclude the language"
                )
        return value

    @field_validator("factor_of")
    @classmethod
    def _above_zero(cls, value: dict[str, float]) -> dict[str, float]:
        for language, factor in value.items():
            if factor <= 0:
                raise ValueError(
                    f"factor_of.{language} is {factor}; give a factor above 0, or exclude the language"
                )
        return value

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if self.temperature is not None and any(
            category.factor != 1 for category in self.categories.values()
        ):
            raise ValueError(
                "temperature and category factors are two ways to weight sources; give one of them"
            )
        sizes = [category.at_least for category in self.categories.values()]
        if len(set(sizes)) != len(sizes):
            raise ValueError(
                "two categories have the same at_least; every category needs a threshold of its own"
            )
        for name in self.categories:
            if not _NAME.fullmatch(name.replace("-", "_")):
                raise ValueError(
                    f"categories: {name!r} is not a category name; use letters, digits, '_', '.' and '-'"
                )
        return self


class MixValidation(Section):
    """Validation groups, drawn from the documents whose `split` is `validation`."""

    later: ClassVar[frozenset[str]] = frozenset({"seed"})

    by_component: bool = True
    """One group per component: `component-<component>`."""
    by_category: bool = True
    """One group per resource category of every component that has any: `category-<component>-<category>`."""
    languages: list[str] = Field(default_factory=list)
    """Languages or pairs with a group of their own: `language-<language>`, over all components."""
    max_tokens: int = Field(2_000_000, gt=0)
    """Largest group in tokens. Documents are drawn evenly over the group's languages."""
    min_tokens: int = Field(1_000, gt=0)
    """Planning fails if a group would have fewer tokens: its loss would mean nothing."""
    omit_small: bool = False
    """Leave out groups below `min_tokens`, with a message, instead of failing."""
    seed: int | None = Field(None, ge=0)
    """Seed for choosing the groups' documents; default: `mix.seed`. With one of its own, mixes of different seeds are judged
    by the same documents."""


class Consumed(Section):
    """Documents that an earlier phase trained on."""

    mix: str
    """Folder of the earlier phase's mix."""
    samples: int | None = Field(None, gt=0)
    """Samples of it that were consumed (steps × global batch); default: all."""


class Mix(Section):
    """Which tokens training sees, how often and in which order."""

    later: ClassVar[frozenset[str]] = frozenset({"part_of_store"})

    components: dict[str, MixComponent]
    """Components of the mix, by their names in the store."""
    tokens: int | None = Field(None, gt=0)
    """Budget for planning without a run (`emma mix plan --data NAME`); a run's budget is steps × global batch ×
    sequence length."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """How documents fill samples. `concatenate`: one stream, cut at every sequence length. `best_fit`: no document
    that fits into a sample is cut (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"); the remaining
    space is padding, masked from the loss."""
    seed: int = Field(1234, ge=0)
    """Seed for choosing and ordering documents."""
    share_tolerance: float = Field(0.1, gt=0)
    """Planning fails if a component misses its share by more percentage points than this."""
    allow_short: bool = False
    """Accept that a component falls short of its share because of its caps: the others then fill the budget in
    proportion to their shares. Otherwise planning fails."""
    validation: MixValidation = Field(default_factory=MixValidation)
    """Validation groups."""
    exclude_consumed: list[Consumed] = Field(default_factory=list)
    """Documents to leave out because an earlier phase trained on them."""
    part_of_store: float = Field(1.0, gt=0, le=1)
    """Training may see only this part of every source's documents, drawn at random and the same for every seed: those of a
    smaller part are among those of a larger one, and no source is left without any. Epochs count over what remains, so a
    short run with the part `its budget / a long run's budget` repeats text as often as the long run does."""
    fertility: dict[str, float] = Field(default_factory=dict)
    """Tokens per word (separated by whitespace) by ISO 15924 script, for planning from published statistics; replaces
    entries of the shipped table, which was measured with Llama 3's tokenizer."""
    counted_in: str = "llama3"
    """Tokenizer in whose tokens `tokens` and `declared_tokens` count, for planning from published statistics. The shipped
    table of fertilities is that of `llama3`; for any other, measured ones must be given (`emma mix plan --fertility`)."""

    @field_validator("components")
    @classmethod
    def _components(cls, value: dict[str, MixComponent]) -> dict[str, MixComponent]:
        if not value:
            raise ValueError("components is empty; name at least one, e.g. monolingual: {share: 100}")
        _check_names(dict(value), "components")
        return value

    @field_validator("fertility")
    @classmethod
    def _fertility(cls, value: dict[str, float]) -> dict[str, float]:
        for script, tokens in value.items():
            if tokens <= 0:
                raise ValueError(f"fertility.{script} is {tokens}; a word has more than 0 tokens")
        return value

    @property
    def validation_seed(self) -> int:
        """Seed of the validation groups."""
        return self.seed if self.validation.seed is None else self.validation.seed

    @property
    def shares(self) -> dict[str, float]:
        """Shares that sum to 1, by component."""
        total = sum(component.share for component in self.components.values())
        return {name: component.share / total for name, component in self.components.items()}


class Data(Section):
    """Text, tokens and mix of a run."""

    name: str
    """Name of the recipe file, e.g. `mala_bilingual`, and of the mix's folder. Two runs that plan different budgets
    over the same data need two names (`data: {base: mala_monolingual, name: mala_monolingual_671b}`)."""
    corpus: Corpus | None = None
    """How raw text is cleaned; none if the corpus is used as it is."""
    pack: Pack
    """From clean text to the token store."""
    mix: Mix
    """From the token store to the training and validation datasets."""

    @model_validator(mode="after")
    def _known_components(self) -> Self:
        if unknown := sorted(set(self.mix.components) - set(self.pack.components)):
            raise ValueError(
                f"mix.components.{unknown[0]}: no such component in pack.components "
                f"({', '.join(self.pack.components)}); name it there too, or correct the name"
            )
        return self
