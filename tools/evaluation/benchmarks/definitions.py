"""The benchmarks of recipes/evaluation as typed objects, with their language codes and words."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from emma.base.errors import UserError
from emma.recipes.compose import ROOT, nearest
from emma.recipes.reading import read_yaml

__all__ = [
    "ENGLISH",
    "Benchmark",
    "Program",
    "Sampling",
    "Source",
    "SpBleu",
    "Tier",
    "benchmark_names",
    "get_benchmark",
    "get_source",
    "get_tier",
    "language_names",
    "language_order",
    "language_words",
    "resolve_names",
    "sources",
    "spbleu_model",
    "speeds",
    "variants",
]

ENGLISH = "eng_Latn"
_FOLDER = ROOT / "evaluation"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where a benchmark's items come from.

    Either `repository` (a dataset repository on the Hugging Face hub; in a mirror, the folder of that name)
    or `folder` (in a mirror; filled from `archive`, or by hand as `obtain` says).
    """

    name: str
    repository: str | None = None
    revision: str = "main"
    """Branch, tag or commit of the repository."""
    gated: bool = False
    """Whether the hub requires accepting terms (and a token) first."""
    open: bool = False
    """Whether languages come and go: a run takes those that have data, and only what is asked for can be missing."""
    folder: str | None = None
    archive: str | None = None
    """URL of a tar archive that contains `folder`."""
    obtain: str | None = None
    """How to get the files by hand."""
    files: tuple[str, ...] = ()
    """Path patterns with {code} and {split}; empty: the usual layouts of dataset repositories."""
    facts: str | None = None
    """Of a `pair` source: a table with a row per line ({split}), whose fields are added to the rows if it exists."""
    header: tuple[str, ...] = ()
    """Column names, for files without a header line."""
    configs: tuple[str, ...] = ()
    """Configurations that hold all languages together; empty: one per language."""
    whole: bool = False
    """Whether each file holds all languages, distinguished by `key`."""
    key: str | None = None
    """Template of a row's language code."""
    pair: bool = False
    """Whether row n is line n (or row n, in a table with `text`) of the English file, as `source`, and of the language's
    file, as `target`."""
    splits: Mapping[str, str]
    """The repository's splits for `test` and `examples`."""
    columns: tuple[str, ...]
    """Fields that each row must have."""

    @model_validator(mode="after")
    def _has_a_place(self) -> Source:
        if (self.repository is None) == (self.folder is None):
            raise ValueError("give either repository or folder")
        if self.whole != (self.key is not None):
            raise ValueError("whole and key belong together")
        return self

    @property
    def root(self) -> str:
        """Folder in a mirror."""
        return self.repository or self.folder or ""

    @functools.cached_property
    def codes(self) -> Mapping[str, str]:
        """Language code → name of the configuration that holds it, in the order of codes."""
        return _codes()[self.name]


class Sampling(_Strict):
    """How new tokens are sampled; benchmarks without it use greedy decoding."""

    temperature: float = Field(gt=0)
    top_p: float = Field(gt=0, le=1)


class Program(_Strict):
    """How an answer becomes a program that is run, and passes or not."""

    toolchain: str
    """What runs it, in programs.yaml."""
    text: str
    """Template over the item's fields and `answer`."""


