"""What a first run rests on: text by language, what the base's tokenizer makes of it, and after packing the store's counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emma.base.errors import UserError
from emma.recipes.schema import Recipe
from emma.recipes.schema.model import Model
from emma.tools.arithmetic.flops import flops_per_token
from emma.tools.corpus.survey import Survey
from emma.tools.mix.fertility import script_table
from emma.tools.mix.sources import Source, sources_of_store
from emma.tools.pack.store import open_store
from emma.tools.pack.tokenizer_file import TokenizerFile
from emma.tools.tokenizer.measures import measure
from emma.tools.tokenizer.words import ENGLISH

__all__ = ["Language", "Measured", "measure_store", "measure_survey", "notes_of"]


@dataclass(frozen=True)
class Language:
    """A language (`component` monolingual) or pair (bilingual).

    Attributes:
        code: `xxx_Ssss`, or two of them.
        documents, bytes, words: of its raw text; of a pair's both sides.
        tokens: of the base's tokenizer, estimated from the raw text, or counted in the store.
        packed: documents in the store for training; None before packing.
    """

    component: str
    code: str
    documents: int
    bytes: int
    words: int
    tokens: int
    packed: int | None = None

    @property
    def source(self) -> Source:
        """As the mix plans it."""
        documents = self.documents if self.packed is None else self.packed
        return Source(self.component, self.code, None, self.words, documents, self.tokens)


@dataclass
class Measured:
    """All that is known of the text.

    Attributes:
        languages: text by component and language.
        costs: by code, `bytes_per_token`, `fertility`, `premium`, `low`, `high`, as `emma tokenizer report` has them, on a
            sample; empty without a tokenizer.
        tokenizer: where the tokens are from, in words.
        counted: whether tokens are the store's.
    """

    languages: list[Language]
    costs: dict[str, dict[str, float | None]] = field(default_factory=dict)
    tokenizer: str = ""
    counted: bool = False

    @property
    def sources(self) -> list[Source]:
        """Sources of the mix."""
        return [language.source for language in self.languages]

    def of(self, component: str) -> list[Language]:
        """Languages of a component."""
        return [language for language in self.languages if language.component == component]

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Measured:
        """What `to_dict` gave."""
        languages = [Language(**language) for language in values["languages"]]
        return cls(languages, values["costs"], values["tokenizer"], values["counted"])


def measure_survey(survey: Survey, codes: Sequence[str], model: Model, length: int) -> Measured:
    """Tokens of the raw text, from a sample of each language.

    Args:
        survey: the raw text.
        codes: the languages that take part.
        model: the base, with its tokenizer; where its file is not there, bytes a token are those of the shipped table of
            scripts, which was measured with Llama 3's tokenizer.
        length: tokens of a sequence, for the cost of a token.
    """
    wanted = set(codes)
    texts = {
        code: [text for (text,) in survey.samples["monolingual", code].texts]
        for kind, code in survey.sizes
        if kind == "monolingual" and code in wanted
    }
    aligned: dict[str, list[tuple[str, str]]] = {}
    pairs = {
        code: size
        for (kind, code), size in survey.sizes.items()
        if kind == "parallel" and len(set(code.split("-"))) == 2 and wanted.issuperset(code.split("-"))
    }
    for code in pairs:
        source, target = code.split("-")
        rows = survey.samples["parallel", code].texts
        if ENGLISH in (source, target):
            other = target if source == ENGLISH else source
            aligned.setdefault(other, []).extend(
                (text, english) if target == ENGLISH else (english, text) for text, english in rows
            )
    costs: dict[str, dict[str, float | None]] = {}
    path = Path(model.tokenizer.path) if model.tokenizer else None
    if path is not None and (path / "tokenizer.json").is_file():
        file = TokenizerFile(model.tokenizer, model.vocab_size)
        file.check()
        found, _ = measure(file, texts, aligned, flops=flops_per_token(model, length))
        names = ("bytes_per_token", "fertility", "premium", "low", "high")
        costs = {code: {name: getattr(cost, name) for name in names} for code, cost in found.items()}
        how = f"{path / 'tokenizer.json'}, on a sample of each language"
    else:
        how = "Llama 3's tokenizer by script (tools/mix/scripts.csv), since the base's is not here yet"

    def per_token(code: str) -> float:
        known = costs.get(code, {}).get("bytes_per_token")
        if known:
            return known
        table = script_table()
        size = table.get(code.partition("_")[2], table["*"])
        return (size.bytes_per_word + 1) / size.tokens_per_word

    languages = []
    for code in texts:
        size = survey.sizes["monolingual", code]
        # Every document is closed by a token, and most are opened by one.
        tokens = round(size.bytes / per_token(code)) + 2 * size.documents
        languages.append(Language("monolingual", code, *size, tokens))
    for code, size in pairs.items():
        rate = sum(map(per_token, code.split("-"))) / 2
        languages.append(Language("bilingual", code, *size, round(size.bytes / rate)))
    order = {code: place for place, code in enumerate(codes)}
    languages.sort(
        key=lambda one: (one.component != "monolingual", order.get(one.code, len(order)), one.code)
    )
    return Measured(languages, costs, how)


def notes_of(found: Survey, codes: Sequence[str]) -> list[str]:
    """What to know of the raw text: pairs without text, foreign scripts, labels of no language, unusable rows."""
    notes = []
    for code in codes:
        if ("monolingual", code) not in found.sizes:
            notes.append(f"{code} has pairs, but no text of its own")
    for source, (count, first) in found.unusable.items():
        notes.append(
            f"source {source}: {count:,} unusable rows, which stop the corpus unless the source has max_bad_lines; the first: {first}"
        )
    if found.foreign:
        shown = ", ".join(f"{code} ({count:,})" for code, count in found.foreign.most_common(8))
        notes.append(
            f"in a script that their language isn't written in, so not counted, and removed by the corpus: {shown} documents"
        )
    if found.unknown:
        shown = ", ".join(f"`{label}` ({count:,})" for label, count in found.unknown.most_common(8))
        notes.append(
            f"labels that name no language: {shown}; their documents are left out. If they are yours, pass --label LABEL=CODE"
        )
    return notes


def measure_store(recipe: Recipe, before: Measured) -> Measured:
    """The same with the tokens of the packed store.

    Raises:
        UserError: a component is not packed, or a language has nothing left.
    """
    components = open_store(Path(recipe.paths.store), sorted(recipe.data.mix.components))
    found = {source.key: source for source in sources_of_store(recipe.data.mix, components)}
    languages = []
    for language in before.languages:
        source = found.pop((language.component, language.code), None)
        tokens, documents = (source.tokens, source.documents) if source else (0, 0)
        if not tokens and language.component == "monolingual":
            raise UserError(
                f"{recipe.paths.store}: nothing is left of {language.code} ({language.documents:,} raw documents). Fix: see why "
                f"with `emma corpus peek {recipe.name}`, lower its limits in data.corpus.language_filters, or leave it out"
            )
        languages.append(
            Language(language.component, language.code, *_raw(language), tokens, packed=documents)
        )
    for (component, code), source in sorted(found.items()):
        languages.append(
            Language(component, code, 0, 0, source.words, source.tokens, packed=source.documents)
        )
    return Measured(languages, before.costs, "the store's counts", counted=True)


def _raw(language: Language) -> tuple[int, int, int]:
    return language.documents, language.bytes, language.words