class Benchmark(_Strict):
    """A benchmark: its prompts, answers and metrics."""

    name: str
    title: str
    source: str
    kind: Literal["choice", "generation", "likelihood"]
    """`choice`: the likeliest of `choices`; `generation`: text; `likelihood`: the text's own likelihood."""
    prompt: str
    shots: int = Field(0, ge=0)
    """Worked examples before the question."""
    draw: Literal["pandas", "integers", "harness"] = "harness"
    """How examples are drawn for each item (see `items.draws`)."""
    shot: str = ""
    """Template of one example."""
    shot_separator: str = ""
    words: str | None = None
    """Table in words.yaml; default the source's name."""
    choices: tuple[str, ...] = ()
    answer: str | None = None
    """Template of the correct choice's text."""
    answer_index: str | None = None
    """Template of the correct choice's index, from 0."""
    scoring: Literal["full", "last_token"] = "full"
    """`full`: likelihood of the whole choice; `last_token`: of its last token, right after the prompt."""
    delimiter: str = " "
    """Text between the prompt and a choice."""
    prompt_tokens: int | None = None
    """Maximum tokens of a prompt; longer ones are cut at the end."""
    reference: str | None = None
    """Template of the text that an answer is compared with."""
    stop: tuple[str, ...] = ()
    stop_field: str | None = None
    """Field with a list of further texts that end an answer to this item."""
    max_new_tokens: int = Field(256, ge=1)
    sampling: Sampling | None = None
    samples: int = Field(1, ge=1)
    """Answers to each item; several are sampled independently."""
    program: Program | None = None
    """What is run to score an answer; None: answers are texts."""
    output: Literal["raw", "stripped", "first_line"] = "stripped"
    """Which part of the generated text is scored."""
    shorten: str | None = None
    """Field to cut at the end until the prompt fits the model's window; instructions around it stay whole."""
    final: str | None = None
    """Template of the pattern that finds the result in a worked answer."""
    cluster: str | None = None
    """Template of what an item belongs to (a passage with several questions); such items are one unit in tests."""
    drop_empty: bool = False
    """Leave outputs that are empty or only dots out of the averages."""
    on_demand: bool = False
    """Whether it runs only if it is named."""
    from_english: bool | None = None
    """Direction of a translation; None for other benchmarks."""
    metrics: tuple[str, ...]

    @model_validator(mode="after")
    def _is_complete(self) -> Benchmark:
        if self.kind == "choice" and (
            not self.choices or (self.answer is None) == (self.answer_index is None)
        ):
            raise ValueError("a choice needs choices and either answer or answer_index")
        if self.shots and not self.shot:
            raise ValueError("shots need a template `shot`")
        if self.samples > 1 and (self.sampling is None or self.program is None):
            raise ValueError("several samples need sampling and a program")
        most = [int(name.removeprefix("pass@")) for name in self.metrics if name.startswith("pass@")]
        if any(k > self.samples for k in most):
            raise ValueError(f"pass@{max(most)} needs as many samples, and there are {self.samples}")
        return self

    def decisive(self) -> dict[str, Any]:
        """What of it determines scores, as plain values."""
        # What belongs together changes tests, not scores, and comes with the samples.
        left_out = {"cluster"} if self.cluster is None else set()
        if self.program is None:
            left_out |= {"stop_field", "samples", "program"}
        return self.model_dump(mode="json", exclude=left_out)

    @property
    def data(self) -> Source:
        """Where its items come from."""
        return get_source(self.source)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes as used in results: languages, or pairs for translation."""
        return tuple(self.label(code) for code in self.data.codes)

    def label(self, code: str) -> str:
        """The source's code → the language in results (`eng_Latn-xxx_Yyyy` for a translation)."""
        if self.from_english is None:
            return code
        return f"{ENGLISH}-{code}" if self.from_english else f"{code}-{ENGLISH}"

    def code(self, label: str) -> str:
        """The language in results → the source's code."""
        if self.from_english is None:
            return label
        return label.removeprefix(f"{ENGLISH}-") if self.from_english else label.removesuffix(f"-{ENGLISH}")

    def output_language(self, label: str) -> str:
        """Language in which answers are expected."""
        if self.from_english is None:
            return label
        return self.code(label) if self.from_english else ENGLISH


class SpBleu(_Strict):
    """The sentencepiece model of spBLEU: file name in a mirror, other names, URL, expected SHA-256."""

    file: str
    also: tuple[str, ...] = ()
    address: str
    sha256: str


class Tier(_Strict):
    """How much to run; see recipes/evaluation/tiers.yaml."""

    name: str
    benchmarks: tuple[str, ...] = ("robust",)
    languages: int | None = None
    only: bool = False
    limit: int | None = None
    max_new_tokens: int | None = None
    missing: Literal["refuse", "skip"] = "refuse"


@functools.cache
def _file(name: str) -> dict[str, Any]:
    return read_yaml(_FOLDER / name).values


@functools.cache
def _codes() -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    with (_FOLDER / "codes.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            found.setdefault(row["languages"], {})[row["code"]] = row["config"] or row["code"]
    return found


def _read[T: BaseModel](model: type[T], place: str, values: Mapping[str, Any]) -> T:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([place, *map(str, first["loc"])])
        raise UserError(f"{_FOLDER / 'benchmarks.yaml'}: {key}: {first['msg']}") from None


@functools.cache
def get_source(name: str) -> Source:
    """The source of this name.

    Raises:
        UserError: there is none, or its entry is wrong.
    """
    known = _file("benchmarks.yaml")["sources"]
    if name not in known:
        raise UserError(f"no source {name}; {nearest(name, list(known))}")
    return _read(Source, f"sources.{name}", {"name": name, **known[name]})


def sources() -> list[Source]:
    """All sources."""
    return [get_source(name) for name in _file("benchmarks.yaml")["sources"]]


def benchmark_names(on_demand: bool = False) -> list[str]:
    """Names of all benchmarks, including variants, without or with those that run only on demand."""
    known = _file("benchmarks.yaml")["benchmarks"]
    return [name for name in known if on_demand or not _values(name).get("on_demand")]


@functools.cache
def _values(name: str) -> dict[str, Any]:
    known = _file("benchmarks.yaml")["benchmarks"]
    values = dict(known[name])
    parent = values.pop("like", None)
    return {**_values(parent), **values} if parent else values


@functools.cache
def get_benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UserError: there is none, or its entry is wrong.
    """
    names = benchmark_names(on_demand=True)
    if name not in names:
        raise UserError(f"no benchmark {name}; {nearest(name, names)} (`emma evaluate list` shows all)")
    return _read(Benchmark, f"benchmarks.{name}", {"name": name, **_values(name)})


def variants() -> dict[str, list[str]]:
    """`authors`: the protocols that measured the EMMA-500 models; `robust`: this project's, where theirs are fragile. What
    exists in one variant is in both."""
    names = benchmark_names()
    return {
        "authors": [name for name in names if f"{name}_emma" not in names],
        "robust": [
            name for name in names if not name.endswith("_emma") or name.removesuffix("_emma") not in names
        ],
    }


def resolve_names(names: Sequence[str]) -> list[str]:
    """Benchmarks that the user's names mean, each once; `_emma` may be left out if it is the only variant. Names of
    lm-eval's tasks (`lm_eval:NAME`) stay, at the end.

    Raises:
        UserError: a name is unknown.
    """
    known = benchmark_names(on_demand=True)
    theirs = [name for name in names if name.startswith("lm_eval:")]
    names = [name for name in names if name not in theirs]
    found = [name if name in known or f"{name}_emma" not in known else f"{name}_emma" for name in names]
    return [*dict.fromkeys(get_benchmark(name).name for name in found), *dict.fromkeys(theirs)]


def language_words(benchmark: Benchmark, code: str) -> Any:
    """Words of a language that the benchmark's prompts use; empty if they use none."""
    return _file("words.yaml").get(benchmark.words or benchmark.source, {}).get(code, {})


@functools.cache
def language_names() -> Mapping[str, str]:
    """English names of the FLORES-200 codes."""
    with (_FOLDER / "flores_names.csv").open(encoding="utf-8", newline="") as handle:
        return {row["code"]: row["name"] for row in csv.DictReader(handle)}


def spbleu_model() -> SpBleu:
    """What is known about the sentencepiece model of spBLEU."""
    return _read(SpBleu, "spbleu", _file("benchmarks.yaml")["spbleu"])


def get_tier(name: str) -> Tier:
    """The tier of this name.

    Raises:
        UserError: there is none.
    """
    known = _file("tiers.yaml")["tiers"]
    if name not in known:
        raise UserError(f"no tier {name}; known tiers: {', '.join(known)}")
    return _read(Tier, f"tiers.{name}", {"name": name, **known[name]})


def language_order() -> Sequence[str]:
    """Language codes in the order in which tiers with fewer languages choose them."""
    order: Sequence[str] = _file("tiers.yaml")["order"]
    return order


def speeds() -> Mapping[str, Mapping[str, float]]:
    """Assumed speeds by backend; see tiers.yaml."""
    values: Mapping[str, Mapping[str, float]] = _file("tiers.yaml")["speeds"]
    return values
